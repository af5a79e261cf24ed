"""Proves that counts and vocabulary are the same for any engine, grouping and order of completion; that an interrupted
counting goes on; and that damaged results and changed inputs are noticed."""

import contextlib
import json
import random
import shutil
import threading
from pathlib import Path

import pytest
from helpers.native import take_kernels_from
from helpers.processes import kill_until

from tokenization import END_OF_TEXT, GPT2_PATTERN, InputError, Tokenizer, TrainingReport, train_bpe
from tokenization.__main__ import main
from tokenization.pretokenization import count_pretokens
from tokenization.scaling import counting, tasks
from tokenization.scaling.counting import GroupCounting
from tokenization.scaling.counts_file import Counts
from tokenization.scaling.engines import Part, Threads
from tokenization.scaling.tasks import RECORDS, Reading
from tokenization.tokens.token_index import PLAN

TEXTS = [f"The cat number {n} and the rain{END_OF_TEXT} over éverything. " * (n + 1) for n in range(6)]
EVERYTHING = sum((count_pretokens(text, [END_OF_TEXT]) for text in TEXTS), start=count_pretokens(""))


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    return [tmp_path / f"{number}.txt" for number in range(len(TEXTS))]


class Sorted(GroupCounting):
    """Returns the counts in the order of their file."""

    def run(self, report=None):
        report = report or TrainingReport()
        counts = super().run(report)
        return counts and Counts.of(*counts, report.text_bytes)


def begin(paths, folder: Path, group_bytes: int = 1, engine=None, errors: str = "strict") -> Sorted:
    return Sorted(paths, [END_OF_TEXT], GPT2_PATTERN, folder, group_bytes, Reading(1, errors), engine)


def same(counts: Counts | None, other: Counts | None) -> bool:
    assert counts is not None
    assert other is not None
    return (counts.texts.tobytes(), counts.rows.tobytes(), counts.text_bytes) == (
        other.texts.tobytes(),
        other.rows.tobytes(),
        other.text_bytes,
    )


class Shuffled(Threads):
    """Runs the tasks in another order, as a cluster might end them."""

    def map(self, function, items, title):
        return super().map(function, random.Random(len(items)).sample(items, len(items)), title)


@pytest.mark.parametrize("fan_in", [2, 16])
@pytest.mark.parametrize("group_bytes", [1, 150, 10**9])
@pytest.mark.parametrize("engine", [Threads(), Shuffled()])
def test_counts_are_those_of_the_whole_text(tmp_path, paths, monkeypatch, group_bytes, engine, fan_in):
    monkeypatch.setattr(counting, "FAN_IN", fan_in)
    report = TrainingReport()
    counts = begin(paths, tmp_path / "work", group_bytes, engine).run(report)
    assert same(counts, Counts.of(EVERYTHING, None, sum(len(text.encode()) for text in TEXTS)))
    assert (report.pretokens, report.unique_pretokens) == (EVERYTHING.total(), len(EVERYTHING))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1)])
def test_parts_in_any_order_and_some_twice(tmp_path, paths, order):
    for number in order:
        counted = begin(paths, tmp_path / "work", 1, Part(number, 3))
        assert counted.run() is None
    last = begin(paths, tmp_path / "work")
    assert len(last.done) == 2 * len(set(order))
    assert same(last.run(), Counts.of(EVERYTHING, None, sum(len(text.encode()) for text in TEXTS)))


def test_a_part_with_nothing_to_do_takes_nothing_from_another(tmp_path, paths, monkeypatch):
    """Not even while that one counts its first file, and has left no more than the plan."""
    count_files = tasks.count_files

    def beside_another(corpus, *arguments):
        monkeypatch.setattr(tasks, "count_files", count_files)
        assert begin(paths, tmp_path / "work", 1, Part(99, 100)).run() is None
        return count_files(corpus, *arguments)

    monkeypatch.setattr(tasks, "count_files", beside_another)
    for number in range(2):
        assert begin(paths, tmp_path / "work", 1, Part(number, 2)).run() is None
    assert same(begin(paths, tmp_path / "work").run(), Counts.of(EVERYTHING, None, sum(len(t.encode()) for t in TEXTS)))


