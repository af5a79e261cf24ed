"""Makes one run, or none, of the processes that a launcher has started (launchers.py):

    Hosts.meet()     they find each other through a store, before anything else
    hosts.agree()    each does its part of a stage; they go on together only if none refuses, and all see the same
    hosts.connect()  they join torch's process group, which Lightning then uses

The first process decides and reports; the others leave with its exit code.
"""

import atexit
import contextlib
import ipaddress
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import torch
from jsonargparse import Namespace
from torch.distributed import (  # type: ignore[attr-defined]  # it exports them all the same
    DistError,
    PrefixStore,
    Store,
    TCPStore,
)
from torch.distributed.constants import default_pg_timeout

from lm.machine.signals import Interrupted
from lm.runs.manifest import read_digest
from lm.training.checks import settings_of
from lm.training.data import TokenDataModule
from lm.training.launchers import World
from lm.training.resume import Resume
from tokenization import InputError
from tokenization.errors import describe_os_error
from tokenization.version import own_version

MEETING = timedelta(minutes=5)  # for all processes to start
STAGE = timedelta(minutes=30)  # for the slowest host, after the first process: it may read its data from a slow disk
PARTING = timedelta(seconds=5)  # for the others to hear a refusal, before the first process takes the store with it
PATHS = ("data.train_path", "data.val_path", "data.tokenizer")  # may differ; their digests may not
CHECKPOINT = "the checkpoint to begin with"
VERSIONS = ("torch", "lightning")
REMEDIES = {CHECKPOINT: "all hosts need the run's folder, so put it on a disk that they share"}
REMEDIES |= dict.fromkeys((*VERSIONS, "this package"), "install the same version on all hosts")
REMEDIES |= dict.fromkeys(PATHS, "copy the same files to all hosts")


