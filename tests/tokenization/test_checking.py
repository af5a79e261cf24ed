"""Proves that `tokenization check` counts what counting by hand finds in small random texts, and shows where it is."""

import gzip
import io
import json
import random
import sys
from itertools import groupby, pairwise
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from tokenization import END_OF_TEXT, InputError
from tokenization.__main__ import main
from tokenization.checking import examining, reading
from tokenization.checking.findings import Settings, check_texts
from tokenization.checking.signatures import SIGNATURE, near_pairs, signatures_of
from tokenization.checking.words import HashedWords, words_of
from tokenization.text import corpus


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, documents: list[str]) -> str:
    """Writes documents as the suffix of the name says."""
    if name.endswith(".parquet"):
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": documents}), name)
        return name
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    data = (lines if ".jsonl" in name else END_OF_TEXT.join(documents)).encode()
    Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return name


def found(train: list[str], valid: list[str], **settings) -> dict[tuple[str, str], list[dict]]:
    """Returns all examples of each finding that there is, by its name and text."""
    _, findings = check_texts(train, valid, Settings(**settings))
    return {(one.name, one.text.name): one.examples(1000) for one in findings if len(one.numbers)}


def numbers(examples: list[dict]) -> list[int]:
    return sorted(example["document"] for example in examples)


# --- against counting by hand ----------------------------------------------------------------------------------------


def longest_common(left: list[str], right: list[str]) -> int:
    """The length of the longest run of words that both have, by dynamic programming."""
    row, longest = [0] * (len(right) + 1), 0
    for word in left:
        row = [0] + [row[place] + 1 if other == word else 0 for place, other in enumerate(right)]
        longest = max(longest, *row)
    return longest


def runs(words: list[str], count: int) -> list[tuple[str, ...]]:
    return [tuple(words[place : place + count]) for place in range(len(words) - count + 1)]


def covered_by_hand(words: list[str], training: set[tuple[str, ...]], count: int) -> tuple[int, int]:
    """The words that lie in a run of training, and the longest stretch of them."""
    inside = [False] * len(words)
    for place, run in enumerate(runs(words, count)):
        if run in training:
            inside[place : place + count] = [True] * count
    stretches = [len(list(group)) for is_inside, group in groupby(inside) if is_inside]
    return sum(stretches), max(stretches, default=0)


@pytest.mark.parametrize(
    ("seed", "kind", "processes"),
    [(0, "txt", 1), (1, "jsonl", 1), (2, "parquet", 1), (3, "txt.gz", 1), (4, "jsonl", 2), (5, "txt", 1)],
)
def test_equal_documents_and_shared_runs_are_those_found_by_hand(monkeypatch, seed, kind, processes):
    monkeypatch.setattr(reading, "BATCH_CHARACTERS", 60)
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 17)
    rng, count = random.Random(seed), 3
    make = lambda: " ".join(rng.choice("abcde") for _ in range(rng.randint(1, 9)))  # noqa: E731
    train, valid = [make() for _ in range(50)], [make() for _ in range(30)]
    train, valid = train + rng.choices(train, k=9), valid + rng.choices(valid, k=5) + rng.choices(train, k=5)
    result = found(
        [write(f"train.{kind}", train)], [write(f"valid.{kind}", valid)], run_words=count, num_processes=processes
    )
    for name, texts in (("training", train), ("validation", valid)):
        again = {number + 1: texts.index(text) + 1 for number, text in enumerate(texts) if text in texts[:number]}
        assert again
        assert {e["document"]: e["same_as"]["document"] for e in result["duplicate", name]} == again
    whole = {number: train.index(text) + 1 for number, text in enumerate(valid, start=1) if text in train}
    assert whole
    assert {e["document"]: e["same_as"]["document"] for e in result["whole_in_training", "validation"]} == whole
    known = {run for text in train for run in runs(text.split(), count)}
    by_hand = {}
    for number, text in enumerate(valid, start=1):
        shares = max(longest_common(text.split(), other.split()) for other in train) >= count
        words, longest = covered_by_hand(text.split(), known, count)
        assert shares == (words > 0)
        if shares and number not in whole:
            by_hand[number] = (words, longest)
    examples = result["part_in_training", "validation"]
    assert {e["document"]: (e["shared_words"], e["longest_words"]) for e in examples} == by_hand
    assert 0 < len(by_hand) < 40
    for example in examples:
        other = train[example["also_in"]["document"] - 1].split()
        assert longest_common(valid[example["document"] - 1].split(), other) >= count
    assert all(a["longest_words"] >= b["longest_words"] for a, b in pairwise(examples))


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_read_at_once_and_by_how_many_nothing_else_is_found(monkeypatch, seed):
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(["one", "two\n", "é漢", "\0", "\x85"], k=rng.randint(1, 30))) for _ in range(50)]
    train, valid = write("train.txt", texts[:35]), write("valid.jsonl", texts[30:])
    whole = found([train], [valid], run_words=4)
    monkeypatch.setattr(reading, "BATCH_CHARACTERS", 50)
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 3)
    assert found([train], [valid], run_words=4, num_processes=2) == whole


