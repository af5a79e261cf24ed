"""Proves that a run of several processes, which torchrun or SLURM have started, is one run or none: they take their
number from the launcher."""

import contextlib
import os
import re
import shutil
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.processes import free_port, wait_until
from helpers.runs import same
from jsonargparse import Namespace
from torch.distributed import HashStore

from lm.machine.signals import Interrupted
from lm.runs.checkpoint import load_checkpoint
from lm.runs.folder import LOCK
from lm.runs.manifest import read_manifest
from lm.training import hosts, process_group
from lm.training.agreement import check_shared
from lm.training.hosts import Hosts
from lm.training.launchers import find_world
from tokenization import InputError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2",
}  # fmt: skip
SLURM = {
    "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "lm",
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """environment(variables): sets these; None removes one."""

    def change(variables: dict[str, str | None]) -> None:
        for name, value in variables.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return change


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
        "lm fit: trainer.devices is 2, and SLURM has started 1 a node; leave trainer.devices out, as it is read from"
        " the environment\n"
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
                trainers[0].callbacks[0].on_train_batch_end()
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


# --- two hosts -------------------------------------------------------------------------------------------------------

STEPS = ("--trainer.max_steps=6", "--trainer.val_check_interval=3", "--checkpoints.every_n_steps=2",
         "--trainer.limit_val_batches=2", "--data.batch_size=2", "--samples.max_new_tokens=0")  # fmt: skip
ENDLESS = (*STEPS, "--trainer.max_steps=200000", "--trainer.val_check_interval=100000")


@pytest.fixture
def two_hosts(fork_server, environment, monkeypatch, tmp_path):
    """start(arguments of each host): what torchrun starts on hosts a and b, each in a folder of that name."""

    def start(*arguments: list[object], launcher: str = "torchrun", **variables: str | None):
        if launcher == "torchrun":
            environment(TORCHRUN | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"})
        else:
            environment(SLURM | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0"})
        environment({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"})
        environment(variables)
        processes = []
        for rank, (host, command) in enumerate(zip("ab", arguments, strict=True)):
            (tmp_path / host).mkdir(exist_ok=True)
            with monkeypatch.context() as patch:
                patch.chdir(tmp_path / host)
                ranks = ("RANK", "GROUP_RANK") if launcher == "torchrun" else ("SLURM_PROCID", "SLURM_NODEID")
                for name, value in {**dict.fromkeys(ranks, str(rank)), "HOST_NAME": host}.items():
                    patch.setenv(name, value)
                processes.append(fork_server.start(command, tmp_path / f"{host}.log"))
        return processes

    def said(host: str) -> str:
        return (tmp_path / f"{host}.log").read_text()

    start.said = said
    return start


@pytest.fixture(scope="module")
def one_process(lm, fit_arguments, tmp_path_factory) -> Path:
    """The run that two processes shall equal."""
    run = tmp_path_factory.mktemp("one") / "run"
    more = ("--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=6")
    assert lm(*fit_arguments(run, *STEPS, *more)).code == 0
    return run


def test_without_a_shared_disk(two_hosts, one_process, lm, fit_arguments, tmp_path):
    """A new run may begin, as the first process alone writes; to go on, each host must see the checkpoint."""
    processes = two_hosts(*[fit_arguments(Path("run"), *STEPS, "--ckpt_path=auto")] * 2)
    assert [process.wait() for process in processes] == [0, 0], two_hosts.said("a") + two_hosts.said("b")
    assert "run: holds no checkpoint" in two_hosts.said("a")
    assert two_hosts.said("b") == ""
    assert not (tmp_path / "b/run").exists()
    expected, weights = (load_checkpoint(run / "last.ckpt")["state_dict"] for run in (one_process, tmp_path / "a/run"))
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6, msg=name)
    before = (tmp_path / "a/run/last.ckpt").read_bytes()
    for log in tmp_path.glob("*.log"):
        log.unlink()
    start = time.monotonic()
    more = (*STEPS, "--trainer.max_steps=12", "--ckpt_path=auto")
    processes = two_hosts(*[fit_arguments(Path("run"), *more)] * 2)
    assert [process.wait() for process in processes] == [2, 2]
    assert time.monotonic() - start < 60
    (line,) = two_hosts.said("a").splitlines()
    assert line.startswith("lm fit: the checkpoint to begin with is run/last.ckpt, step 6, digest ")
    assert line.endswith(" on a, and none on b; all hosts need the run's folder, so put it on a disk that they share")
    assert two_hosts.said("b") == ""
    assert (tmp_path / "a/run/last.ckpt").read_bytes() == before


def test_the_first_process_alone_reads_the_weights_to_begin_with(two_hosts, one_process, lm, fit_arguments, tmp_path):
    """Host b does not have them. With FSDP, as DDP would make all weights those of the first process anyway."""
    more = (*STEPS, "--trainer.max_steps=2", "--trainer.val_check_interval=2")
    one = (*more, "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=4", f"--init_from={one_process}")
    assert lm(*fit_arguments(tmp_path / "one", *one)).code == 0
    shutil.copytree(one_process, tmp_path / "a/source")
    command = fit_arguments(Path("run"), *more, "--trainer.strategy=fsdp", "--init_from=source")
    processes = two_hosts(command, command)
    assert [process.wait() for process in processes] == [0, 0], two_hosts.said("a") + two_hosts.said("b")
    assert "starting with the weights of source/best.ckpt\n" in two_hosts.said("a")
    expected, weights = (
        load_checkpoint(run / "last.ckpt")["state_dict"] for run in (tmp_path / "one", tmp_path / "a/run")
    )
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6, msg=name)


def test_slurms_warning_to_one_task_ends_both(two_hosts, fit_arguments, tmp_path):
    """In srun's environment: there Lightning would save and requeue the job by itself."""
    run = tmp_path / "run"
    first, second = two_hosts(*[fit_arguments(run, *ENDLESS)] * 2, launcher="SLURM", SLURM_JOB_ID="41")
    wait_until((run / "last.ckpt").exists)
    assert (run / LOCK).read_text().endswith('"job": "41"}')
    os.kill(second.pid, signal.SIGUSR1)
    assert [first.wait(60), second.wait(60)] == [143, 0]
    assert not list(run.glob("hpc_ckpt_*"))
    assert read_manifest(run / "last.ckpt")["step"] > 0


REFUSALS = {  # settings of host b, what a says
    "another setting": (("--trainer.max_steps=7",), "trainer.max_steps is 6 on a, and 7 on b; all processes need"),
    "no data": (("--data.val_path=nowhere.bin",), "b: nowhere.bin: no such token file"),
    "other weights": (("--init_from=x",), "init_from is not set on a, and set on b; all processes need"),
    "a mistyped setting": (("--trainer.max_step=7",), "b: "),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_one_host_refuses_ends_both(case, two_hosts, fit_arguments, tmp_path):
    settings, message = REFUSALS[case]
    arguments = fit_arguments(tmp_path / "run", *STEPS)
    processes = two_hosts(arguments, [*arguments, *settings])
    assert [process.wait() for process in processes] == [2, 2]
    (line,) = two_hosts.said("a").splitlines()
    assert line.startswith(f"lm fit: {message}")
    assert two_hosts.said("b") == ""
    assert not (tmp_path / "run").exists()


def test_hosts_that_would_not_validate_the_same(two_hosts, one_process):
    command = ["validate", one_process, "--trainer.accelerator=cpu"]
    processes = two_hosts(command, [*command, "--trainer.limit_val_batches=1"])
    assert [process.wait() for process in processes] == [2, 2]
    (line,) = two_hosts.said("a").splitlines()
    assert line == (
        "lm validate: trainer.limit_val_batches is 2 on a, and 1 on b; all processes need the same settings"
    )
    assert two_hosts.said("b") == ""


@pytest.mark.slow
def test_two_hosts_validate_as_one(two_hosts, one_process):
    command = ["validate", one_process, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    processes = two_hosts(command, command)
    assert [process.wait() for process in processes] == [0, 0]
    best = load_checkpoint(one_process / "best.ckpt")["callbacks"]["Checkpoints"]["best_loss"]
    assert float(re.search(r"val/loss\D+([\d.]+)", two_hosts.said("a"))[1]) == pytest.approx(best, abs=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_of_two_before_they_train_ends_both(two_hosts, fit_arguments, tmp_path):
    """At twelve moments from the first line on, whichever of them hears it."""
    for number in range(12):
        run = tmp_path / str(number)
        processes = two_hosts(*[fit_arguments(run, *ENDLESS)] * 2)
        wait_until((run / LOCK).exists)
        time.sleep(number * 0.05)
        start = time.monotonic()
        os.kill(processes[number % 2].pid, signal.SIGTERM)
        codes = [process.wait(60) for process in processes]
        said = two_hosts.said("a") + two_hosts.said("b")
        assert set(codes) <= {143, 2} or codes == [143, 0], (codes, said)  # 0: the signal came after all had begun
        assert time.monotonic() - start < 30
        assert "Traceback" not in said
        assert not (run / LOCK).exists()


def test_a_lock_that_the_first_process_respects_ends_both(two_hosts, fit_arguments, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).write_text('{"host": "elsewhere", "pid": 7}')
    processes = two_hosts(*[fit_arguments(run, *STEPS)] * 2)
    assert [process.wait() for process in processes] == [2, 2]
    (line,) = two_hosts.said("a").splitlines()
    assert line.startswith(f"lm fit: {run}: is locked by process 7 of host elsewhere")
    assert two_hosts.said("b") == ""


def test_names_that_other_hosts_cannot_resolve(two_hosts, fit_arguments, tmp_path):
    processes = two_hosts(*[fit_arguments(tmp_path / "run", *STEPS)] * 2, GLOO_SOCKET_IFNAME=None)
    assert [process.wait() for process in processes] == [2, 2]
    (line,) = [line for line in two_hosts.said("a").splitlines() if line.startswith("lm fit: ")]
    assert "stands for 127.0.0.1, at which other hosts cannot reach it; set GLOO_SOCKET_IFNAME" in line
    assert two_hosts.said("b") == ""
    assert not (tmp_path / "run").exists()


def test_of_two_that_share_the_weights_one_is_killed(two_hosts, fit_arguments, tmp_path):
    """The other cannot gather them any more, and waits for nothing; a signal to one ends both, and saves."""
    run = tmp_path / "run"
    arguments = fit_arguments(run, *ENDLESS, "--trainer.strategy=fsdp", "--checkpoints.every_n_steps=20")
    first, second = two_hosts(arguments, arguments)
    wait_until((run / "last.ckpt").exists)
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    assert first.wait(60) not in (0, -9)
    (line,) = [line for line in two_hosts.said("a").splitlines() if line.startswith("stopped after step")]
    assert f"--ckpt_path {run / 'last.ckpt'}` resumes from step" in line
    step = read_manifest(run / "last.ckpt")["step"]
    before = load_checkpoint(run / "last.ckpt")
    first, second = two_hosts(*[[*arguments, f"--ckpt_path={run / 'last.ckpt'}"]] * 2)
    wait_until(lambda: (run / LOCK).exists() and read_manifest(run / "last.ckpt")["step"] > step)
    os.kill(second.pid, signal.SIGTERM)
    assert [first.wait(60), second.wait(60)] == [143, 0]
    after = load_checkpoint(run / "last.ckpt")
    assert after["global_step"] > step == before["global_step"]
    assert not same(after["state_dict"], before["state_dict"])
