"""Races: what the statistic is worth, what a race finds and leaves behind, how it goes on, and what it refuses."""

import csv
import json
import math
import os
import shutil
import signal
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers import ROOT

from lm.experiments.contestants import BITS, LOSS, Budget, Contestant, common_measure, most_steps, read_contestants
from lm.experiments.ledger import LEDGER, Entry, append, read_ledger
from lm.experiments.race import CLOCK, RECORD, Race, Run
from lm.experiments.short_runs import WATCH, Settings
from lm.experiments.significance import lowest_by_permutation, p_value, standard_error, t_tails
from lm.experiments.standings import Standings
from lm.machine import contention
from lm.monitoring.processor_clock import ProcessorClock

# --- the statistic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 1e-3, 0.5, -2.0, 12.706, 1e4])
def test_the_tails_by_closed_forms(t):
    """Student's t with 1 degree of freedom is Cauchy's; with 2 and 4 it has closed forms, too."""
    assert t_tails(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(abs(t)), abs=1e-12)
    assert t_tails(t, 2) == pytest.approx(1 - abs(t) / math.sqrt(2 + t * t), abs=1e-12)
    s = abs(t) / math.sqrt(4 + t * t)
    assert t_tails(t, 4) == pytest.approx(1 - (1.5 * s - 0.5 * s**3), abs=1e-12)


@pytest.mark.parametrize(
    ("df", "t"),
    [(1, 12.706), (3, 3.182), (5, 2.571), (10, 2.228), (20, 2.086), (30, 2.042), (100, 1.984), (1e7, 1.960)],
)
def test_the_tails_by_a_table(df, t):
    """NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2: critical values at 0.975."""
    assert t_tails(t, df) == pytest.approx(0.05, abs=1e-4)


def test_welch_by_a_published_example():
    """Student's sleep data; R's t.test(extra ~ group, data = sleep) prints p-value = 0.07939."""
    one, two = (
        [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
        [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
    )
    assert p_value(one, two) == pytest.approx(0.07939, abs=5e-6)
    assert p_value(two, one) == p_value(one, two)
    assert standard_error(one) == pytest.approx(1.789010 / math.sqrt(10), rel=1e-6)  # R: sd(extra[group == 1])


def test_what_cannot_be_told():
    assert p_value([1.0], [2.0, 3.0]) is None
    assert p_value([1.0, 1.0], [2.0, 2.0]) is None
    assert p_value([1.0, 2.0], [2.0, 1.0]) == 1
    assert standard_error([1.0]) is None
    assert [lowest_by_permutation(n, n) for n in (1, 2, 3, 4)] == [1, 1 / 3, 0.1, 2 / 70]
    assert lowest_by_permutation(2, 3) == 0.1  # the groups cannot change places


# --- the ledger and the table ----------------------------------------------------------------------------------------

ENTRY = Entry("base", 0, "d1", 8, 1024, 3.0, 2.9, 1.5, False, 1.0, 2.0, 1, 0.0, 0.0, "machine", "code", "2026-01-01")


def test_a_ledger_keeps_what_is_whole(tmp_path):
    assert read_ledger(tmp_path) == ({}, [])
    entries = [ENTRY, replace(ENTRY, seed=1, loss=math.nan, diverged=True), replace(ENTRY, loss=2.5)]
    for entry in entries[:2]:
        append(tmp_path, entry)
    path = tmp_path / LEDGER
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])  # cut
    assert len(read_ledger(tmp_path)[1]) == 1
    append(tmp_path, entries[2])
    with open(path, "ab") as file:
        file.write(b'{"contestant": "base", "seed": 3}\n[1]\n\xff\n' + whole.splitlines()[0].replace(b"3.0", b"NaN"))
    found, damage = read_ledger(tmp_path)
    assert found == {("base", 0): entries[2], ("base", 1): replace(entries[1], loss=None)}
    assert [line.partition("line ")[2].split()[0] for line in damage] == ["3", "5", "6", "7", "8"]
    for wrong in ({"machine": None}, {"machine": {}}, {"diverged": []}, {"contestant": "\ud800"}, {"steps": "8"}):
        path.write_text(json.dumps(asdict(ENTRY) | wrong) + "\n")
        assert read_ledger(tmp_path) == ({}, [f"{path}: line 1 is damaged; its run counts as not finished"])


def table(budget, **losses):
    entries = {
        name: [
            replace(ENTRY, contestant=name, seed=seed, loss=loss, diverged=loss is None)
            for seed, loss in enumerate(found)
        ]
        for name, found in losses.items()
    }
    return Standings(None, entries, LOSS, budget)