class Interruption:
    """Lets some groups be counted, and raises in the next one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int = 99):
        self.counted: list[str] = []
        count_files = tasks.count_files

        def count(corpus, *arguments):
            if len(self.counted) == after:
                raise KeyboardInterrupt
            self.counted += [file.name for file in corpus.files]
            return count_files(corpus, *arguments)

        monkeypatch.setattr(tasks, "count_files", count)


def test_an_interrupted_counting_goes_on(tmp_path, paths, monkeypatch):
    for after in (0, 2, 3):
        with monkeypatch.context() as patch:
            interrupted = Interruption(patch, after)
            with contextlib.suppress(KeyboardInterrupt):
                begin(paths, tmp_path / "work").run()
        assert len(interrupted.counted) == after
        assert (tmp_path / "work").exists() is bool(after)
    last = Interruption(monkeypatch)
    counts = begin(paths, tmp_path / "work").run()
    assert last.counted == ["5.txt"]
    assert same(counts, Counts.of(EVERYTHING, None, sum(len(text.encode()) for text in TEXTS)))
    again = begin(paths, tmp_path / "work")
    assert again.run().total == counts.total
    assert last.counted == ["5.txt"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "record"])
def test_a_damaged_result_is_named_and_made_again(tmp_path, paths, damage):
    work = tmp_path / "work"
    counts = begin(paths, work).run()
    path = work / "00002.counts"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "record":
        (work / RECORDS / "00002.counts.json").write_text("{")
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data[:70] + bytes([data[70] ^ 4]) + data[71:])
    again = begin(paths, work)
    assert same(again.run(), counts)
    assert again.mended == ([] if damage == "record" else ["00002.counts"])
    assert path.read_bytes() == data


def test_a_result_that_another_command_replaces_is_not_added(tmp_path, paths, monkeypatch):
    """The other command has other inputs: its counts of the same name must not slip into the sum."""
    begin(paths, tmp_path / "work").run()
    begin(paths[::-1], tmp_path / "other").run()
    add = counting.AddCounts(tmp_path / "work")
    shutil.copy(tmp_path / "other" / "00001.counts", tmp_path / "work" / "00001.counts")
    with pytest.raises(InputError, match=r"work/00001\.counts: another command has replaced it meanwhile"):
        add.read("00001.counts")


@pytest.mark.parametrize("change", ["file", "fewer", "errors", "groups"])
def test_changed_inputs_and_settings_are_noticed(tmp_path, paths, monkeypatch, change):
    work = tmp_path / "work"
    before = begin(paths, work).run()
    if change == "file":
        paths[1].write_text(paths[1].read_text() + "and more ")
    inputs = paths[:-1] if change == "fewer" else paths
    settings = (inputs, work, 10**9 if change == "groups" else 1)
    reason = {"file": "1.txt has changed", "fewer": "5.txt is no longer among the inputs", "errors": "settings have"}
    with pytest.raises(InputError, match=reason.get(change, "settings have changed")):
        begin(*settings, engine=Part(0, 2), errors="replace" if change == "errors" else "strict")
    counted = Interruption(monkeypatch)
    after = begin(*settings, errors="replace" if change == "errors" else "strict").run()
    expected = {"file": 1, "fewer": 1, "errors": 6, "groups": 6}[change]  # fewer: the last group is not followed now
    assert len(counted.counted) == expected
    assert same(after, before) is (change in ("errors", "groups"))
    fresh = begin(*settings, errors="replace" if change == "errors" else "strict")
    fresh.folder = tmp_path / "fresh"
    assert same(after, fresh.run())


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, paths, monkeypatch):
    count_files = tasks.count_files

    def change(corpus, *arguments):
        if corpus.files == paths[3:4]:
            paths[3].write_text("something else")
        return count_files(corpus, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "count_files", change)
        with pytest.raises(InputError, match=r"3\.txt: has changed since the command began"):
            begin(paths, tmp_path / "work").run()
    expected = begin(paths, tmp_path / "fresh").run()
    assert same(begin(paths, tmp_path / "work").run(), expected)


def test_two_hosts_at_once_on_one_folder(tmp_path, paths):
    found, expected = {}, begin(paths, tmp_path / "one").run()

    def run(host):
        found[host] = begin(paths, tmp_path / "work").run()

    hosts = [threading.Thread(target=run, args=(host,)) for host in range(3)]
    for host in hosts:
        host.start()
    for host in hosts:
        host.join()
    assert all(same(found[host], expected) for host in range(3))


def test_the_kernels_are_chosen_for_all_groups_together(tmp_path, paths, monkeypatch):
    take_kernels_from(sum(path.stat().st_size for path in paths), monkeypatch)
    report = TrainingReport()
    counts = begin(paths, tmp_path / "work").run(report)
    assert report.path == "compiled kernels"
    take_kernels_from(1 << 60, monkeypatch)
    assert same(counts, begin(paths, tmp_path / "plain").run(report))
    assert report.path.startswith("plain Python")


def test_a_single_group_is_learnt_from_without_reading_its_file(tmp_path, paths, monkeypatch):
    take_kernels_from(0, monkeypatch)
    read, counted = [], tasks.read_counts
    monkeypatch.setattr(tasks, "read_counts", lambda path: read.append(path.name) or counted(path))
    first, again = (begin(paths, tmp_path / "work", 10**9).run() for _ in range(2))
    assert set(read) == {"00000.counts"}
    assert same(first, again)
    assert same(first, Counts.of(EVERYTHING, None, sum(len(text.encode()) for text in TEXTS)))
    read.clear()
    assert same(first, begin(paths, tmp_path / "fresh", 10**9).run())
    assert read == []


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def in_folder(tmp_path, paths, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*arguments: str) -> int:
    names = [f"{number}.txt" for number in range(len(TEXTS))]
    return main(["train", *names, "--vocab-size", "290", "--output", "tok", "--processes", "1", *arguments])


def test_the_vocabulary_is_that_of_one_machine(in_folder, capsys):
    expected = train_bpe(sorted(in_folder.glob("*.txt")), 290, [END_OF_TEXT], num_processes=1)
    for part in (1, 0):
        assert train("--work", "work", "--group-size", "1", "--part", f"{part}/2") == 0
        assert not Path("tok").exists()
    assert "6 of 6 groups are done\nwhen all are done, the same command without --part" in capsys.readouterr().out
    assert train("--work", "work", "--group-size", "1") == 0
    assert "resuming: 6 of 6 groups are done" in capsys.readouterr().out
    learnt = Tokenizer.load("tok")
    assert (learnt.vocab, learnt.merges) == expected
    assert json.loads(Path("work", PLAN).read_text())["groups"].keys() == {f"{n:05}.counts" for n in range(6)}


def test_the_command_says_how_far_it_came(in_folder, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        Interruption(patch, 4)
        assert train("--work", "work", "--group-size", "1") == 130
    assert "4 of 6 groups are done; the same command resumes with the next" in capsys.readouterr().err
    Path("work/00003.counts").write_bytes(b"")
    assert train("--work", "work", "--group-size", "1") == 0
    out = capsys.readouterr().out
    assert "resuming: 4 of 6 groups are done" in out
    assert "damaged or missing, made again: 00003.counts" in out


def test_counts_of_an_earlier_format_are_made_again(in_folder, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(counting, "FORMAT", 1)
        assert train("--work", "work", "--group-size", "1") == 0
    capsys.readouterr()
    assert train("--work", "work", "--group-size", "1", "--overwrite") == 0
    out = capsys.readouterr().out
    assert "groups of other inputs or settings, made again: 6" in out
    assert "resuming" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "0/2"], "--part: needs --work DIR"),
        (["--engine", "ray"], "--engine: needs --work DIR"),
        (["--group-size", "1MB"], "--group-size: needs --work DIR"),
        (["--work", "work", "--part", "2/2"], "--part 2/2: must be I/N with I from 0 to N-1"),
        (["--work", "work", "--part=-1/2"], "--part -1/2: must be I/N"),
        (["--part", ""], "--part: needs --work DIR"),
        (["--work", "work", "--part", ""], "--part : must be I/N"),
        (["--work", "work", "--engine", "spark"], "--engine spark: no such engine"),
        (["--work", "work", "--engine", "ray", "--part", "0/2"], "--part: not allowed with argument --engine"),
        (["--work", "0.txt"], "0.txt: cannot be written: it is a file"),
        (["--work", "."], ".: holds other files; choose a new folder"),
        (["--work", "foreign"], "foreign/plan.json: is not the plan of an interrupted counting"),
        (["--work", "work", "--vocab-size", "3"], "vocab_size 3 is too small"),
    ],
)
def test_what_cannot_be_done_is_refused(in_folder, capsys, arguments, message):
    Path("foreign").mkdir()
    Path("foreign", PLAN).write_text('{"work": "encoding", "groups": {}}')
    assert train(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("work").exists()


def test_no_text_is_refused(in_folder, capsys):
    Path("empty.txt").touch()
    assert main(["train", "empty.txt", "--vocab-size", "300", "--output", "tok", "--work", "work"]) == 2
    assert "empty.txt: no text to learn from; the input is empty" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_command_goes_on_and_comes_to_the_same_end(in_folder):
    """kill -9 at random moments, in processes of their own, until one comes to its end."""
    for name in range(6):
        Path(f"{name}.txt").write_text(f"The cat {name} and the rain. " * 20_000)
    expected = train_bpe(sorted(in_folder.glob("*.txt")), 290, [END_OF_TEXT], num_processes=1)
    names = " ".join(f"{number}.txt" for number in range(6))
    line = f"train {names} --vocab-size 290 --output tok --work work --group-size 1 --processes 1"
    kills = kill_until(line, Path("tok"), random.Random(2))
    learnt = Tokenizer.load("tok")
    assert (learnt.vocab, learnt.merges) == expected
    assert kills