def test_case_and_white_space_do_not_hide_what_is_shared():
    write("train.txt", ["Once upon\n a time  there WAS"])
    write("valid.txt", ["x once upon a time there was y", " Once upon\n a time  there WAS\n"])
    result = found(["train.txt"], ["valid.txt"], run_words=6)
    (part,), (whole,) = result["part_in_training", "validation"], result["whole_in_training", "validation"]
    assert (part["document"], part["shared_words"], part["excerpt"]) == (1, 6, "once upon a time there was")
    assert whole["document"] == 2


def test_scripts_without_spaces_have_a_word_for_each_character():
    assert words_of("Ab 漢字かな, กข é ไม่") == [
        word.encode() for word in ("ab", *"漢字かな", ",", "ก", "ข", "é", *"ไม่")
    ]
    assert words_of("") == []


# --- near duplicates -------------------------------------------------------------------------------------------------


def variants(seed: int, documents: int, changed: tuple[int, ...]) -> list[str]:
    """Documents of 150 to 400 random words, shuffled; of some, a copy with so many words changed."""
    rng, texts = random.Random(seed), []
    for number in range(documents):
        words = [f"w{rng.randrange(1000)}" for _ in range(rng.randint(150, 400))]
        texts.append(" ".join(words))
        for place in rng.sample(range(len(words)), changed[number % len(changed)]):
            words[place] = "other"
        texts.append(" ".join(words))
    return rng.sample(texts, len(texts))


@pytest.mark.parametrize("seed", range(2))
def test_near_duplicates_are_those_of_a_large_jaccard_index(seed):
    texts = variants(seed, 24, (1, 2, 60))
    train, valid = texts[:30], texts[30:]
    result = found([write("train.txt", train)], [write("valid.jsonl", valid)])
    by_hand: dict[str, dict[int, int]] = {"training": {}, "validation": {}, "near_training": {}}
    shingles = [set(runs(text.split(), 5)) for text in texts]
    for later, own in enumerate(shingles):
        for earlier, other in enumerate(shingles[:later]):
            value = len(own & other) / len(own | other)
            assert value < 0.6 or value > 0.87
            if value > 0.87 and later < 30:
                by_hand["training"][later + 1] = earlier + 1
            elif value > 0.87:
                where = by_hand["near_training"] if earlier < 30 else by_hand["validation"]
                where[later - 29] = earlier + 1 if earlier < 30 else earlier - 29
    assert all(by_hand.values())
    for name, text, wanted in (
        ("near_duplicate", "training", by_hand["training"]),
        ("near_duplicate", "validation", by_hand["validation"]),
        ("near_training", "validation", by_hand["near_training"]),
    ):
        assert {e["document"]: e["similar_to"]["document"] for e in result[name, text]} == wanted


def test_equal_documents_are_not_near_ones_too():
    texts = variants(0, 4, (1,))
    result = found([write("train.txt", texts + texts[:3])], [write("valid.txt", texts[:2])])
    assert numbers(result["duplicate", "training"]) == [9, 10, 11]
    assert len(result["near_duplicate", "training"]) == 4
    assert numbers(result["whole_in_training", "validation"]) == [1, 2]
    assert ("near_training", "validation") not in result
    short = write("short.txt", ["one two three four", "one two three four!", "one two", "1 2 3"])
    assert found([short], []) == {}


