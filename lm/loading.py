"""`load` reads a run and returns a model that generates and scores text.

The commands `generate`, `serve` and `test` begin here, too: the same seed writes the same text in each.
"""

import os
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack, overload

import numpy as np
import torch

from lm.evaluation import score_documents, split_documents, total
from lm.generation.continuation import Continuation, TextStream, write_continuations
from lm.generation.prompts import text_to_read
from lm.generation.quantization import check_int8
from lm.generation.sampling import Sampling
from lm.generation.texts import Text, check_whole
from lm.generation.writer import PRECISIONS, Writer, make_reader
from lm.machine.devices import find_device
from lm.machine.resources import use_granted_cores
from lm.model.transformer import TransformerLM
from lm.runs.checkpoint import find_checkpoint, load_model, load_tokenizer
from lm.runs.manifest import read_manifest
from tokenization import END_OF_TEXT, InputError, Tokenizer


def load(
    run: str | os.PathLike[str], device: str = "auto", precision: str = "fp32", *, finite: bool = True
) -> "TrainedModel":
    """Loads a trained model and its tokenizer, verified.

    run: a run's folder, for its best checkpoint, or a checkpoint. device: "auto", "cpu", "cuda" or "mps". precision: of
    the weights while texts are written, "fp32", "bf16" or "int8". finite: refuse weights that are not. Raises
    InputError where there is no such checkpoint, device or precision, and for a damaged run.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: it can be {', '.join(PRECISIONS)}")
    torch_device = find_device(device)
    if precision == "int8":
        check_int8(torch_device)
    use_granted_cores()
    checkpoint = find_checkpoint(run)
    model = load_model(checkpoint, finite).to(torch_device)
    return TrainedModel(checkpoint, model, load_tokenizer(checkpoint, model.vocab_size), precision)


class SamplingSettings(TypedDict, total=False):
    """The fields of Sampling, as keyword arguments."""

    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float


@dataclass(frozen=True, repr=False, eq=False)
class TrainedModel:
    """A trained model with its tokenizer, and the checkpoint that both belong to."""

    checkpoint: Path
    model: TransformerLM
    tokenizer: Tokenizer
    precision: str

    def __repr__(self) -> str:
        model = self.model
        return (
            f"<TrainedModel {self.checkpoint}: step {read_manifest(self.checkpoint)['step']:,},"
            f" {model.num_parameters():,} parameters, vocab_size {model.vocab_size:,}, context_length"
            f" {model.context_length:,}, {self.precision} on {self.device}>"
        )

    @property
    def device(self) -> torch.device:
        return self.model.lm_head.weight.device

    @overload
    def generate(
        self,
        prompts: str,
        max_new_tokens: int = 256,
        *,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        echo: bool = True,
        batch_size: int = 16,
        **sampling: Unpack[SamplingSettings],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompts: list[str],
        max_new_tokens: int = 256,
        *,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        echo: bool = True,
        batch_size: int = 16,
        **sampling: Unpack[SamplingSettings],
    ) -> list[str]: ...

    def generate(
        self,
        prompts: str | list[str],
        max_new_tokens: int = 256,
        *,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        echo: bool = True,
        batch_size: int = 16,
        **sampling: Unpack[SamplingSettings],
    ) -> str | list[str]:
        """Continues a prompt, or each of several, and returns the text or the list of texts.

        max_new_tokens: the model may end a text earlier. seed: decides the text; each further prompt takes the next
        one. stop: a text ends before any of these. echo: a text begins with its prompt. batch_size: the most texts
        written at once. sampling: temperature, top_k, top_p, min_p and repetition_penalty; see Sampling. Raises
        InputError for a value that cannot be.
        """
        check_whole("batch_size", batch_size, least=1)
        if not isinstance(prompts, (str, list, tuple)):
            raise InputError(f"the prompts are {prompts!r}; a string is needed, or a list of strings")
        several = [prompts] if isinstance(prompts, str) else list(prompts)
        begun = self.begin(several, max_new_tokens, Sampling(**sampling), seed, stop, echo=echo)
        for _ in self.write(begun, min(batch_size, len(begun))):
            pass
        texts = [continuation.written for continuation in begun]
        return texts[0] if isinstance(prompts, str) else texts

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 256,
        *,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        echo: bool = True,
        **sampling: Unpack[SamplingSettings],
    ) -> Iterator[str]:
        """Returns an iterator over the text that `generate` returns, some characters at a time, as they are written."""
        begun = self.begin([prompt], max_new_tokens, Sampling(**sampling), seed, stop, echo=echo)
        return (shown for _, shown in self.write(begun, 1) if shown)

    def score(self, text: str) -> dict[str, float]:
        """Returns how well the model predicts a text: its loss (nats per token), perplexity, bits_per_byte, tokens
        and bytes.

        Documents, which <|endoftext|> separates, are read each by itself, as `lm test --per-document` does.
        """
        if not isinstance(text, str):
            raise InputError(f"the text is {reprlib.repr(text)}; it must be a string")
        if self.tokenizer.end_of_text_id is None:
            raise InputError(f"{self.checkpoint}: its tokenizer has no {END_OF_TEXT}, by which a document begins")
        tokens = np.array(self.tokenizer.encode(text), np.int64)
        documents = split_documents(tokens, self.tokenizer.end_of_text_id)
        if not documents:
            raise InputError(f"the text {text[:60]!r} has no token to predict; use more text")
        return total(score_documents(self.model, self.tokenizer, documents, self.tokenizer.end_of_text_id)).record()

    # --- what `generate`, `stream` and the commands are made of -------------------------------------------------------

    def begin(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        sampling: Sampling,
        seed: int,
        stop: str | Sequence[str],
        logprobs: int | None = None,
        echo: bool = False,
    ) -> list[Continuation]:
        """Returns the texts that are to be written, one for each prompt.

        logprobs: of how many of the likeliest tokens the log-probabilities are kept; None keeps none.
        """
        check_whole("max_new_tokens", max_new_tokens, least=1)
        check_whole("seed", seed)
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, Sequence) or not all(isinstance(each, str) for each in stops):
            raise InputError(f"stop {stop!r}: it must be a string, or a list of strings")
        continuations = []
        for number, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise InputError(f"prompt {number} is {prompt!r}; it must be a string")
            ids = self.tokenizer.encode(text_to_read(prompt, self.tokenizer))
            text = Text(ids, max_new_tokens, sampling, seed + number, logprobs, number)
            continuations.append(Continuation(prompt, text, TextStream(self.tokenizer, stops), echo))
        return continuations

    def writer(self, rows: int) -> Writer:
        """Returns a Writer of at most so many texts at once."""
        return Writer.of_tokens(make_reader(self.model, rows, PRECISIONS[self.precision]), self.tokenizer)

    def write(self, continuations: Sequence[Continuation], rows: int) -> Iterator[tuple[Continuation, str]]:
        """Writes the texts, at most `rows` at a time, and yields each with what it has more to show."""
        return write_continuations(self.writer(rows), continuations, rows)
