"""Makes a run's loaders: its devices take turns, batch by batch, in the batches' order."""

import signal
from collections.abc import Iterator

from lightning import Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lm.data.batches import Batch
from lm.machine.signals import SIGNALS, SYNONYMS


class InOrder(DistributedSampler[int]):
    """DistributedSampler in order, and without its list of all batches, which may be very long."""

    def __iter__(self) -> Iterator[int]:
        batches = len(self.dataset)  # type: ignore[arg-type]
        return (number % batches for number in range(self.rank, self.total_size, self.num_replicas))


def make_loader(dataset: Dataset[Batch], trainer: Trainer, num_workers: int) -> DataLoader[Batch]:
    """Returns a loader of this device's share of the batches. num_workers: processes that load; 0 is this one."""
    # Without a sampler Lightning adds one that shuffles. All devices run equally many batches, as they wait for each
    # other: if batches run out, some devices repeat an early one, which the module does not count.
    sampler = InOrder(dataset, num_replicas=trainer.world_size, rank=trainer.global_rank, shuffle=False)
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=trainer.strategy.root_device.type == "cuda",  # lets copies overlap with computation
        worker_init_fn=ignore_signals,
    )


def ignore_signals(worker: int) -> None:
    """Makes a worker ignore the signals that end a run: the run saves first, and then ends its workers."""
    for signum in (*SIGNALS, *SYNONYMS):
        signal.signal(signum, signal.SIG_IGN)
