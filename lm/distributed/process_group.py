"""Joins torch's process group, which Lightning then uses, and ends a process whose run never begins.

With `joined`, the processes find each other a second time, at the addresses that their devices use. Until all of them
have made a step together, each watches for others that leave: it may be waiting for them in a library, for half an
hour.
"""

import atexit
import contextlib
import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch.distributed import DistError, PrefixStore, Store  # type: ignore[attr-defined]  # it exports them all the same
from torch.distributed.constants import default_pg_timeout

from lm.distributed.hosts import PARTING, Hosts, in_one_line
from lm.machine.signals import Interrupted
from tokenization import InputError

LEAVING = 5.0  # seconds for a process to end by itself; one that waits inside a library hears no signal
LOOK_EVERY = 0.2  # seconds


@contextlib.contextmanager
def joined(hosts: Hosts, trainer: Trainer) -> Iterator[None]:
    """Joins the process group; InputError where the hosts cannot reach each other.

    Ends this process, with exit code 143, if another one leaves before all have made a step together. Until then there
    is nothing to save, and afterwards Checkpoints and the process group see to that.
    """
    if hosts.store is None:
        yield
        return
    device = trainer.strategy.root_device
    with hosts.agree():
        if device.type == "cpu" and len(set(hosts.names)) > 1 and not os.environ.get("GLOO_SOCKET_IFNAME"):
            check_address(socket.gethostname())
    store = hosts.store.clone()  # type: ignore[attr-defined]  # the process group may be waiting in the other one
    watch = Watch(hosts, store)
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    hosts.told = True  # by the watch, from here on
    threading.Thread(target=watch.run, daemon=True).start()
    try:
        connect(hosts, device)
        yield
    except BaseException as failure:
        watch.ends_by(failure)
        raise
    finally:
        watch.over.set()


def connect(hosts: Hosts, device: torch.device) -> None:
    assert hosts.store is not None
    backend = torch.distributed.get_default_backend_for_device(device)
    own_device = {}
    if device.type == "cuda":
        torch.cuda.set_device(device)  # on which the processes meet; Lightning does it only in trainer.fit
        own_device = {"device_id": device}
    try:
        torch.distributed.init_process_group(
            backend,
            store=PrefixStore("group", hosts.store),
            rank=hosts.rank,
            world_size=hosts.size,
            timeout=default_pg_timeout,
            **own_device,  # type: ignore[arg-type]
        )
    except RuntimeError as error:
        raise InputError(f"{socket.gethostname()}: cannot reach the other hosts; {in_one_line(error)}") from None
    if backend == "nccl":
        atexit.register(torch.distributed.destroy_process_group)


def check_address(host: str) -> None:
    """Raises InputError if the host's name stands for an address at which other hosts cannot reach it."""
    try:
        address = str(socket.getaddrinfo(host, None)[0][4][0]).partition("%")[0]
    except OSError:
        address = "127.0.0.1"  # gloo's choice
    if ipaddress.ip_address(address).is_loopback:
        raise InputError(
            f"the name {host} stands for {address}, at which other hosts cannot reach it; set GLOO_SOCKET_IFNAME to the"
            " network interface that they share, such as eth0"
        )


class Watch(Callback):
    """Looks for processes that leave, and says so if this one does."""

    def __init__(self, hosts: Hosts, store: Store):
        self.hosts, self.store = hosts, store
        self.started, self.first_step, self.over = False, 1, threading.Event()
        self.others = [rank for rank in range(hosts.size) if rank != hosts.rank]

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.started = True  # a signal ends all processes at one step from here on
        self.first_step = trainer.global_step + 1

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= self.first_step:  # in which all have met
            self.over.set()

    def ends_by(self, failure: BaseException) -> None:
        """Tells the others that this process leaves; Interrupted if it does so only because another one has."""
        signalled = isinstance(failure, Interrupted)
        if self.over.is_set() or (self.started and signalled):
            return
        who = None if signalled or isinstance(failure, InputError) else self.who_left(LEAVING)
        self.over.set()
        with contextlib.suppress(DistError):
            self.store.set(f"left/{self.hosts.rank}", "")
            if self.hosts.rank == 0:  # the store may end with this process
                self.store.wait([f"heard/{rank}" for rank in self.others], PARTING)
        if who:
            self.say(who)  # instead of a library's words about a connection that has closed
            raise Interrupted(128 + signal.SIGTERM) from None

    def who_left(self, seconds: float = 0) -> str | None:
        """Returns which process has left, after so many seconds at most."""
        end = time.monotonic() + seconds
        with contextlib.suppress(DistError):  # the first process is gone: so are the connections to it
            while True:
                for rank in self.others:
                    if self.store.check([f"left/{rank}"]):
                        self.store.set(f"heard/{self.hosts.rank}", "")
                        return f"process {rank} on {self.hosts.names[rank]}"
                if time.monotonic() >= end:
                    break
                time.sleep(LOOK_EVERY)
        return None

    def say(self, who: str) -> None:
        if self.hosts.rank == 0:
            os.write(2, f"\nlm: {who} has left before all had begun; ended, nothing is lost\n".encode())

    def run(self) -> None:
        """Passes the end of another process on to this one, as a signal, and does not wait long for its answer."""
        while not self.over.wait(LOOK_EVERY):
            if (who := self.who_left()) and not self.over.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                if not self.over.wait(LEAVING):
                    self.say(who)
                    os._exit(128 + signal.SIGTERM)
                return
