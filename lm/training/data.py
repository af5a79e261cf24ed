"""Makes batches from token files, each a pure function of its number:

    training    batch i = batch_size windows of context_length + 1 tokens, at offsets drawn from (seed, i)
    validation  batch i = the next batch_size adjacent windows, from the beginning of the file

So a run has a length, a resumed run needs only its step to continue with the same batches, and every validation sees
the same tokens, on any number of devices: they take turns, in training and in validation.
"""

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from lm.machine.signals import SIGNALS, SYNONYMS
from lm.training.batches import Batch, gather_windows
from tokenization import InputError, TokenFile, Tokenizer
from tokenization.token_set import Tokens


class InOrder(DistributedSampler[int]):
    """DistributedSampler in order, and without its list of all batches, which may be very long."""

    def __iter__(self) -> Iterator[int]:
        batches = len(self.dataset)  # type: ignore[arg-type]
        return (number % batches for number in range(self.rank, self.total_size, self.num_replicas))


def random_starts(seed: int, batch_index: int, batch_size: int, num_starts: int) -> np.ndarray:
    """Returns offsets uniform in [0, num_starts), (batch_size,) int64, the same with every version of NumPy.

    NumPy guarantees the words of a SeedSequence across versions, but not what its generators make of them.
    """
    words = np.random.SeedSequence((seed, batch_index)).generate_state(batch_size, np.uint64)
    return (words % np.uint64(num_starts)).astype(np.int64)


class RandomWindows(Dataset[Batch]):
    """A dataset of num_batches batches of random windows; item i is batch number first_batch + i."""

    def __init__(
        self,
        tokens: Tokens,
        context_length: int,
        batch_size: int,
        seed: int,
        num_batches: int,
        first_batch: int = 0,
    ):
        self.tokens, self.context_length, self.batch_size = tokens, context_length, batch_size
        self.seed, self.num_batches, self.first_batch = seed, num_batches, first_batch

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> Batch:
        num_starts = len(self.tokens) - self.context_length
        starts = random_starts(self.seed, self.first_batch + index, self.batch_size, num_starts)
        return gather_windows(self.tokens, starts, self.context_length)


