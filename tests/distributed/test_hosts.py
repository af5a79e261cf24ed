"""Proves what the processes of a run agree on before they train, with threads and a store of their own; and that they
take their number from the launcher, torchrun or SLURM."""

import contextlib
import signal
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from helpers.launchers import SLURM, TORCHRUN
from jsonargparse import Namespace
from torch.distributed import HashStore

from lm.distributed import hosts, process_group
from lm.distributed.agreement import check_shared
from lm.distributed.hosts import Hosts
from lm.distributed.launchers import find_world
from lm.distributed.process_group import Watch
from lm.machine.signals import Interrupted
from lm.runs.folder import LOCK
from tokenization import InputError


@pytest.mark.parametrize("variables", [TORCHRUN, TORCHRUN | {"GROUP_WORLD_SIZE": None}, SLURM])
def test_the_launcher_says_how_many_there_are(variables, environment):
    environment(variables)
    world = find_world()
    assert not getattr(world.environment, "auto_requeue", False)
    assert (world.rank, world.size, world.nodes, world.per_node) == (3, 4, 2, 2)
    assert (world.environment.global_rank(), world.environment.world_size()) == (3, 4)
    assert world.parts_of_trainer(Namespace(num_nodes=1, devices="auto")) == {"num_nodes": 2, "devices": 2}
    assert world.parts_of_trainer(Namespace(num_nodes=2, devices=[0, 1])) == {"num_nodes": 2}
    with pytest.raises(InputError, match=r"trainer.num_nodes is 3, and (torchrun|SLURM) has started 2; leave"):
        world.parts_of_trainer(Namespace(num_nodes=3, devices=1))


@pytest.mark.parametrize("variables", [{}, SLURM | {"SLURM_JOB_NAME": "interactive"}, {"LOCAL_RANK": "1"}])
def test_without_a_launcher_lightning_decides(variables, environment):
    environment(variables)
    assert find_world() is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (TORCHRUN | {"WORLD_SIZE": "3"}, "torchrun has started 3 processes on 2 nodes, 2 of them on this one; give"),
        (TORCHRUN | {"RANK": "first"}, "RANK is first; the launcher must set it to a number"),
        (TORCHRUN | {"RANK": "1_0"}, "RANK is 1_0; the launcher must set it to a number"),
        (TORCHRUN | {"WORLD_SIZE": None}, "WORLD_SIZE is None; the launcher"),
        (SLURM | {"SLURM_NTASKS": "3"}, "SLURM has started 3 processes on 2 nodes; set --ntasks-per-node"),
        (SLURM | {"SLURM_NTASKS_PER_NODE": None}, "SLURM has started 4 processes on 2 nodes; set --ntasks-per-node"),
    ],
)
def test_numbers_that_do_not_agree_are_refused(variables, message, environment):
    environment(variables)
    with pytest.raises(InputError, match=message):
        find_world()


def test_devices_that_the_launcher_has_not_started_are_refused(lm, fit_arguments, environment, tmp_path):
    """Lightning would wait for the other process for half an hour."""
    environment(SLURM | {"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": None, "SLURM_PROCID": "0"})
    environment({"SLURM_LOCALID": "0", "SLURM_NODEID": "0"})
    result = lm(*fit_arguments(tmp_path / "run", "--trainer.devices=2"))
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "lm fit: trainer.devices is 2, and SLURM has started 1 a node; set --trainer.devices auto, which reads the"
        " number from the environment\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [(), ("--ckpt_path=auto",), ("--trainer.fast_dev_run=true",)])
def test_a_checkpoint_of_lightnings_for_slurm_is_never_taken(settings, lm, fit_arguments, tmp_path):
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"the middle of a step")
    result = lm(*fit_arguments(tmp_path, *settings))
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.splitlines()
    if "auto" not in "".join(settings):
        assert line.startswith(f"lm fit: {tmp_path / 'hpc_ckpt_1.ckpt'}: was saved by Lightning for SLURM")


# --- what they agree on: threads with a store of their own -----------------------------------------------------------