class Hosts:
    """The processes of a run. A single one agrees with itself, and needs no store."""

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None):
        self.rank, self.size, self.store = rank, size, store
        self.names = [socket.gethostname()]  # of the hosts, by rank
        self.stage = 0
        if store is not None:
            self._meet(store)

    @classmethod
    def meet(cls, world: World | None) -> "Hosts":
        """Finds the other processes; InputError if some do not appear in time."""
        if world is None or world.size == 1:
            return cls()
        address, port = world.environment.main_address, world.environment.main_port
        serves = world.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        what = "listen at" if serves else "reach the first process at"
        try:
            if not serves:
                _wait_for_server(address, port)
            store = TCPStore(address, port, world.size, serves, MEETING, wait_for_workers=False)
        except (DistError, OSError) as error:
            raise InputError(f"{socket.gethostname()}: cannot {what} {address}:{port}; {_one_line(error)}") from None
        return cls(world.rank, world.size, store)

    def _meet(self, store: Store) -> None:
        """Names this start of the run, of which all processes are members.

        torchrun's store may still hold what the processes of an earlier start have said in it.
        """
        own = {"name": secrets.token_hex(8), "host": socket.gethostname()}
        store.set(f"hello/{self.rank}", json.dumps(own))
        end = time.monotonic() + MEETING.total_seconds()
        start, missing = own["name"], set(range(1, self.size))
        hellos: list[Any] = [own]
        while self.rank or missing:
            if not self.rank:
                hellos = [self._read(store, f"hello/{rank}") for rank in range(self.size)]
                store.set("start", json.dumps({"name": start, "hellos": hellos}))
                missing = {rank for rank in missing if self._read(store, f"joined/{rank}") != start}
            elif (seen := self._read(store, "start")) and seen["hellos"][self.rank] == own:
                hellos, start = seen["hellos"], seen["name"]
                store.set(f"joined/{self.rank}", json.dumps(start))
                if all(hellos):
                    break
            if time.monotonic() > end:
                who = f"processes {sorted(missing)} of {self.size}" if not self.rank else "the first process"
                raise InputError(f"{own['host']}: {who} did not appear within {MEETING}; see whether all have started")
            time.sleep(0.02)
        self.names = [hello["host"] for hello in hellos]
        self.store = PrefixStore(start, store)

    @staticmethod
    def _read(store: Store, key: str) -> Any:
        return json.loads(store.get(key)) if store.check([key]) else None

    @contextlib.contextmanager
    def agree(self) -> Iterator[dict[str, Any]]:
        """Ends all processes with exit code 2 if what is done inside is refused on one of them.

        What must be the same on all of them goes into the dictionary that it yields, by name, as JSON.
        """
        seen: dict[str, Any] = {}
        error = None
        if self.store is None:
            yield seen
            return
        try:
            yield seen
        except (InputError, OSError) as refusal:
            error = str(refusal) if isinstance(refusal, InputError) else describe_os_error(refusal)
        except BaseException as failure:
            if not (isinstance(failure, SystemExit) and not failure.code):  # --help, on all of them
                self._give_up(failure)
            raise
        self.stage += 1
        self.store.set(f"{self.stage}/answer/{self.rank}", json.dumps({"error": error, "seen": seen}))
        if self.rank:
            self._heed()
        elif refused := self._decide():
            self._announce(refused)
            raise InputError(refused)
        else:
            self.store.set(f"{self.stage}/decision", json.dumps(None))

    def _decide(self) -> str | None:
        """Returns why the run cannot go on, from the answers of all processes."""
        assert self.store is not None
        answers: dict[int, Any] = {}
        end = time.monotonic() + STAGE.total_seconds()
        while len(answers) < self.size:
            for rank in set(range(self.size)) - set(answers):
                if answer := self._read(self.store, f"{self.stage}/answer/{rank}"):
                    answers[rank] = answer
                    if answer["error"] is not None:
                        return self._of(rank) + str(answer["error"])
            if time.monotonic() > end:
                late = sorted(set(range(self.size)) - set(answers))
                return f"no answer within {STAGE} from process " + ", ".join(f"{r} on {self.names[r]}" for r in late)
            time.sleep(0.02)
        ours = answers[0]["seen"]
        for rank, answer in sorted(answers.items()):
            for name in ours | answer["seen"]:
                here, there = ours.get(name), answer["seen"].get(name)
                if here != there:
                    remedy = REMEDIES.get(name, "all processes need the same settings")
                    return f"{name} is {here} on {self.names[0]}, and {there} on {self.names[rank]}; {remedy}"
        return None

    def _of(self, rank: int) -> str:
        return "" if self.names[rank] == self.names[0] else f"{self.names[rank]}: "

    def _announce(self, refused: str) -> None:
        """Tells the others, and waits until they have heard it: the store may end with this process."""
        assert self.store is not None
        self.store.set(f"{self.stage}/decision", json.dumps(refused))
        with contextlib.suppress(DistError):
            self.store.wait([f"{self.stage}/heard/{rank}" for rank in range(1, self.size)], PARTING)

    def _heed(self) -> None:
        """Waits for the first process's decision, and leaves if it is a refusal."""
        assert self.store is not None
        end = time.monotonic() + STAGE.total_seconds()
        try:
            while not self.store.check([f"{self.stage}/decision"]):  # not store.wait, which hears no signal
                if time.monotonic() > end:
                    raise InputError(f"{self.names[self.rank]}: no decision within {STAGE} from {self.names[0]}")
                time.sleep(0.02)
            refused = self._read(self.store, f"{self.stage}/decision")
            self.store.set(f"{self.stage}/heard/{self.rank}", "")
        except DistError:
            raise InputError(f"{self.names[self.rank]}: the first process, on {self.names[0]}, has ended") from None
        if refused is not None:
            sys.exit(2)  # the first process says why

    def _give_up(self, failure: BaseException) -> None:
        """Tells the others that this process leaves, without asking them."""
        assert self.store is not None
        self.stage += 1
        ended = "was ended by a signal" if isinstance(failure, Interrupted) else _one_line(failure)
        with contextlib.suppress(DistError):
            if self.rank:
                error = {"error": f"process {self.rank}: {ended}", "seen": {}}
                self.store.set(f"{self.stage}/answer/{self.rank}", json.dumps(error))
                self.store.set(f"{self.stage}/heard/{self.rank}", "")
            else:
                self._announce(ended)

    def connect(self, device: torch.device) -> None:
        """Joins torch's process group, which Lightning finds and uses."""
        if self.store is None:
            return
        backend = torch.distributed.get_default_backend_for_device(device)
        with self.agree():
            if backend == "gloo" and len(set(self.names)) > 1 and not os.environ.get("GLOO_SOCKET_IFNAME"):
                check_address(socket.gethostname())
        own_device = {"device_id": device} if device.type == "cuda" else {}
        try:
            torch.distributed.init_process_group(
                backend,
                store=PrefixStore("group", self.store),
                rank=self.rank,
                world_size=self.size,
                timeout=default_pg_timeout,
                **own_device,  # type: ignore[arg-type]
            )
        except RuntimeError as error:
            raise InputError(f"{socket.gethostname()}: cannot reach the other hosts; {_one_line(error)}") from None
        if backend == "nccl":
            atexit.register(torch.distributed.destroy_process_group)


def _wait_for_server(address: str, port: int) -> None:
    """Returns once something listens there; OSError if nothing does in time. A signal ends it, as in no TCPStore."""
    end = time.monotonic() + MEETING.total_seconds()
    while True:
        try:
            return socket.create_connection((address, port), 5).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


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


def seen_here(settings: Namespace, resume: Resume, data: TokenDataModule) -> dict[str, Any]:
    """Returns what every process of a run must find the same, by name."""
    seen = {name: version(name) for name in VERSIONS} | {"this package": own_version()}
    seen |= {name: value for name, value in settings_of(settings).items() if name not in PATHS}
    source = resume.checkpoint or resume.source
    seen[CHECKPOINT] = f"{source}, step {resume.step}, digest {read_digest(source)[:12]}" if source else "none"
    digests = data.state_dict()
    for name, path in zip(("train_sha256", "val_sha256", "tokenizer_sha256"), PATHS, strict=True):
        seen[path] = f"of digest {digests[name][:12]}"
    return seen


def _one_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