def test_the_table_and_what_it_says_of_chance():
    losses = {"base": [3.0, 3.1, 3.2], "good": [2.0, 2.1, 2.2], "near": [3.0, 3.1, 3.1], "lost": [1.0, None, 1.1]}
    found = table(Budget(steps=8), **losses)
    base, good, _, lost = found.rows
    assert (base["loss"], base["difference"], base["p"]) == (pytest.approx(3.1), None, None)
    assert good["difference"] == pytest.approx(-1)
    assert good["p"] == p_value([2.0, 2.1, 2.2], [3.0, 3.1, 3.2]) < 0.001
    assert (lost["diverged"], lost["p"]) == (1, None)
    notes = "\n".join(found.notes())
    assert "could not show a p below 0.1" in notes
    assert "2 comparisons: if none is real, one in twenty such races has a p below 0.025" in notes
    assert "lost: seed 1 diverged" in notes
    assert "2.1000 ± 0.0577     -1.0000" in found.table()
    assert json.loads(found.to_json())["contestants"][3]["p"] is None


def test_chance_is_told_of_the_ps_there_are():
    found = table(Budget(steps=8), base=[3.0, 3.1, 3.2], good=[2.0, 2.1, 2.2], hot=[None, None, None])
    notes = "\n".join(found.notes())
    assert found.rows[1]["p"] is not None
    assert "could not show a p below 0.1" in notes
    assert not any(words in notes for words in ("fewer than two", "comparisons"))
    notes = "\n".join(table(Budget(steps=8), base=[3.0, None], good=[2.0, 2.1]).notes())
    assert "normally distributed" not in notes  # as there is no p


def test_the_table_says_what_weakens_it():
    found = table(Budget(cpu_seconds=1.0), base=[3.0], other=[2.0])
    found.entries["other"][0] = replace(ENTRY, others_during=1.25, starts=2, code="newer")
    notes = "\n".join(found.notes())
    for words in (
        "fewer than two runs of base, other",
        "1 of 2 runs shared",
        "up to 1.2 cores",
        "1 of 2 runs were interrupted",
    ):
        assert words in notes
    assert "different code: code; newer" in notes
    assert "base: took 200% of its budget" in notes


# --- a race ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arguments(fit_arguments, tmp_path_factory):
    """The words of a race of two contestants; 6 steps."""
    home = tmp_path_factory.mktemp("user")
    given = [*map(str, fit_arguments(home, "--trainer.max_steps=6", "--checkpoints.every_n_steps=2"))]
    config = home / "tiny.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load((ROOT / "configs/debug.yaml").read_text())))
    flags = [word for word in given[3:] if not word.startswith(("--trainer.default_root_dir", "--trainer.max_steps"))]
    return [str(config), *flags, "--variant=wide one: --model.d_model 32", "--steps=6", "--samples.max_new_tokens=0"]


@pytest.fixture(scope="module")
def race(lm, fork_server, arguments, tmp_path_factory):
    """A race of one seed, ended by Ctrl-C in its first run and started again; its folder, and what both printed."""
    output = tmp_path_factory.mktemp("race") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setattr("lm.experiments.race.time.sleep", lambda seconds: None)
        patch.setattr(sys, "executable", "/bin/sh")  # and a run that takes long
        patch.setattr("lm.experiments.children.COMMAND", ("-c", "exec sleep 60"))
        threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
        first = lm("race", *arguments, "--seeds=1", "--output", output)
        patch.undo()
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setattr("lm.experiments.race.time.sleep", lambda seconds: None)
        patch.setattr(sys, "executable", fork_server.python)
        second = lm("race", *arguments, "--seeds=1", "--output", output, "--json")
    return output, first, second


def test_a_race_goes_on_after_ctrl_c(race):
    output, first, second = race
    assert first.code == 130
    assert second.code == 0, second.err
    assert not (output / ".lock").exists()
    entries, damage = read_ledger(output)
    assert (list(entries), damage) == ([("tiny", 0), ("wide_one", 0)], [])
    base, wide = entries.values()
    assert [entry.steps for entry in (base, wide)] == [6, 6]
    assert base.tokens == 6 * 8 * 16
    assert base.loss != wide.loss
    assert all(0 < entry.loss < 2 * math.log(320) and entry.cpu_seconds > 0 for entry in (base, wide))
    configs = [yaml.safe_load((output / name / "seed-0/config.yaml").read_text()) for name in ("tiny", "wide_one")]
    assert [(config["model"]["d_model"], config["data"]["seed"]) for config in configs] == [(16, 0), (32, 0)]