def together(*parts, store=None, names="ab") -> list[object]:
    """Runs each part as a process's; part(hosts). -> what each has returned or raised."""
    store, outcomes = store or HashStore(), [None] * len(parts)

    def work(rank: int) -> None:
        try:
            processes = Hosts(rank, len(parts), store)
            processes.names = list(names[: len(parts)])
            with processes.staying():
                outcomes[rank] = parts[rank](processes)
        except BaseException as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


def stage(error: Exception | None = None, **seen: object):
    def part(processes: Hosts) -> str:
        with processes.agree() as found:
            found |= seen
            if error is not None:
                raise error
        return "on"

    return part


def test_processes_that_see_the_same_go_on():
    assert together(stage(a=1), stage(a=1), stage(a=1), names="abc") == ["on"] * 3


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ((stage(a=1), stage(a=2)), "a is 1 on a, and 2 on b; all processes need the same settings"),
        ((stage(), stage(torch=2)), "torch is None on a, and 2 on b; install the same version on all hosts"),
        ((stage(InputError("bad: x"), a=1), stage(a=2)), "bad: x"),
        ((stage(InputError("bad: x")), stage(InputError("bad: x"))), "bad: x"),
        ((stage(), stage(InputError("bad: x"))), "b: bad: x"),
        ((stage(), stage(FileNotFoundError(2, "No such file", "x"))), "b: x: No such file"),
    ],
)
def test_one_that_refuses_ends_all(parts, line):
    first, second = together(*parts)
    assert isinstance(first, InputError)
    assert str(first).startswith(line)
    assert isinstance(second, SystemExit)
    assert second.code == 2


def test_one_that_fails_ends_the_others():
    first, second = together(stage(), stage(ZeroDivisionError("by zero")))
    assert str(first) == "b: process 1: ZeroDivisionError: by zero"
    assert isinstance(second, ZeroDivisionError)
    first, second = together(stage(KeyboardInterrupt()), stage())
    assert isinstance(first, KeyboardInterrupt)
    assert second.code == 2


def leaving(failure: BaseException):
    def part(processes: Hosts) -> None:
        raise failure

    return part


def test_one_that_leaves_between_two_stages_ends_the_others():
    first, second = together(stage(), leaving(Interrupted(143)))
    assert str(first) == "b: process 1: was ended by a signal"
    assert second.code == 143
    first, second = together(leaving(Interrupted(143)), stage())
    assert (first.code, second.code) == (143, 2)


def choosing(choice: object, error: Exception | None = None):
    """The first process makes this choice, or fails to; each also sees what it got."""

    def part(processes: Hosts) -> object:
        def decide() -> object:
            if error is not None:
                raise error
            return choice

        with processes.agree() as seen:
            seen["choice"] = processes.decided(decide)
        return seen["choice"]

    return part


def test_the_first_process_decides_for_all():
    assert together(choosing("a"), choosing("b"), choosing(None), names="abc") == ["a"] * 3
    assert together(choosing(None), choosing("b")) == [None] * 2
    assert Hosts().decided(lambda: 3) == 3
    first, second = together(choosing("a", InputError("bad: x")), choosing("b"))
    assert (str(first), second.code) == ("bad: x", 2)
    first, second = together(choosing("a"), stage(InputError("bad: x")))
    assert (str(first), second.code) == ("b: bad: x", 2)


def test_two_choices_of_one_stage_are_two():
    def part(processes: Hosts) -> object:
        with processes.agree():
            return [processes.decided(lambda choice=choice: choice) for choice in ("path", 17)]

    assert together(part, part, part, names="abc") == [["path", 17]] * 3


def test_one_that_does_not_appear_or_answer_is_named(monkeypatch):
    monkeypatch.setattr(hosts, "MEETING", timedelta(seconds=0.2))
    for name in ("STAGE", "PARTING"):
        monkeypatch.setattr(hosts, name, timedelta(seconds=0.2))
    with pytest.raises(InputError, match=r"processes \[1, 2\] of 3 did not appear within 0:00:00.2"):
        Hosts(0, 3, HashStore())
    with pytest.raises(InputError, match=r"the first process did not appear"):
        Hosts(1, 3, HashStore())
    first, _ = together(stage(), lambda processes: time.sleep(0.5))
    assert str(first) == "no answer within 0:00:00.200000 from process 1 on b"


