"""Makes one run, or none, of the processes that a launcher has started (launchers.py):

    Hosts.meet()     they find each other through a store, before anything else
    hosts.staying()  they tell the others if they leave
    hosts.agree()    each does its part of a stage; they go on together only if none refuses, and all see the same
    hosts.decided()  the first one does a part of a stage for all

They join torch's process group afterwards (process_group.py). The first process decides and reports; the others leave
with its exit code.
"""

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed import DistError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from lm.distributed.agreement import REMEDIES
from lm.distributed.launchers import World
from lm.machine.signals import Interrupted
from tokenization import InputError
from tokenization.errors import describe_os_error

T = TypeVar("T")
MEETING = timedelta(minutes=5)  # for all processes to start
STAGE = timedelta(minutes=30)  # for the slowest host, after the first process: it may read its data from a slow disk
PARTING = timedelta(seconds=5)  # for the others to hear a refusal, before the first process takes the store with it


class Refused(SystemExit):
    """Raised in the other processes where the first one says why the run cannot go on."""


class Hosts:
    """The processes of a run. A single one agrees with itself, and needs no store."""

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None):
        self.rank, self.size, self.store = rank, size, store
        self.names = [socket.gethostname()]  # of the hosts, by rank
        self.stage = self.choices = 0
        self.deciding = False  # whether the others wait for the decision of this stage
        self.told = False  # whether the others know, or need not know, that this process leaves
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
            raise InputError(f"{socket.gethostname()}: cannot {what} {address}:{port}; {in_one_line(error)}") from None
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
    def staying(self) -> Iterator[None]:
        """Tells the others if this process leaves between two stages, as by a signal."""
        try:
            yield
        except BaseException as failure:
            finished = isinstance(failure, SystemExit) and not failure.code  # --help, on all of them
            if self.store is not None and not (self.told or finished or isinstance(failure, Refused)):
                self._give_up(failure)
            raise

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
        self.stage += 1
        self.store.set(f"{self.stage}/answer/{self.rank}", json.dumps({"error": error, "seen": seen}))
        if self.rank:
            self._heed()
            return
        self.deciding = True
        if refused := self._decide():
            self.told = True
            self._announce(refused)
            raise InputError(refused)
        self.store.set(f"{self.stage}/decision", json.dumps(None))
        self.deciding = False

    def decided(self, decide: Callable[[], T]) -> T:
        """Returns what the first process decides, as JSON; the others wait for it. To be called within agree()."""
        if self.store is None:
            return decide()
        self.choices += 1
        key = f"{self.stage + 1}/choice/{self.choices}"
        if not self.rank:
            choice = decide()
            self.store.set(key, json.dumps([choice]))
            return choice
        if not self._wait_for(key, f"{self.stage + 1}/decision"):
            self.stage += 1
            self._heed()
        return self._read(self.store, key)[0]  # type: ignore[no-any-return]

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
                elif self.store.check([f"left/{rank}"]) and rank:
                    return f"{self._of(rank)}process {rank} has left"
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
        self.store.set("left/0", "")  # for those that are past the last stage (process_group.py)
        with contextlib.suppress(DistError):
            self.store.wait([f"{self.stage}/heard/{rank}" for rank in range(1, self.size)], PARTING)

    def _heed(self) -> None:
        """Waits for the first process's decision, and leaves if it is a refusal."""
        assert self.store is not None
        key = f"{self.stage}/decision"
        self._wait_for(key)
        refused = self._read(self.store, key)
        self.store.set(f"{self.stage}/heard/{self.rank}", "")
        if refused is not None:
            raise Refused(2)

    def _wait_for(self, key: str, other: str | None = None) -> bool:
        """Waits for the first process to say one of two things; whether it is the first of them."""
        assert self.store is not None
        end = time.monotonic() + STAGE.total_seconds()
        try:
            while not self.store.check([key]):  # not store.wait, which hears no signal
                if other is not None and self.store.check([other]):
                    return False
                if self.store.check(["left/0"]) and not self.store.check([key]):
                    raise Refused(2)
                if time.monotonic() > end:
                    raise InputError(f"{self.names[self.rank]}: no decision within {STAGE} from {self.names[0]}")
                time.sleep(0.02)
        except DistError:
            raise InputError(f"{self.names[self.rank]}: the first process, on {self.names[0]}, has ended") from None
        return True

    def _give_up(self, failure: BaseException) -> None:
        """Tells the others that this process leaves, without asking them."""
        assert self.store is not None
        self.told = True
        self.stage += not self.deciding
        ended = "was ended by a signal" if isinstance(failure, Interrupted) else in_one_line(failure)
        with contextlib.suppress(DistError):
            if self.rank:
                error = {"error": f"process {self.rank}: {ended}", "seen": {}}
                self.store.set(f"{self.stage}/answer/{self.rank}", json.dumps(error))
                self.store.set(f"{self.stage}/heard/{self.rank}", "")
                self.store.set(f"left/{self.rank}", "")
            else:
                self._announce(ended)


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


def in_one_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
