"""What was measured of the machine and kept: the file itself, peaks, the choice of a layout, other programs' share."""

import json
import math
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lm.accounting.costs import training_flops_per_token
from lm.durations import format_duration
from lm.machine import peaks, readings
from lm.machine.contention import OtherPrograms, ran_ourselves
from lm.machine.peaks import GPU_PEAKS, measure, peak_flops, record_peak
from lm.model.transformer import TransformerLM
from lm.monitoring import throughput
from lm.monitoring.throughput import Pace, Throughput
from lm.runs.events import read_curves
from lm.training.module import LanguageModel


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The file of readings, in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/text-to-lm/readings.json"


# --- the file --------------------------------------------------------------------------------------------------------


def test_readings_are_kept_side_by_side(cache):
    assert readings.recall("a") is None
    assert readings.keep("a", {"flops": 1.5})
    assert readings.keep("b", "packed")
    assert readings.keep("a", [2])
    assert (readings.recall("a"), readings.recall("b"), readings.recall("c")) == ([2], "packed", None)
    assert json.loads(cache.read_text()) == {"a": [2], "b": "packed"}
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


DAMAGED = [b"", b"{", b'{"a": 1', b"[1]", b"null", b'"a"', b"\xff\xfe", b"\0" * 100, b"[" * 100_000, b'{"a": NaN}x']