def test_a_store_that_remembers_an_earlier_start():
    """torchrun keeps its store when it starts the processes again."""
    store = HashStore()
    assert [str(outcome) for outcome in together(stage(a=1), stage(a=2), store=store)] != ["on", "on"]
    for _ in range(3):
        assert together(stage(a=1), stage(a=1), store=store) == ["on", "on"]


@pytest.mark.parametrize(("address", "lonely"), [("127.0.1.1", True), ("::1", True), (None, True), ("10.0.0.7", False)])
def test_a_name_that_stands_for_this_host_alone(address, lonely, monkeypatch):
    def resolve(host, port):
        if address is None:
            raise OSError("Name or service not known")
        return [(None, None, None, "", (address, 0))]

    monkeypatch.setattr(process_group.socket, "getaddrinfo", resolve)
    with (
        pytest.raises(InputError, match=r"the name a stands for .*; set GLOO_SOCKET_IFNAME to")
        if lonely
        else (contextlib.nullcontext())
    ):
        process_group.check_address("a")


@pytest.mark.parametrize("case", ["waits inside a library", "hears it", "fails as the other has left", "trains"])
def test_of_several_that_have_not_begun_one_leaves(case, monkeypatch, capfd):
    """It tells the others, which end by the same signal, however they wait: nobody waits for it."""
    told, gone = threading.Event(), threading.Event()
    signals: list[int] = []
    monkeypatch.setattr(process_group.os, "kill", lambda pid, signum: (signals.append(signum), told.set()))
    monkeypatch.setattr(process_group.os, "_exit", lambda code: (signals.append(code), gone.set()))
    monkeypatch.setattr(process_group, "LEAVING", 0.5)
    monkeypatch.setattr(process_group, "PARTING", timedelta(seconds=0.5))
    monkeypatch.setattr(process_group, "connect", lambda hosts, device: None)
    strategy = SimpleNamespace(root_device=torch.device("meta"))
    trainers = [SimpleNamespace(callbacks=[], strategy=strategy) for _ in range(2)]

    def first(processes: Hosts) -> str:
        with process_group.joined(processes, trainers[0]):
            if case == "trains":
                trainers[0].callbacks[0].on_train_batch_end(SimpleNamespace(global_step=1))
                time.sleep(1)
            elif case == "fails as the other has left":
                raise RuntimeError("Connection closed by peer")
            else:
                (gone if case == "waits inside a library" else told).wait(20)
        return "over"

    def second(processes: Hosts) -> None:
        with process_group.joined(processes, trainers[1]):
            raise Interrupted(143)

    outcomes = together(first, second)
    assert isinstance(outcomes[1], Interrupted)
    line = "\nlm: process 1 on b has left before all had begun; ended, nothing is lost\n"
    if case == "fails as the other has left":
        assert outcomes[0].code == 143
        assert outcomes[0].__cause__ is None
        assert capfd.readouterr().err == line
    else:
        assert outcomes[0] == "over"
        expected = {"waits inside a library": [signal.SIGTERM, 143], "hears it": [signal.SIGTERM], "trains": []}
        assert signals == expected[case]
        assert capfd.readouterr().err == (line if case == "waits inside a library" else "")


def test_shards_need_the_folder_that_the_first_process_has_locked(tmp_path):
    settings = Namespace(
        trainer=Namespace(default_root_dir=str(tmp_path), fast_dev_run=False), checkpoints=Namespace(sharded=True)
    )
    with pytest.raises(InputError, match=r"is not the folder that the first process has locked, and"):
        check_shared(settings)
    (tmp_path / LOCK).touch()
    check_shared(settings)
    settings.checkpoints.sharded, settings.trainer.default_root_dir = False, "nowhere"
    check_shared(settings)


def test_processes_have_met_once_a_step_has_ended():
    """Not at its first batch, where several are accumulated."""
    watch = Watch(SimpleNamespace(size=2, rank=0), None)
    watch.on_train_start(SimpleNamespace(global_step=3))
    watch.on_train_batch_end(SimpleNamespace(global_step=3))
    assert not watch.over.is_set()
    watch.on_train_batch_end(SimpleNamespace(global_step=4))
    assert watch.over.is_set()