@pytest.mark.parametrize("length", [12, 60, 128, 1000, 20_000])
def test_signatures_agree_as_much_as_the_sets_do(length):
    rng, errors = np.random.default_rng(length), []
    for _ in range(30 if length < 20_000 else 3):
        words = [b"%d" % word for word in rng.integers(1 << 30, size=length)]
        kept = int(rng.integers(length // 2, length))
        other = [*words[:kept], *(b"%d" % word for word in rng.integers(1 << 30, size=length - kept))]
        common = kept - 4
        exact = common / (2 * (length - 4) - common)
        left, right = signatures_of(HashedWords([words, other]))
        errors.append(float((left == right).mean()) - exact)
    assert abs(np.mean(errors)) < 0.06
    assert np.abs(errors).max() < (0.16 if length >= 128 else 0.4)


def test_signatures_are_the_same_everywhere():
    words = [[b"%d" % word for word in range(length)] for length in (4, 5, 40, 4000)]
    signatures = signatures_of(HashedWords(words * 30))
    assert (signatures.reshape(30, 4, SIGNATURE) == signatures[:4]).all()
    assert not signatures[0].any()
    assert [crc32(row.astype("<u2").tobytes()) for row in signatures[1:4]] == [1755443722, 3362580865, 3197624192]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the threads of a process are listed on Linux")
def test_signatures_start_no_threads():
    """A process that is forked afterwards would wait for them for ever."""
    before = set(Path("/proc/self/task").iterdir())
    documents = [[b"%d" % word for word in range(document, document + 50)] for document in range(1000)]
    signatures_of(HashedWords([*documents, [b"%d" % word for word in range(70_000)]]))
    assert set(Path("/proc/self/task").iterdir()) <= before


def test_pairs_are_found_however_many_documents_agree():
    signatures = np.tile(np.arange(1, SIGNATURE + 1, dtype=np.uint16), (100, 1))
    earlier, later = near_pairs(signatures, 1.0)
    assert set(later.tolist()) == set(range(1, 100))
    assert (earlier < later).all()
    assert [len(part) for part in near_pairs(signatures[:0], 1.0)] == [0, 0]


# --- odd documents ---------------------------------------------------------------------------------------------------

SIGNS = {
    "nul": "\0",
    "control": "\x07\x1b\x7f\x90",
    "separator": "\v\f\x1c\x85\u2028\u2029",
    "replacement": "\ufffd",
    "mark": "\ufeff",
}


def test_characters_that_text_does_not_have_are_found_and_shown():
    signs = [(name, sign) for name, characters in SIGNS.items() for sign in characters]
    write("train.txt", ["Fine\t\r\n", *(f"{'before' * 20}{sign}after" for _, sign in signs), "é漢😀\u00a0\u200b"])
    result = found(["train.txt"], [])
    assert {name for name, _ in result} == SIGNS.keys()
    for name in SIGNS:
        examples = result[name, "training"]
        assert numbers(examples) == [number for number, (wanted, _) in enumerate(signs, start=2) if wanted == name]
        assert all(e["excerpt"].isprintable() and "after" in e["excerpt"] for e in examples)


def test_the_byte_order_mark_of_a_file_is_no_finding():
    Path("train.txt").write_bytes(b"\xef\xbb\xbfOnce")
    assert found(["train.txt"], []) == {}


def test_repetitive_and_random_documents_are_found_and_prose_is_not():
    rng = random.Random(0)
    prose = " ".join(rng.choice(("the cat", "saw", "a dog", "in", "my garden", "who", "ran")) for _ in range(300))
    noise = "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/", k=3000))
    write("train.jsonl", ["ha " * 900, prose, noise, "ha" * 200, noise[:900], "- " * 5000])
    result = found(["train.jsonl"], [])
    assert [e["document"] for e in result["repetitive", "training"]] == [6, 1]  # the worst one first
    assert [e["document"] for e in result["incompressible", "training"]] == [3]
    assert 1.2 < result["incompressible", "training"][0]["compression"] < 1.4


def test_documents_are_named_by_file_number_and_line():
    Path("folder").mkdir()
    write("folder/a.txt", ["one\n", "\n two\nlines\n", " \n", "\n\nthree\0"])
    write("folder/b.jsonl", ["", "four", "three\0"])
    assert found(["folder"], [])["nul", "training"] == [
        {"file": "folder/a.txt", "document": 3, "line": 8, "excerpt": "three\\x00"},
        {"file": "folder/b.jsonl", "document": 2, "excerpt": "three\\x00"},
    ]


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "valid", "options", "code"),
    [
        (["a b c", "d e f"], ["g"], [], 0),
        (["a b c", "a b c"], [], [], 1),
        (["a b c", "a b c"], [], ["--tolerate", "0.5"], 0),
        (["a b c"], ["a b c"], ["--tolerate", "1"], 1),
        (["a b c"], ["x a b c"], ["--span", "3"], 1),
        (["a b c"], ["x a b c"], ["--span", "4"], 0),
    ],
)
def test_the_exit_code_says_whether_it_is_too_much(capsys, train, valid, options, code):
    names = [write("train.txt", train), *(["--valid", write("valid.txt", valid)] if valid else [])]
    assert main(["check", *names, *options, "--processes", "1"]) == code
    assert ("too many documents (!): " in capsys.readouterr().out) == bool(code)