class SequentialWindows(Dataset[Batch]):
    """A dataset of all adjacent windows, in batches; a remainder too short for a window is left out."""

    def __init__(self, tokens: Tokens, context_length: int, batch_size: int):
        self.tokens, self.context_length, self.batch_size = tokens, context_length, batch_size
        self.num_windows = (len(tokens) - 1) // context_length

    def __len__(self) -> int:
        return -(-self.num_windows // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        first = index * self.batch_size
        windows = np.arange(first, min(first + self.batch_size, self.num_windows))
        return gather_windows(self.tokens, windows * self.context_length, self.context_length)


class TokenDataModule(LightningDataModule):
    """Serves a training and a validation token file encoded by the same tokenizer.

    Args:
        train_path: token file to draw training windows from, written by `tokenization encode`.
        val_path: token file to validate on.
        tokenizer: folder of the tokenizer that encoded both; it is copied into the run's folder.
        context_length: tokens per window; the model's.
        vocab_size: the model's; every token id must be below it.
        batch_size: windows per batch, on each device.
        seed: decides which windows are drawn.
        num_workers: processes that load batches; 0 is fastest unless the disk is slow.
    """

    def __init__(
        self,
        train_path: str,
        val_path: str,
        tokenizer: str,
        context_length: int,
        vocab_size: int,
        batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__()
        if batch_size < 1 or num_workers < 0 or seed < 0:
            raise ValueError(
                f"batch_size {batch_size} must be at least 1, num_workers {num_workers} and seed {seed} at least 0"
            )
        self.paths = {"fit": train_path, "validate": val_path}
        self.tokenizer_path = tokenizer
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.files: dict[str, TokenFile] = {}
        self.num_val_batches = 0  # on all devices together

    def setup(self, stage: str) -> None:
        """Opens and checks the files that a stage needs, once; "validate" needs no training file."""
        if stage in self.files:
            return
        self.tokenizer = Tokenizer.load(self.tokenizer_path)
        if self.tokenizer.vocab_size > self.vocab_size:
            raise InputError(
                f"{self.tokenizer_path}: has {self.tokenizer.vocab_size} tokens, too many for model.vocab_size"
                f" {self.vocab_size}; set --model.vocab_size {self.tokenizer.vocab_size}"
            )
        names = ("fit", "validate") if stage == "fit" else ("validate",)
        # The first process on a node reads every byte; the others, and those that load batches, rely on it.
        verify = self.trainer is None or self.trainer.local_rank == 0
        others = self.num_workers > 0 or (self.trainer is not None and self.trainer.world_size > 1)
        for name in names:
            file = TokenFile.open(self.paths[name], verify)
            if others:
                file.verify_rest()
            file.check_tokenizer(
                self.tokenizer_path,
                self.tokenizer.digest,
                "encode the text with it again: `tokenization encode TEXT --tokenizer"
                f" {self.tokenizer_path} --output {file.path}`",
            )
            if len(file) <= self.context_length:
                raise InputError(
                    f"{file.path}: holds {len(file)} tokens, too few for a context_length of {self.context_length};"
                    " use more text or a shorter context"
                )
            if name == "fit" and len(file) - self.context_length < self.batch_size:
                raise InputError(
                    f"{file.path}: {len(file)} tokens have {len(file) - self.context_length} windows of"
                    f" {self.context_length + 1}, fewer than data.batch_size {self.batch_size}; use more text or"
                    " smaller batches"
                )
            self.files[name] = file

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        if self.trainer.max_steps < 1:
            raise InputError(f"trainer.max_steps is {self.trainer.max_steps}; it must be at least 1")
        batches_per_step = self.trainer.accumulate_grad_batches * self.trainer.world_size
        # The dataset keeps its full length after a resume: Lightning counts the earlier batches too.
        num_batches = self.trainer.max_steps * batches_per_step
        return self._loader(self._windows(num_batches, first_batch=self.trainer.global_step * batches_per_step))

    def _windows(self, num_batches: int, first_batch: int) -> RandomWindows:
        tokens = self.files["fit"].tokens
        return RandomWindows(tokens, self.context_length, self.batch_size, self.seed, num_batches, first_batch)

    def tokens_after(self, step: int) -> int:
        """Returns the training tokens that this many optimizer steps read, on all devices together."""
        assert self.trainer is not None
        batches = step * self.trainer.accumulate_grad_batches * self.trainer.world_size
        return batches * self.batch_size * self.context_length

    def passes_after(self, step: int) -> float:
        """Returns how often this many optimizer steps read the training file, on average."""
        return self.tokens_after(step) / len(self.files["fit"])

    def training_batches(self, numbers: range) -> Batch:
        """Returns these batches of the run once more, joined in one."""
        windows = self._windows(len(numbers), numbers.start)
        inputs, targets = zip(*(windows[index] for index in range(len(numbers))), strict=True)
        return torch.cat(inputs), torch.cat(targets)

    def val_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        windows = SequentialWindows(self.files["validate"].tokens, self.context_length, self.batch_size)
        limit = self.trainer.limit_val_batches
        wanted = limit if isinstance(limit, int) else int(limit * len(windows))
        if not wanted:
            raise InputError(
                f"trainer.limit_val_batches {limit} is less than one of {len(windows)} batches; 1 takes one, 1.0 all"
            )
        self.num_val_batches = min(wanted, len(windows))
        self.trainer.limit_val_batches = self.num_val_batches  # Lightning would take a share of each device's batches
        return self._loader(Subset(windows, range(self.num_val_batches)))

    def _loader(self, dataset: Dataset[Batch]) -> DataLoader[Batch]:
        assert self.trainer is not None
        # Without a sampler Lightning adds one that shuffles. All devices run equally many batches, as they wait for
        # each other: if batches run out, some devices repeat an early one, which the module does not count.
        sampler = InOrder(dataset, num_replicas=self.trainer.world_size, rank=self.trainer.global_rank, shuffle=False)
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",  # lets copies overlap with computation
            worker_init_fn=ignore_signals,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint records of its data."""
        return {
            "tokenizer_sha256": self.tokenizer.digest,
            "train_sha256": self.files["fit"].description.data_sha256,
            "val_sha256": self.files["validate"].description.data_sha256,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises InputError if the checkpoint had another tokenizer, whose token ids mean something else."""
        if state_dict["tokenizer_sha256"] != self.tokenizer.digest:
            raise InputError(
                f"{self.tokenizer_path}: is not the tokenizer that the checkpoint was trained with (digest"
                f" {self.tokenizer.digest[:12]}, not {state_dict['tokenizer_sha256'][:12]}); use the one in its folder"
            )

    def compare(self, old: dict[str, Any], allow_changed_data: bool) -> list[str]:
        """Lists what has changed since a checkpoint's data, a line each; InputError if a change is not allowed.

        old: the checkpoint's state_dict of this class. Other token files need allow_changed_data.
        """
        self.load_state_dict(old)
        changes, new = [], self.state_dict()
        for name, path in (("train_sha256", self.paths["fit"]), ("val_sha256", self.paths["validate"])):
            was, now = old[name][:12], new[name][:12]
            if was != now and not allow_changed_data:
                raise InputError(
                    f"{path}: is not the data that the checkpoint was trained with (digest {now}, not {was}); put it"
                    " back, or go on with this one by --allow_changed_data true"
                )
            if was != now:
                changes.append(f"{path}: digest {was} -> {now}")
        for name in ("batch_size", "seed"):
            if old[name] != new[name]:
                changes.append(f"data.{name}: {old[name]} -> {new[name]}")
        return changes


def ignore_signals(worker: int) -> None:
    """Makes a worker ignore the signals that end a run: the run saves first, and then ends its workers."""
    for signum in (*SIGNALS, *SYNONYMS):
        signal.signal(signum, signal.SIG_IGN)
