"""Proves what the engine Ray does with what Ray gives it, on a Ray of a few lines: test_ray.py has the real one."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.processes import free_port

from tokenization import InputError
from tokenization.__main__ import main
from tokenization.scaling.ray_engine import QUICK, Ray, find_cluster


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class RaySystemError(RayError):
    pass


class UnreadableTask(RayTaskError, RaySystemError):
    """As Ray makes it for a worker that lacks a module."""

    cause = RaySystemError("System error: No module named 'tokenization'\ntraceback: Traceback (most recent call last)")


class FakeRay:
    """Runs the tasks one after another, as they are waited for, in this process."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, RaySystemError=RaySystemError)

    def __init__(self) -> None:
        self.address: str | None = "not connected"
        self.ended = 0
        self.failures: dict[str, BaseException] = {}  # of ray.get, by a task's name
        self.refusal: Exception | None = None  # of ray.init

    def is_initialized(self) -> bool:
        return False

    def init(self, address: str | None, **settings: object) -> None:
        if self.refusal:
            raise self.refusal
        self.address = address

    def shutdown(self) -> None:
        self.ended += 1

    def put(self, value: object) -> object:
        return value

    def remote(self, **settings: object) -> Callable:
        def with_name(function, name):
            return SimpleNamespace(remote=lambda *arguments: (name, lambda: function(*arguments)))

        return lambda function: SimpleNamespace(options=lambda name: with_name(function, name))

    def wait(self, references: list) -> tuple[list, list]:
        return references[:1], references[1:]

    def get(self, reference: tuple) -> object:
        name, call = reference
        if name in self.failures:
            raise self.failures[name]
        return call()


@pytest.fixture
def ray(monkeypatch, tmp_path) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in (*QUICK, "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "as it was")
    return fake


def double(item: int) -> int:
    if item == 13:
        raise InputError("13: brings bad luck")
    return 2 * item


def collect(items: list[int]) -> tuple[list[int], Exception | None]:
    """Returns what comes, and what ends it."""
    results = []
    try:
        for result in Ray().map(double, items, "doubling"):
            results.append(result)
    except Exception as error:
        return results, error
    return results, None


def test_results_come_and_ray_is_left_running(ray):
    assert collect([1, 2, 3]) == ([2, 4, 6], None)
    assert (ray.address, ray.ended) == (None, 0)


def test_an_error_for_the_user_is_raised_when_all_others_are_done(ray):
    results, error = collect([1, 13, 2])
    assert results == [2, 4]
    assert isinstance(error, InputError)
    assert str(error) == "13: brings bad luck"
    assert ray.ended == 0


def test_a_task_whose_workers_are_lost_is_named(ray):
    ray.failures["2"] = RayError("The worker died unexpectedly. There are many reasons.")
    results, error = collect([1, 2, 3])
    assert results == [2, 6]
    assert str(error) == (
        "2: its worker was lost 4 times (RayError: The worker died unexpectedly); all other tasks are done, and the"
        " same command continues with this one"
    )


def test_a_cluster_without_this_package_is_one_line(ray):
    ray.failures["1"] = UnreadableTask()
    _, error = collect([1, 2, 3])
    assert str(error) == (
        "--engine ray: a worker cannot read its task (System error: No module named 'tokenization'); every machine of"
        " the cluster needs this package, in the same version"
    )
    assert ray.ended == 1


@pytest.mark.parametrize("end", [KeyboardInterrupt(), RayTaskError("a bug")])
def test_what_ends_the_command_ends_the_tasks(ray, end):
    ray.failures["2"] = end
    with pytest.raises(type(end)):
        list(Ray().map(double, [1, 2, 3], "doubling"))
    assert ray.ended == 1


def test_whoever_stops_asking_ends_the_tasks(ray):
    results = Ray().map(double, [1, 2, 3], "doubling")
    assert next(results) == 2
    results.close()
    assert ray.ended == 1


# --- which cluster ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "environment", "noted", "expected"),
    [
        (None, None, None, ("", "")),
        (None, "", None, ("", "")),
        (None, "local", "noted:1", ("", "")),
        (None, "auto", None, ("", "")),
        (None, "head:6379", "noted:1", ("head:6379", "RAY_ADDRESS")),
        (None, "ray://head:10001", None, ("head:10001", "RAY_ADDRESS")),
        (None, "http://head:8265", None, ("", "")),
        ("ray://a:1", "head:6379", "noted:1", ("a:1", "--engine")),
        (None, None, "noted:1\n", ("noted:1", "ray/ray_current_cluster")),
        (None, "auto", "noted:1", ("noted:1", "ray/ray_current_cluster")),
    ],
)
def test_the_cluster_is_the_one_that_ray_would_take(ray, monkeypatch, tmp_path, address, environment, noted, expected):
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    if noted:
        Path("ray").mkdir()
        Path("ray", "ray_current_cluster").write_text(noted)
    place, named_by = find_cluster(address)
    assert (place, named_by.removeprefix(f"{tmp_path}/")) == expected


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("127.0.0.1:{closed}", "Connection refused"),
        ("[::1]:{closed}", ""),  # refused, or no IPv6 here
        ("head", "is not HOST:PORT"),
        (":6379", "is not HOST:PORT"),
        ("127.0.0.1:port", "is not HOST:PORT"),
        ("127.0.0.1:", "is not HOST:PORT"),
        ("127.0.0.1:99999", ""),
        (f"{'a' * 70}.b:1", ""),
        ("..:1", ""),
    ],
)
def test_no_cluster_at_an_address_is_one_line_with_the_address_and_the_remedy(ray, monkeypatch, place, reason):
    place = place.format(closed=free_port())
    monkeypatch.setenv("RAY_ADDRESS", place)
    _, error = collect([1])
    assert isinstance(error, InputError)
    assert str(error).startswith(f"--engine ray: no cluster answers at {place}, named by RAY_ADDRESS ({reason}")
    assert str(error).endswith("RAY_ADDRESS to another one's HOST:PORT, or to `local` for this machine alone")
    assert ray.address == "not connected"