def test_a_race_leaves_a_table_a_plot_and_json(race):
    output, _, second = race
    found = json.loads(second.out, parse_constant=pytest.fail)
    with open(output / "race.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["contestant"] for row in rows] == [row["contestant"] for row in found["contestants"]]
    base, wide = found["contestants"]
    assert (
        wide["difference"] == pytest.approx(wide["loss"] - base["loss"]) == pytest.approx(float(rows[1]["difference"]))
    )
    assert (output / "race.png").read_bytes().startswith(b"\x89PNG")
    assert "2 of 2  wide_one, seed 0: validation loss" in second.err


def test_what_has_ended_is_kept(lm, arguments, race, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    result = lm("race", *arguments, "--seeds=1", "--output", race[0])
    assert (result.code, result.err) == (0, "")
    assert "all 2 runs have ended" in result.out
    assert "fewer than two runs of tiny, wide_one: no p-value" in result.out


REFUSED = {
    "another contestant": (["--model.d_ff=8"], "tiny has run with model.d_ff None, not 8"),
    "another length": (["--steps=7"], "tiny has run with --steps 6, not 7"),
    "a seed": (["--data.seed=1"], "--data.seed has no effect in a race"),
    "a folder": (["--trainer.default_root_dir", "x"], "--trainer.default_root_dir has no effect in a race"),
    "steps twice": (["--trainer.max_steps=6"], "--trainer.max_steps has no effect in a race: the budget decides"),
    "no seeds": (["--seeds=0"], "--seeds 0: at least 1"),
    "no name": (["--variant=--model.d_model 8"], "has no name"),
    "no end": (["--variant=a: --model.d_model '8"], "No closing quotation"),
    "one name": (["--variant=tiny: --model.d_model 8"], "two contestants would be tiny"),
    "both budgets": (["--cpu-seconds=5"], "not allowed with argument"),
    "no setting": (["--variant=a: --model.d_mode 8"], "model.d_mode"),
    "other windows": (["--variant=a: --data.batch_size 4"], "a: validates on"),
    "no model": (["--variant=a: --model.d_model 15"], "a: d_model 15 cannot be divided evenly among num_heads"),
    "help": (["--variant=a: --help"], "a: --help is no setting"),
    "a time": (["--variant=a: --trainer.max_time 00:00:00:08"], "a: trainer.max_time 00:00:00:08 would end runs at"),
    "no curves": (["--variant=a: --trainer.logger false"], "a: trainer.logger False would leave no curves to compare"),
    "no share": (["--variant=a: --model.dropout 1.5"], "a: dropout is 1.5; it must be"),
    "a long warmup": (["--variant=a: --model.warmup_steps 9"], "a: model.warmup_steps 9 is more than"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_race_that_cannot_be(case, lm, arguments, race):
    more, message = REFUSED[case]
    before = (race[0] / LEDGER).read_bytes()
    result = lm("race", *arguments, "--output", race[0], *more)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert message in result.err
    assert (race[0] / LEDGER).read_bytes() == before


def test_a_contestant_may_be_the_configuration_of_a_run(race, tmp_path):
    """Such a run has the callbacks of a race already, and Lightning refuses one that comes twice."""
    config = race[0] / "tiny/seed-0/config.yaml"
    (contestant,) = read_contestants([str(config)], [], [], Budget(steps=6))
    contestant.set_length(6)
    words = Race([contestant], 1, Budget(steps=6), tmp_path).fit_arguments(Run(contestant, 0))
    assert not any("callbacks" in word for word in words)
    assert {each["class_path"] for each in yaml.safe_load(config.read_text())["trainer"]["callbacks"]} == {WATCH, CLOCK}


def test_one_contestant_is_no_race(lm):
    assert "a race needs two contestants" in lm("race", "configs/debug.yaml").err


def test_a_busy_machine(lm, arguments, race, tmp_path, monkeypatch):
    """Seconds are not compared beside other programs; steps are, with a warning."""
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(contention, "SHORTEST", 0.0)
    monkeypatch.setattr(contention, "ran_on_our_cores", lambda proc: float(next(clock)))
    monkeypatch.setattr("lm.experiments.race.time.sleep", lambda seconds: None)
    monkeypatch.setattr("lm.experiments.race.fit", lambda _, log, *__, **___: log.write_text("it fails"))
    seconds = [word for word in arguments if not word.startswith("--steps")]
    result = lm("race", *seconds, "--output", tmp_path / "out")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "so seconds cannot be compared" in result.err
    assert "0 of 6 runs have ended" in result.err
    for words in ([*seconds, "--even-if-busy"], arguments):
        result = lm("race", *words, "--output", tmp_path / words[-1].strip("-"))
        assert "seconds will be longer" in result.err.splitlines()[0]
        assert "its output; the same command resumes" in result.err.splitlines()[1]


# --- what it decides -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_budget_of_seconds(lm, arguments, tmp_path, monkeypatch):
    """A probe finds the steps, runs of processes of their own take about the seconds, and the ledger has them."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    words = [word for word in arguments if word != "--steps=6"]
    own = ["--seeds=1", "--cpu-seconds=20", "--even-if-busy", "--json", f"--output={tmp_path / 'out'}"]
    result = lm("race", *words, *own, "--model.warmup_steps=1")
    assert result.code == 0, result.err
    entries = [json.loads(line) for line in (tmp_path / "out/ledger.jsonl").read_text().splitlines()]
    assert len(entries) == 2
    for entry in entries:
        assert entry["steps"] > 6
        assert 10 < entry["cpu_seconds"] < 40  # a machine's speed changes
    assert json.loads(result.out)["budget"] == {"steps": None, "cpu_seconds": 20}


def test_the_steps_that_a_budget_holds(arguments):
    """By a probe that takes 10 s for a start, 2 for a step and 4 for a validation; 2 validations of runs this long."""
    config, *flags = arguments
    shared = [word for word in flags if word.startswith(("--model", "--data", "--trainer"))]
    budget = Budget(cpu_seconds=60.0)
    (contestant,) = read_contestants([config], [], [*shared, "--trainer.max_steps=60"], Budget())
    contestant.config.trainer.val_check_interval = 30

    def by_processor(config):
        steps, interval = config.trainer.max_steps, config.trainer.val_check_interval
        return {"seconds": 10 + 2 * steps + 4 * -(-steps // interval)}

    steps = most_steps(SimpleNamespace(by_processor=by_processor), contestant, budget.cpu_seconds)
    assert by_processor(contestant.shortened(steps))["seconds"] <= 60
    assert all(by_processor(contestant.shortened(more))["seconds"] > 60 for more in range(steps + 1, 60))
    with pytest.raises(Exception, match="--cpu-seconds 15 is too little"):
        most_steps(SimpleNamespace(by_processor=by_processor), contestant, 15.0)


def test_what_other_tokenizers_are_compared_by(arguments, token_data, small, tmp_path):
    config, *flags = arguments
    shared = [word for word in flags if word.startswith(("--model", "--data", "--trainer"))]
    small.save(tmp_path / "tok")
    small.encode_files([token_data / "valid.txt"], tmp_path / "valid.bin", num_processes=1)
    small.encode_files([token_data / "train.txt"], tmp_path / "other.bin", num_processes=1)

    def measure(valid, limit):
        words = [*shared, f"--trainer.limit_val_batches={limit}"]
        variant = f"a: --data.val_path {tmp_path / valid} --data.tokenizer {tmp_path / 'tok'}"
        return common_measure(read_contestants([config], [variant], words, Budget(steps=6)))

    assert measure("valid.bin", "1.0") == BITS
    refused = (
        ("valid.bin", "5", "does not use .*'s tokenizer"),
        ("other.bin", "1.0", "different text cannot be compared"),
    )
    for valid, limit, message in refused:
        with pytest.raises(Exception, match=message):
            measure(valid, limit)
    same = read_contestants([config], ["a: --model.num_layers 1"], shared, Budget(steps=6))
    assert common_measure(same) == LOSS


def test_a_contestant_that_has_not_run_may_change(lm, arguments, race, tmp_path, monkeypatch):
    output = Path(shutil.copytree(race[0], tmp_path / "race"))
    record = json.loads((output / RECORD).read_text())
    record["new"] = {"settings": {**record["tiny"]["settings"], "model.d_model": 4}, "steps": 6}
    (output / RECORD).write_text(json.dumps(record))
    result = lm("race", *arguments, "--seeds=1", "--output", output, "--variant=new: --model.d_model 8")
    assert result.code == 0
    assert "new, seed 0: validation loss" in result.out
    assert json.loads((output / RECORD).read_text())["new"]["settings"]["model.d_model"] == 8


def test_an_interval_that_is_given_is_not_that_of_the_configuration(fit_arguments, tmp_path):
    """Whose own length is shorter than the race."""
    plain = [*map(str, fit_arguments(tmp_path / "run", "--trainer.max_steps=8"))]
    for words in (["--trainer.val_check_interval=2500"], ["--trainer.val_check_interval", "2500"]):
        race = Contestant("a", plain[1:] + words, Settings([*plain, *words]).config.fit, {})
        assert race.shortened(5000).trainer.val_check_interval == 2500
        assert race.shortened(1000).trainer.val_check_interval == 1000
    assert Contestant("a", plain[1:3], race.config, {}).given_interval() is None


def test_the_clock_counts_all_processes(monkeypatch):
    clock, logged = ProcessorClock(), []
    monkeypatch.setattr(clock, "_log", lambda trainer: logged.append(clock.seconds))
    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=lambda own, reduce_op: own + 100)
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), sanity_checking=False, world_size=2, strategy=strategy)
    clock.on_validation_end(trainer, None)
    assert logged[0] == pytest.approx(clock.own + 100, abs=1)
    resumed = ProcessorClock()
    resumed.load_state_dict(clock.state_dict())
    assert resumed.before == pytest.approx(clock.own + 100, abs=1)