@pytest.mark.parametrize("content", DAMAGED, ids=[repr(content[:9]) for content in DAMAGED])
def test_a_damaged_file_counts_as_empty(cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    assert readings.recall("a") is None
    assert readings.keep("a", 1)
    assert readings.recall("a") == 1


def test_where_nothing_can_be_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not readings.keep("a", 1)
    assert readings.recall("a") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert readings.readings_path() == tmp_path / "home/.cache/text-to-lm/readings.json"
    monkeypatch.setattr(
        Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
    )
    assert not readings.keep("a", 1)
    assert readings.recall("a") is None


# --- peaks -----------------------------------------------------------------------------------------------------------


def test_a_peak_is_the_highest_reading_so_far(cache, monkeypatch):
    source = r"measured on \d{4}-\d\d-\d\d \d\d:\d\d, (\d+) x \1 in float32"
    highest = 0.0
    for flops, size in ((3e11, 1024), (2e10, 2048), (4e11, 4096), (4e9, 1024)):
        monkeypatch.setattr(peaks, "measure", lambda *_, flops=flops, size=size: (flops, size, flops / 2))
        highest = max(highest, flops)
        peak = peak_flops("cpu", "32-true")
        assert (peak.flops, peak.now) == (highest, flops / 2)
        assert re.fullmatch(source, peak.source)
    assert "4096" in peak.source
    assert peak_flops("cpu", "bf16-mixed").flops == 4e9  # each dtype has its own
    faster = record_peak("cpu", "32-true", 5e11, "a training step")
    assert faster.flops == 5e11
    assert faster.source.endswith(", a training step in float32")
    assert peak_flops("cpu", "32-true")[:2] == faster[:2]
    assert len(json.loads(cache.read_text())) == 2


WRONG = [None, 7, "fast", {}, {"flops": 1e12}, *({"flops": f, "how": "h", "when": "w"} for f in ("1", -1.0, 0.0, 1e30))]
WRONG += [{"flops": math.nan, "how": "h", "when": "w"}, {"flops": 1e12, "how": 3, "when": "w"}]


@pytest.mark.parametrize("reading", WRONG, ids=str)
def test_a_reading_that_makes_no_sense_is_replaced(cache, monkeypatch, reading):
    monkeypatch.setattr(peaks, "measure", lambda *_: (1e11, 1024, 1e11))
    peak_flops("cpu", "32-true")
    (name,) = json.loads(cache.read_text())
    readings.keep(name, reading)
    assert peak_flops("cpu", "32-true").flops == 1e11


def test_a_slow_first_product_is_not_the_peak(monkeypatch):
    """It starts threads and may compile a kernel: the processor would be taken for one that emulates the dtype."""

    def products(device_type, dtype, size):
        yield from [3e9] if size == peaks.SMALL else []
        while True:
            yield 1e9 * size

    monkeypatch.setattr(peaks, "time_products", products)
    monkeypatch.setattr(peaks.time, "perf_counter", iter(range(1000)).__next__)
    best, size, now = measure.__wrapped__("cpu", torch.float32)
    assert (best, size) == (4096e9, 4096)
    assert 1e12 < now < 4096e9


def test_a_peak_is_measured_where_none_can_be_kept(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    for dtype in (torch.float32, torch.bfloat16):
        measure.cache_clear()
        state = torch.get_rng_state()
        flops, size, together = measure("cpu", dtype, seconds=0.05)
        assert 1e8 < flops < 1e15
        assert 0 < together <= flops
        assert size in (256, 1024, 2048, 4096)
        assert torch.equal(torch.get_rng_state(), state)  # a run draws from it
    measure.cache_clear()


def test_data_sheets(monkeypatch):
    for name, key in (("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA A100-SXM4-40GB", "A100"), ("NVIDIA L4", "L4")):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert peak_flops("cuda", "bf16-mixed") == (GPU_PEAKS[key], f"data sheet of {name}", GPU_PEAKS[key])


def test_a_run_faster_than_its_peak_raises_it(lm, fit_arguments, tmp_path, cache, monkeypatch):
    """The curve of the MFU stays a share."""
    monkeypatch.setattr(peaks, "measure", lambda *_: (1e3, 1024, 1e3))
    done = lm(*fit_arguments(tmp_path / "run", "--trainer.max_steps=6"))
    assert (done.code, done.err) == (0, "")
    assert "MFU is of 0 GFLOP/s per device (measured on" in done.out
    assert "faster than the peak; MFU is of" in done.out
    assert "a training step in float32" in done.out
    shares = read_curves(tmp_path / "run")["train/mfu"].values
    assert max(shares[1:]) <= 1
    assert any(reading["flops"] > 1e5 for reading in json.loads(cache.read_text()).values())


def test_the_cost_of_a_token_is_that_of_its_window():
    """Where the first steps read short windows, their tokens attend to fewer others."""
    model, throughput = TransformerLM(50, 64, 16, 1, num_heads=2, d_ff=32), Throughput()
    throughput.costs = {}
    (short, sure), (long, sure_of_long) = (throughput._cost(model, length) for length in (8, 64))
    assert (short, long) == (training_flops_per_token(model, 8), training_flops_per_token(model))
    assert long - short == 3 * 4 * (64 - 8) * 16  # scores and weighted values
    assert (short - sure, long - sure_of_long) == pytest.approx((3 * 2 * 8 * 16, 3 * 2 * 64 * 16))


# --- time left -------------------------------------------------------------------------------------------------------


def test_time_left_by_hand():
    pace = Pace()
    assert pace.seconds_left(10, 2, 3.0) is None
    pace.stretches += [(2, 1.0)]
    assert pace.seconds_left(10, 2, 3.0) is None  # too few steps
    pace.stretches += [(2, 3.0)]
    assert pace.seconds_left(10, 2, 3.0) == pytest.approx(10 * 1.0 + 2 * 3.0 / 3)
    pace.validations += [4.0, 8.0]
    assert pace.seconds_left(10, 2, 3.0) == pytest.approx(10 * 1.0 + 2 * 6.0)
    assert pace.seconds_left(0, 0, 3.0) == 0
    pace.stretches += [(1, 2.0)] * 50  # a machine that has become slower
    assert pace.seconds_left(10, 0, 3.0) == pytest.approx(20)


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_a_run_says_how_long_it_takes(lm, fit_arguments, tmp_path, cache, monkeypatch):
    """A minute to compile, two seconds a step, three a validation: what is said is what then passes."""
    clock, train, validate, guess = (
        Clock(),
        LanguageModel.training_step,
        LanguageModel.validation_step,
        Pace.seconds_left,
    )
    guesses, batches = [], []

    def training_step(self, *arguments):
        clock.now += 60 if self.global_step == 0 else 2
        return train(self, *arguments)

    def validation_step(self, batch, batch_idx):
        clock.now += 0 if batch_idx else 3
        batches.append(batch_idx)
        return validate(self, batch, batch_idx)

    def seconds_left(self, *arguments):
        guesses.append((clock.now, guess(self, *arguments)))
        return guesses[-1][1]

    monkeypatch.setattr(throughput, "time", clock)
    monkeypatch.setattr(LanguageModel, "training_step", training_step)
    monkeypatch.setattr(LanguageModel, "validation_step", validation_step)
    monkeypatch.setattr(Pace, "seconds_left", seconds_left)
    monkeypatch.setattr(peaks, "measure", lambda *_: (1e12, 2048, 1e12))
    settings = ("--trainer.max_steps=50", "--trainer.val_check_interval=20", "--trainer.log_every_n_steps=6")
    done = lm(*fit_arguments(tmp_path / "run", *settings, "--samples.max_new_tokens=0"))
    assert (done.code, done.err) == (0, "")
    assert "50 steps to go, by a first estimate 0 s (at half of the 1,000 GFLOP/s" in done.out
    (before, first), *later = guesses
    assert before == 60 + 5 * 2  # at step 6; of a validation, only the number of its batches is known
    assert first == pytest.approx(44 * 2 + 3 * (max(batches) + 1) * 2 / 3)
    assert re.findall(r"step (\d+): by the steps so far, (.*) to go", done.out) == [("6", format_duration(first))]
    assert re.findall(r"step (6|48) of 50: .* tokens/s, pass [0-9.]+, (.*) to go", done.out) == [
        ("6", format_duration(first)),
        ("48", format_duration(clock.now - later[-1][0])),
    ]
    for then, left in later[3:]:  # from step 24 on a validation has been seen
        assert then + left == pytest.approx(clock.now)
    assert len(later) == 7


# --- other programs --------------------------------------------------------------------------------------------------


def write_proc(proc: Path, ran: float, processes: dict[int, tuple[int, float]]) -> None:
    """A /proc in which every core has run for so many seconds, and processes {pid: (parent, seconds)}."""
    ticks = os.sysconf("SC_CLK_TCK")
    cores = "".join(f"cpu{number} {int(ran * ticks)} 0 0 900 900 0 0 0 0 0\n" for number in range(1024))
    for pid, (parent, seconds) in processes.items():
        (proc / str(pid)).mkdir(parents=True, exist_ok=True)
        fields = f"{pid} (a) b (c) S {parent} 0 0 0 0 0 0 0 0 0 {int(seconds * ticks)} 0 0 0 20"
        (proc / f"{pid}/stat").write_text(fields)
    (proc / "stat").write_text(f"cpu 1 2 3\n{cores}intr 5\n")


def test_other_programs(tmp_path, monkeypatch):
    cores, pid = len(os.sched_getaffinity(0)), os.getpid()
    ticking = SimpleNamespace(now=0.0)
    monkeypatch.setattr("lm.machine.contention.time", SimpleNamespace(perf_counter=lambda: ticking.now))
    write_proc(tmp_path, 0, {pid: (1, 0), 99998: (pid, 0), 99999: (99998, 0), 4: (1, 0)})
    watch = OtherPrograms(cores, tmp_path)
    ran, ours = 0.0, 0.0
    # (cores that ran, of them ours) for ten seconds each
    for busy, own, changed, in_the_way in (
        (cores, cores, False, False),
        (cores, cores - 0.5, True, True),
        (cores, cores - 0.2, False, True),
        (cores, cores - 0.1, True, False),
        (cores, cores - 0.2, False, False),
        (cores, 0, True, True),
        (0, 0, True, False),
    ):
        ran, ours, ticking.now = ran + 10 * busy / cores, ours + 10 * own, ticking.now + 10
        write_proc(tmp_path, ran, {pid: (1, ours / 4), 99998: (pid, ours / 4), 99999: (99998, ours / 2), 4: (1, 77)})
        assert not watch.look(after=10.5)
        assert (watch.look(), watch.changed, watch.in_the_way) == (True, changed, in_the_way)
        assert watch.taken == pytest.approx(busy - own, abs=0.03)
        assert ("other programs take" in str(watch)) == in_the_way
    ticking.now += 0.1  # too short to tell
    assert not watch.look()


@pytest.mark.parametrize(
    ("taken", "cores", "threads", "advised"),
    [(1.0, 2, 2, 1), (1.4, 2, 2, 1), (3.0, 2, 2, 1), (2.9, 16, 16, 13), (0.4, 2, 2, None), (1.5, 2, 1, None)],
)
def test_other_programs_advise_fewer_threads(tmp_path, monkeypatch, taken, cores, threads, advised):
    monkeypatch.setattr("lm.machine.contention.available_cores", lambda: cores)
    watch = OtherPrograms(threads, tmp_path)
    watch.taken, watch.in_the_way = taken, True
    assert f"take {taken} of {cores} cores" in str(watch)
    assert str(watch).partition("OMP_NUM_THREADS=")[2] == ("" if advised is None else str(advised))


@pytest.mark.parametrize("stat", [None, "", "cpu0 1 2\n", "cpu0 a b c d e f g h\n"])
def test_where_nobody_knows_of_other_programs(tmp_path, monkeypatch, stat):
    if stat is not None:
        (tmp_path / "stat").write_text(stat)
    watch = OtherPrograms(1, tmp_path)
    watch.start -= 10
    assert not watch.look()
    assert not watch.in_the_way


def test_the_time_of_this_process():
    before, start = ran_ourselves(Path("/proc")), time.process_time()
    while time.process_time() < start + 0.1:
        pass
    assert ran_ourselves(Path("/proc")) - before >= 0.05