def test_the_table_shows_each_finding_and_examples_below_it(capsys):
    names = [write("train.txt", ["a b", "c\0", "a b"]), "--valid", write("valid.txt", ["a b", "d"])]
    assert main(["check", *names, "--processes", "1"]) == 1
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["training", "validation"]
    assert lines[1].split() == ["documents", "3", "2"]
    assert lines[3].split() == ["the", "same", "as", "an", "earlier", "document", "1", "(33.33%)", "!", "0"]
    (whole,) = (line for line in lines if line.startswith("whole in training  "))
    assert whole.split()[3:] == ["1", "(50.00%)", "!"]
    assert "  train.txt, document 3, line 1: 'a b'\n    as train.txt, document 1, line 1\n" in out
    assert "  valid.txt, document 1, line 1: 'a b'\n    as train.txt, document 1, line 1\n" in out


@pytest.mark.parametrize("to", ["-", "report.json"])
def test_the_report_is_written_as_json(capsys, to):
    names = [write("train.jsonl", ["a b", "é\0", "a b"]), "--valid", write("valid.jsonl", ["c"])]
    for _ in range(2):  # a report of its own is replaced
        assert main(["check", *names, "--json", to, "--processes", "1", "--examples", "1"]) == 1
    out = capsys.readouterr().out
    report = json.loads(out[len(out) // 2 :] if to == "-" else Path(to).read_bytes())
    assert report["texts"]["training"] == {"files": 1, "documents": 3, "bytes": 9}
    by_name = {(one["finding"], one["text"]): one for one in report["findings"]}
    assert by_name["duplicate", "training"] == {
        "finding": "duplicate",
        "text": "training",
        "documents": 1,
        "share": 1 / 3,
        "too_many": True,
        "examples": [
            {
                "file": "train.jsonl",
                "document": 3,
                "excerpt": "a b",
                "same_as": {"file": "train.jsonl", "document": 1},
            }
        ],
    }
    assert by_name["whole_in_training", "validation"]["documents"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.txt"], "none.txt: no such file"),
        (["t.txt", "--valid", "none.txt"], "none.txt: no such file"),
        (["t.txt", "--span", "0"], "--span 0: must be at least 1"),
        (["t.txt", "--examples", "-1"], "--examples -1: must be at least 0"),
        (["t.txt", "--similarity", "0.2"], "--similarity 0.2: must be from 0.5 to 1"),
        (["t.txt", "--tolerate", "2"], "--tolerate 2.0: is a share"),
        (["t.txt", "--text-field", "body"], "--text-field body: only .jsonl, .ndjson, .parquet files have fields"),
        (["t.txt", "--json", "t.txt"], "t.txt: is one of the inputs"),
        (["t.txt", "--json", "other"], "other: exists, and is not a report of this command"),
        (["t.txt", "--processes", "0"], "--processes 0: at least one"),
        (["blank.txt"], "blank.txt: has no document that is not blank"),
        (["t.txt", "--valid", "blank.txt"], "blank.txt: has no document that is not blank"),
        (["bad.txt"], "bad.txt: not UTF-8 at byte 1"),
        (["bad.jsonl"], "bad.jsonl, line 1: is not JSON"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_one_line(capsys, arguments, message):
    write("t.txt", ["a"])
    write("blank.txt", [" ", "\n"])
    Path("bad.txt").write_bytes(b"a\xff")
    Path("bad.jsonl").write_bytes(b"{")
    Path("other").write_bytes(b"{}")
    assert main(["check", *arguments]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(f"tokenization check: {message}")
    assert Path("other").read_bytes() == b"{}"


def test_ctrl_c_leaves_nothing(monkeypatch, capsys):
    write("t.txt", ["a", "b"])

    def interrupt(text: str) -> tuple[int, int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(examining, "signs_of", interrupt)
    assert main(["check", "t.txt", "--json", "report.json", "--processes", "1"]) == 130
    assert [path.name for path in Path().iterdir()] == ["t.txt"]
    assert capsys.readouterr().err.endswith("interrupted; no unfinished file is left\n")


def test_a_document_without_end_is_refused(monkeypatch):
    monkeypatch.setattr("tokenization.samples.MAX_DOCUMENT", 10)
    write("t.txt", ["a long document"])
    with pytest.raises(InputError, match=r"^t\.txt: has a document of more than 10 characters"):
        found(["t.txt"], [])


def test_a_report_on_stdout_is_json_whatever_its_encoding(monkeypatch):
    name, out = write("train.jsonl", ["é 😀", "é 😀"]), io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, "latin-1", errors="backslashreplace"))
    assert main(["check", name, "--json", "-", "--processes", "1", "--examples", "1"]) == 1
    sys.stdout.flush()
    found = json.loads(out.getvalue())["findings"]
    assert "é 😀" in [example["excerpt"] for finding in found for example in finding["examples"]]
