"""Makes batches from token files, each a pure function of its number:

    training    batch i = batch_size windows of context_length + 1 tokens, at offsets drawn from (seed, i); with
                several sources (mixture.py), each from one that is drawn by its weight; or the next windows of the
                documents in a new order each pass (document_stream.py); in the first steps perhaps cut into short ones
    validation  batch i = the next batch_size adjacent windows, from the beginning of the file

So a run has a length, a resumed run needs only its step to continue with the same batches, and every validation sees
the same tokens, on any number of devices: they take turns, in training and in validation.
"""

import shlex
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset

from lm.data.batches import Batch
from lm.data.document_stream import DocumentStream
from lm.data.loaders import make_loader
from lm.data.mixture import Drawn, Mixture, compare_shares, read_sources, sources_of
from lm.data.windows import (
    DocumentWindows,
    MixedWindows,
    RandomWindows,
    SequentialWindows,
    ShortFirst,
    check_short_windows,
)
from tokenization import END_OF_TEXT, InputError, TokenFile, Tokenizer


class TokenDataModule(LightningDataModule):
    """Serves a training and a validation token file encoded by the same tokenizer.

    Args:
        train_path: token file, or folder of a token set, to draw training windows from, made by `tokenization encode`;
            several with weights, as stories.bin:0.7,english.tokens:0.3, or a list of {path, weight}.
        val_path: token file or token set to validate on.
        tokenizer: folder of the tokenizer that encoded both; it is copied into the run's folder.
        context_length: tokens per window; the model's.
        vocab_size: the model's; every token id must be below it.
        batch_size: windows per batch, on each device.
        seed: decides which windows are drawn.
        windows: drawn at random places, or taken from the documents one after another, in a new order each pass, so
            that a pass sees every token once.
        short_context: tokens per window in the first short_steps steps, whose windows are cut into windows of this
            length; a divisor of context_length.
        short_steps: optimizer steps with windows of short_context tokens.
        num_workers: processes that load batches; 0 is fastest unless the disk is slow.
    """

    def __init__(
        self,
        train_path: str | list[dict[str, Any]],
        val_path: str,
        tokenizer: str,
        context_length: int,
        vocab_size: int,
        batch_size: int = 32,
        seed: int = 0,
        windows: Literal["random", "documents"] = "random",
        short_context: int | None = None,
        short_steps: int = 0,
        num_workers: int = 0,
    ):
        super().__init__()
        if windows not in ("random", "documents"):
            raise ValueError(f"windows is {windows!r}; it can be random, documents")
        if batch_size < 1 or num_workers < 0 or seed < 0:
            raise ValueError(
                f"batch_size {batch_size} must be at least 1, num_workers {num_workers} and seed {seed} at least 0"
            )
        check_short_windows(short_context, short_steps, context_length)
        self.sources = read_sources(train_path)
        if windows == "documents" and len(self.sources) > 1:
            raise ValueError(
                f"windows documents reads one source, and data.train_path names {len(self.sources)}; take random, or"
                " encode the texts into one token set"
            )
        names = ", ".join(source.path for source in self.sources)
        self.train_name = names if len(self.sources) == 1 else f"data.train_path: {names}"
        self.val_path = val_path
        self.tokenizer_path = tokenizer
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.batch_size = batch_size
        self.seed = seed
        self.short_context, self.short_steps = short_context, short_steps
        self.by_documents = windows == "documents"
        self.num_workers = num_workers
        self.files: dict[str, TokenFile] = {}  # "fit" if there is one source, and "validate"
        self.mixture: Mixture | None = None  # of several sources
        self.drawn: Drawn | None = None
        self.stream: DocumentStream | None = None  # with windows of documents
        self.num_val_batches = 0  # on all devices together
        self.read_before = (0, 0)  # batches, and windows in them, until data.batch_size may have changed

    def setup(self, stage: str) -> None:
        """Opens and checks the files that a stage needs, once; "validate" needs no training file."""
        if "validate" in self.files and (stage != "fit" or self.mixture is not None or "fit" in self.files):
            return
        self.tokenizer = Tokenizer.load(self.tokenizer_path)
        if self.tokenizer.vocab_size > self.vocab_size:
            raise InputError(
                f"{self.tokenizer_path}: has {self.tokenizer.vocab_size} tokens, too many for model.vocab_size"
                f" {self.vocab_size}; set --model.vocab_size {self.tokenizer.vocab_size}"
            )
        if stage == "fit":
            self._open_sources()
        self.files["validate"] = self._open(self.val_path)

    def _open_sources(self) -> None:
        files = [self._open(source.path) for source in self.sources]
        windows = sum(len(file) - self.context_length for file in files)
        if windows < self.batch_size:
            raise InputError(
                f"{self.train_name}: {sum(map(len, files))} tokens have {windows} windows of {self.context_length + 1},"
                f" fewer than data.batch_size {self.batch_size}; use more text or smaller batches"
            )
        if len(files) == 1:
            self.files["fit"] = files[0]
            self.stream = self._make_stream(files[0]) if self.by_documents else None
        else:
            self.mixture = Mixture(self.sources, files)
            self.drawn = Drawn(self.mixture, self.seed, self.batch_size)

    def _make_stream(self, file: TokenFile) -> DocumentStream:
        end_id = self.tokenizer.end_of_text_id
        if end_id is None:
            raise InputError(
                f"{self.tokenizer_path}: has no {END_OF_TEXT}, by which `data.windows documents` finds documents; take"
                " random"
            )
        return DocumentStream(file.tokens, end_id, self.context_length, self.seed)

    def _open(self, path: str) -> TokenFile:
        """Opens a token file, and checks that it fits the tokenizer and the context."""
        # The first process on a node reads every byte; the others, and those that load batches, rely on it.
        file = TokenFile.open(path, verify=self.trainer is None or self.trainer.local_rank == 0)
        if self.num_workers > 0 or (self.trainer is not None and self.trainer.world_size > 1):
            file.verify_rest()
        file.check_tokenizer(
            self.tokenizer_path,
            self.tokenizer.digest,
            "encode the text with it again: `tokenization encode TEXT --tokenizer"
            f" {shlex.quote(str(self.tokenizer_path))} --output {shlex.quote(str(file.path))}`",
        )
        if len(file) <= self.context_length:
            raise InputError(
                f"{file.path}: holds {len(file)} tokens, too few for a context_length of {self.context_length};"
                " use more text or a shorter context"
            )
        return file

    def verify_rest(self) -> None:
        """Verifies the shards of token sets that have not been read yet; InputError for the first damaged one."""
        for file in (*self.files.values(), *(self.mixture.files if self.mixture is not None else [])):
            file.verify_rest()

    def read_beginning(self, batches: range, most: int) -> None:
        """Reads what a run reads before its first step. Raises InputError for a damaged shard.

        batches: of that step. most: how many training tokens are counted for comparison.
        """
        self.files["validate"].verify_rest()
        self.first_train_tokens(most)
        windows = self._windows(len(batches), batches.start)
        for index in range(len(batches)):
            windows[index]

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        if self.trainer.max_steps < 1:
            raise InputError(f"trainer.max_steps is {self.trainer.max_steps}; it must be at least 1")
        # The dataset keeps its full length after a resume: Lightning counts the earlier batches too.
        num_batches = self.batches_in(self.trainer.max_steps)
        self.source_figures()  # counting begins here
        first_batch = self.batches_in(self.trainer.global_step)
        return make_loader(self._cut_windows(num_batches, first_batch), self.trainer, self.num_workers)

    def _cut_windows(self, num_batches: int, first_batch: int) -> Dataset[Batch]:
        """Returns the batches from this number on, of which those of the first steps are cut into short windows."""
        windows = self._windows(num_batches, first_batch)
        if self.short_context is None:
            return windows
        return ShortFirst(windows, self.short_context, self.batches_in(self.short_steps) - first_batch)

    def _windows(self, num_batches: int, first_batch: int) -> RandomWindows | MixedWindows | DocumentWindows:
        if self.stream is not None:
            return DocumentWindows(self.stream, self.batch_size, num_batches, self.windows_in(first_batch))
        how = (self.context_length, self.batch_size, self.seed, num_batches, first_batch)
        if self.mixture is not None:
            return MixedWindows(self.mixture, *how)
        return RandomWindows(self.files["fit"].tokens, *how)

    def source_figures(self) -> dict[str, tuple[float, float]]:
        """Returns each source's share of the windows so far, and the passes over it; nothing for a single one."""
        if self.drawn is None or self.trainer is None:
            return {}
        self.drawn.count_to(self.trainer.global_step, self.trainer.accumulate_grad_batches * self.trainer.world_size)
        return self.drawn.figures(self.context_length)

    def tokens_after(self, step: int) -> int:
        """Returns the training tokens that this many optimizer steps read, on all devices together."""
        return self.windows_in(self.batches_in(step)) * self.context_length

    def batches_in(self, steps: int) -> int:
        """Returns how many batches this many optimizer steps read, on all devices together."""
        assert self.trainer is not None
        return steps * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def windows_in(self, batches: int) -> int:
        """Returns how many windows the run's first batches have, whose size may change where it resumes."""
        before, windows = self.read_before
        if batches < before:
            return windows * batches // before
        return windows + (batches - before) * self.batch_size

    def passes_after(self, step: int) -> float:
        """Returns how often this many optimizer steps read the training tokens, on average."""
        return self.tokens_after(step) / self.num_train_tokens

    @property
    def train_files(self) -> list[TokenFile]:
        """The opened token files to train on."""
        return [self.files["fit"]] if self.mixture is None else self.mixture.files

    @property
    def train_sha256(self) -> str:
        """The digest of the training tokens; of a mixture, that of its sources and their shares."""
        return self.files["fit"].description.data_sha256 if self.mixture is None else self.mixture.digest

    @property
    def num_train_tokens(self) -> int:
        """The number of all tokens to train on."""
        return sum(map(len, self.train_files))

    def first_lengths(self, most: int) -> list[int]:
        """Returns how many tokens of each file `first_train_tokens` reads."""
        shares = [1.0] if self.mixture is None else map(float, self.mixture.shares)
        return [min(int(share * most), len(file)) for file, share in zip(self.train_files, shares, strict=True)]

    def first_train_tokens(self, most: int) -> np.ndarray:
        """Returns the beginning of the training tokens, (most,) at most; of a mixture, of each source by its share."""
        lengths = self.first_lengths(most)
        parts = [file.tokens[:length] for file, length in zip(self.train_files, lengths, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def training_batches(self, numbers: range) -> Batch:
        """Returns these batches of the run once more, as they were trained on, joined in one."""
        windows = self._cut_windows(len(numbers), numbers.start)
        inputs, targets = zip(*(windows[index] for index in range(len(numbers))), strict=True)
        return torch.cat(inputs), torch.cat(targets)

    def val_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        self.num_val_batches = self.count_val_batches(self.trainer.limit_val_batches)
        self.trainer.limit_val_batches = self.num_val_batches  # Lightning would take a share of each device's batches
        windows = Subset(self._val_windows(), range(self.num_val_batches))
        return make_loader(windows, self.trainer, self.num_workers)

    def _val_windows(self) -> SequentialWindows:
        return SequentialWindows(self.files["validate"].tokens, self.context_length, self.batch_size)

    def count_val_batches(self, limit: float) -> int:
        """Returns how many batches trainer.limit_val_batches stands for; InputError for a share of less than one."""
        available = len(self._val_windows())
        wanted = limit if isinstance(limit, int) else int(limit * available)
        if not wanted:
            raise InputError(
                f"trainer.limit_val_batches {limit} is less than one of {available} batches; 1 takes one, 1.0 all"
            )
        return min(wanted, available)

    @property
    def validated(self) -> list[str | int]:
        """Which text is validated, by its digest, and how many of its windows: of what losses can be compared."""
        windows = min(self.num_val_batches * self.batch_size, self._val_windows().num_windows)
        return [self.files["validate"].description.data_sha256, windows]

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint records of its data."""
        self.source_figures()
        batches = 0 if self.trainer is None else self.batches_in(self.trainer.global_step)
        return {
            "tokenizer_sha256": self.tokenizer.digest,
            "train_sha256": self.train_sha256,
            "val_sha256": self.files["validate"].description.data_sha256,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "read": [batches, self.windows_in(batches)],
        } | ({} if self.drawn is None else {"mixture": self.drawn.state_dict()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises InputError if the checkpoint had another tokenizer, whose token ids mean something else."""
        if state_dict["tokenizer_sha256"] != self.tokenizer.digest:
            raise InputError(
                f"{self.tokenizer_path}: is not the tokenizer that the checkpoint was trained with (digest"
                f" {self.tokenizer.digest[:12]}, not {state_dict['tokenizer_sha256'][:12]}); use the one in its folder"
            )
        batches, windows = state_dict.get("read", (0, 0))
        self.read_before = batches, windows
        if self.drawn is not None and "mixture" in state_dict:
            self.drawn.load_state_dict(state_dict["mixture"])

    def compare(self, old: dict[str, Any], allow_changed_data: bool) -> list[str]:
        """Lists what has changed since a checkpoint's data, a line each; InputError if a change is not allowed.

        old: the checkpoint's state_dict of this class. Other token files need allow_changed_data, and other weights
        of the same files do not.
        """
        self.load_state_dict(old)
        changes, new = [], self.state_dict()
        for name, path in (("train_sha256", self.train_name), ("val_sha256", self.val_path)):
            was, now = old[name][:12], new[name][:12]
            if was == now or (name == "train_sha256" and sources_of(old) == sources_of(new)):
                continue
            if not allow_changed_data:
                raise InputError(
                    f"{path}: is not the data that the checkpoint was trained with (digest {now}, not {was}); put it"
                    " back, or go on with this one by --allow_changed_data true"
                )
            changes.append(f"{path}: digest {was} -> {now}")
        changes += compare_shares(old.get("mixture"), new.get("mixture"))
        for name in ("batch_size", "seed"):
            if old[name] != new[name]:
                changes.append(f"data.{name}: {old[name]} -> {new[name]}")
        return changes
