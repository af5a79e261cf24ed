"""Writes a sample of the model's text after each validation, so that one can watch the model learn."""

import contextlib
import shutil
import sys
import textwrap

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from lm.generation.prompts import text_to_read
from lm.generation.sampling import Sampling
from lm.generation.texts import check_whole
from lm.generation.writer import generate
from tokenization import InputError
from tokenization.errors import printable


class TextSamples(Callback):
    """Writes a sample after each validation, printed and in TensorBoard's Text tab, to show the model learn.

    Args:
        prompt: the beginning of the sample.
        max_new_tokens: the most tokens to generate; 0 writes no samples.
        temperature: sampling temperature.
    """

    def __init__(self, prompt: str = "Once upon a time", max_new_tokens: int = 100, temperature: float = 0.8):
        check_whole("samples.max_new_tokens", max_new_tokens)
        self.prompt, self.max_new_tokens = prompt, max_new_tokens
        self.sampling = Sampling(temperature)
        self.text = ""  # the last sample

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.max_new_tokens or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        sharded = pl_module.device_mesh is not None  # gathered as the steps use them, perhaps in bfloat16
        precision = trainer.precision_plugin.forward_context() if sharded else contextlib.nullcontext()
        try:
            token_ids = tokenizer.encode(text_to_read(self.prompt, tokenizer))
            new_ids = generate(  # on every device: a sharded model needs all of them
                pl_module.model,  # type: ignore[arg-type]
                token_ids,
                self.max_new_tokens,
                self.sampling,
                stop_id=tokenizer.end_of_text_id,
                vocab_size=tokenizer.vocab_size,
                use_cache=not sharded,  # a sharded model holds no whole weights to cache for
            )
            with precision, torch.compiler.set_stance("force_eager"):  # every new length would compile again
                text = self.prompt + tokenizer.decode(list(new_ids))
        except InputError as error:  # a run that diverges is a result too, and goes on
            text = f"no sample: {error}"
        self.text = text
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("sample", text, trainer.global_step)


def paragraph(text: str) -> str:
    """Returns a model's text as an indented paragraph, with escapes for characters that the terminal cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    shown = printable(" ".join(text.split())).encode(encoding, "backslashreplace").decode(encoding)
    width = min(shutil.get_terminal_size().columns, 100)
    return textwrap.fill(shown, width, initial_indent="  ", subsequent_indent="  ")