def test_a_host_that_does_not_answer_is_not_waited_for(ray, monkeypatch):
    def wait(place: tuple[str, int], seconds: float) -> None:
        assert seconds <= 10
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", wait)
    with pytest.raises(InputError, match=r"no cluster answers at h:1, named by --engine \(timed out\); start it"):
        list(Ray("ray://h:1").map(double, [1], "doubling"))


def test_a_cluster_that_answers_is_asked_once(ray, monkeypatch):
    for name in QUICK:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        assert list(Ray(f"ray://{place}").map(double, [1], "doubling")) == [2]
        assert ray.address == f"ray://{place}"
        assert {name: os.environ[name] for name in QUICK} == QUICK
        ray.refusal = ConnectionError("Failed to\nconnect")
        with pytest.raises(InputError) as raised:
            list(Ray(f"ray://{place}").map(double, [1], "doubling"))
    assert str(raised.value) == (
        f"--engine ray: cannot use {place}, named by --engine (Failed to connect); a cluster's own port is 6379, and"
        " 10001 for ray://, unless it was started with others"
    )


def test_a_cluster_that_cannot_be_started_here_is_one_line(ray):
    ray.refusal = OSError("No space left")
    with pytest.raises(InputError, match=r"^--engine ray: cannot use this machine \(No space left\)$"):
        list(Ray().map(double, [1], "doubling"))
    assert os.environ["RAY_NUM_REDIS_GET_RETRIES"] == "as it was"


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def texts(ray, small) -> str:
    """The arguments of an encoding of three files."""
    small.save("tok")
    for number in range(3):
        Path(f"{number}.txt").write_text(f"cat number {number}")
    return "encode 0.txt 1.txt 2.txt --tokenizer tok --output s.tokens --shard-size 1 --engine ray"


def test_ctrl_c_is_130_and_the_same_command_goes_on(ray, texts, capsys):
    ray.failures["00002.bin of 2.txt"] = KeyboardInterrupt()
    assert main(texts.split()) == 130
    assert "2 of 3 shards are done; the same command resumes with the next" in capsys.readouterr().err
    ray.failures.clear()
    assert main(texts.split()) == 0
    assert "resuming: 2 of 3 shards are done" in capsys.readouterr().out


def test_a_lost_worker_is_one_line_and_all_else_is_done(ray, texts, capsys):
    ray.failures["00000.bin of 0.txt"] = RayError("The node died")
    assert main(texts.split()) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("tokenization encode: 00000.bin of 0.txt: its worker was lost 4 times (RayError: ")
    assert [path.name for path in sorted(Path("s.tokens").glob("*.bin"))] == ["00001.bin", "00002.bin"]


def test_a_wrong_address_leaves_nothing(texts, capsys):
    code = main([*texts.split()[:-1], f"ray://127.0.0.1:{free_port()}"])
    err = capsys.readouterr().err
    assert code == 2
    assert len(err.splitlines()) == 1
    assert err.startswith("tokenization encode: --engine ray: no cluster answers at 127.0.0.1:")
    assert not Path("s.tokens").exists()


def test_without_ray_it_is_asked_for(texts, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(texts.split()) == 2
    expected = "tokenization encode: --engine ray: needs Ray; install the extra `cluster`: pip install '.[cluster]'\n"
    assert capsys.readouterr().err == expected
    assert not Path("s.tokens").exists()
