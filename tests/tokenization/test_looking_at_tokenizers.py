"""Proves that `tokenization inspect` and `tokenization compare` show what is so, computed here by other means, and that
whatever they are given wrongly gets one line, exit code 2 and no file."""

import base64
import json
import re
from pathlib import Path

import pytest

from tokenization import END_OF_TEXT, Tokenizer
from tokenization.__main__ import main
from tokenization.interchange import export_huggingface, export_tiktoken
from tokenization.plots import is_plot

HANDOUT = ["s t", "e st", "o w", "l ow", "w est", "n e", "ne west", "w i", "wi d", "wid est", "low e", "lowe r"]


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch, small) -> Path:
    """The working folder: tok/ (the handout's merges), small/, stories.txt (four documents), blank.txt."""
    monkeypatch.chdir(tmp_path)
    merges = [tuple(part.encode() for part in line.split()) for line in HANDOUT]
    vocab = {value: bytes([value]) for value in range(256)} | {257 + n: a + b for n, (a, b) in enumerate(merges)}
    Tokenizer(vocab | {256: END_OF_TEXT.encode()}, merges, [END_OF_TEXT]).save("tok")
    small.save("small")
    documents = ["newest newest", "low lower\n", "The cat's name was Tom.", "é漢 widest"]
    Path("stories.txt").write_text(END_OF_TEXT.join(documents), encoding="utf-8")
    Path("blank.txt").write_text(" \n")
    return tmp_path


def run(line: str) -> int:
    return main(line.split(" "))


@pytest.fixture
def tokenization(capsys):
    """tokenization(*arguments) -> what it wrote, without the spaces at the ends of lines; it must succeed."""

    def succeed(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return re.sub(" +$", "", out, flags=re.MULTILINE)

    return succeed


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_a_word_is_shown_step_by_step(tokenization):
    assert tokenization("inspect", "tok", "--word", "newest").splitlines() == [
        "'newest': 6 bytes, 5 merges",
        "step     rank  merge          parts",
        "   0                          'n' 'e' 'w' 'e' 's' 't'",
        "   1        1  's' + 't'      'n' 'e' 'w' 'e' 'st'",
        "   2        2  'e' + 'st'     'n' 'e' 'w' 'est'",
        "   3        5  'w' + 'est'    'n' 'e' 'west'",
        "   4        6  'n' + 'e'      'ne' 'west'",
        "   5        7  'ne' + 'west'  'newest'",
        "",
        "ids     263",
        "tokens  'newest'",
    ]


def test_what_is_split_before_any_merge_is_shown_in_parts(tokenization, small):
    text = f"low é{END_OF_TEXT}\x1b don't"
    lines = tokenization("inspect", "small", "--word", text).splitlines()
    assert lines[0] == f"{text!r}: split into 6 before any merge; no token reaches from one into the next"
    blocks = [line for line in lines if re.match(r"(['\"]).*\1: (\d+ byte|a special)", line)]
    assert [line.partition(": ")[0] for line in blocks] == [
        *("'low'", "' é'", "'<|endoftext|>'", r"'\x1b'", "' don'", '"\'t"'),
    ]
    assert blocks[2] == "'<|endoftext|>': a special token, found before anything is split or merged"
    assert "   0                  '\\x1b'" in lines
    assert lines[-2] == f"ids     {' '.join(map(str, small.encode(text)))}"


def test_a_character_of_several_bytes_is_shown_by_them(tokenization):
    lines = tokenization("inspect", "tok", "--word", "é").splitlines()
    assert lines[2:] == [r"   0                  b'\xc3' b'\xa9'", "", "ids     195 169", r"tokens  b'\xc3' b'\xa9'"]


def test_a_token_is_shown_as_a_tree(tokenization):
    assert tokenization("inspect", "tok", "--token", "261").splitlines() == [
        "token           id     rank",
        "'west'         261        5",
        "  'w'          119     byte",
        "  'est'        258        2",
        "    'e'        101     byte",
        "    'st'       257        1",
        "      's'      115     byte",
        "      't'      116     byte",
    ]
    assert tokenization("inspect", "tok", "--token", "256") == "'<|endoftext|>': a special token; no merge makes it\n"
    assert tokenization("inspect", "tok", "--token", "65").splitlines()[1:] == ["'A'         65     byte"]
    word, token = tokenization("inspect", "tok", "--word", "st"), tokenization("inspect", "tok", "--token", "257")
    assert tokenization("inspect", "tok", "--word", "st", "--token", "257") == f"{word}\n{token}"


def test_tokens_that_two_merges_spell_and_that_none_makes(tokenization):
    vocab = {value: bytes([value]) for value in range(256)} | dict(enumerate([b"ab", b"bc", b"abc", b"xyz"], 256))
    merges = [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"a", b"bc")]
    export_huggingface(Tokenizer(vocab, merges), "tokenizer.json")
    lines = tokenization("inspect", "tokenizer.json", "--token", "258").splitlines()
    assert lines[1].split() == ["'abc'", "258", "3"]
    assert lines[-1] == "rank 4 spells it, too: 'a' + 'bc'"
    assert tokenization("inspect", "tokenizer.json", "--token", "259").endswith("259  no merge makes it\n")


def test_merges_that_were_recovered_from_ranks_are_said_to_be(tokenization, small):
    export_tiktoken(small, "small.tiktoken")
    note = "note: tiktoken's ranks list tokens and no merges; the merges are recovered from the ranks\n"
    word = tokenization("inspect", "small.tiktoken", "--pattern", "gpt2", "--word", " cat")
    own = tokenization("inspect", "small", "--word", " cat")
    assert word.endswith(note)
    assert note not in own
    assert word.splitlines()[1:-4] == own.splitlines()[1:-3]  # the same merges
    for option in ("--count=1", "--token=299"):
        assert tokenization("inspect", "small.tiktoken", "--pattern", "gpt2", option).endswith(note)


def test_a_folder_of_openais_ranks_is_known_by_its_special_tokens(tokenization):
    ranks = "".join(f"{base64.b64encode(bytes([value])).decode()} {value}\n" for value in range(256))
    Path("bytes.tiktoken").write_text(ranks)
    for pattern, recovered in (("gpt2", False), ("cl100k", True), ("o200k", True)):
        tokenization("import", "bytes.tiktoken", "--pattern", pattern, "--output", pattern)
        assert ("recovered" in tokenization("inspect", pattern)) == recovered


# --- compare ---------------------------------------------------------------------------------------------------------


def test_documents_are_drawn_and_compared(capsys, small):
    assert run("compare tok small --text stories.txt --documents 3 --seed 7 --json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["tokenizer"], row["documents"], row["found"]) for row in rows] == [("tok", 3, 4), ("small", 3, 4)]
    documents = Path("stories.txt").read_text(encoding="utf-8").split(END_OF_TEXT)
    left_out = [one for one in documents if len("".join(documents).encode()) - len(one.encode()) == rows[0]["bytes"]]
    assert len(left_out) == 1
    drawn = [document for document in documents if document != left_out[0]]
    for row, tokenizer in zip(rows, (Tokenizer.load("tok"), small), strict=True):
        ratios = [len(document.encode()) / len(tokenizer.encode(document)) for document in drawn]
        assert row["tokens"] == sum(len(tokenizer.encode(document)) for document in drawn)
        assert row["bytes_per_token"] == row["bytes"] / row["tokens"]
        assert (row["lowest"], row["highest"]) == (min(ratios), max(ratios))
    assert run("compare tok small --text stories.txt --documents 3 --seed 7") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["tokenizer", "text", "documents", "drawn", "from"]
    for line, row in zip(lines, rows, strict=True):
        assert line.split()[:4] == [row["tokenizer"], "stories.txt", "3", "4"]
        assert line.split()[4:7] == [f"{row[key]:.3f}" for key in ("bytes_per_token", "lowest", "highest")]


def test_more_documents_than_there_are(capsys):
    assert run("compare tok --text stories.txt --documents 10 --json") == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert (row["documents"], row["found"]) == (4, 4)


def test_a_curve(tokenization, small):
    lines = tokenization("compare", "tok", "small", "--text", "stories.txt", "--curve").splitlines()
    assert lines[0].split() == ["tokenizer", "text", "vocabulary", "merges", "bytes/token"]
    text = Path("stories.txt").read_text(encoding="utf-8")
    whole = [len(text.encode()) / len(tokenizer.encode(text)) for tokenizer in (Tokenizer.load("tok"), small)]
    unmerged = len(text.encode()) / len(text.replace(END_OF_TEXT, "x").encode())
    assert [line.split() for line in lines[1:]] == [
        ["tok", "stories.txt", "257", "0", f"{unmerged:.3f}"],
        ["tok", "stories.txt", "269", "12", f"{whole[0]:.3f}"],
        ["small", "stories.txt", "257", "0", f"{unmerged:.3f}"],
        ["small", "stories.txt", "300", "43", f"{whole[1]:.3f}"],
    ]


def test_a_curve_is_drawn(capsys):
    command = "compare tok small --text stories.txt --curve --plot new/$curve$.png"
    assert run(command) == 0
    assert capsys.readouterr().out.endswith("\nwritten: new/$curve$.png\n")
    assert is_plot(Path("new/$curve$.png"))
    assert run(f"{command} --json") == 0  # replaces its own plot
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 4
    assert err == "written: new/$curve$.png\n"


# --- bad input -------------------------------------------------------------------------------------------------------

BAD_INPUT = {
    "inspect tok --word=": '--word "": is empty; give a word',
    "inspect tok --word=a\udcffb": "--word: is not UTF-8 text",
    f"inspect tok --word={'a' * 201}": "--word: has a pre-token of 201 bytes; give one of at most 200",
    "inspect tok --word": "argument --word: expected one argument",
    "inspect tok --word=a --count=3": "--count 3: is for the overview; leave it out",
    "inspect tok --count=0": "--count 0: at least one is needed",
    "inspect tok --token=269": "--token 269: is not in the vocabulary, whose ids end at 268",
    "inspect tok --token=-1": "--token -1: is not in the vocabulary",
    "inspect tok --token=the": "argument --token: 'the' is not a whole number; write digits alone",
    "inspect none --word=a": "none: no such tokenizer folder",
    "inspect stories.txt --word=a": r"stories\.txt: not JSON",
    "inspect tok --pattern=gpt2": "tok: a tokenizer.json holds its own pattern; leave --pattern out",
    "compare tok --text stories.txt --documents 0": "--documents 0: at least one is needed",
    "compare tok --text stories.txt --documents 1.5": "argument --documents: '1.5' is not a whole number",
    "compare tok --text stories.txt --documents 2 --megabytes 1": "--megabytes 1: --documents are encoded whole",
    "compare tok --text stories.txt --megabytes nan": "--megabytes nan: must be more than 0",
    "compare tok --text stories.txt --seed 3": "--seed 3: is for drawing documents; add --documents N",
    "compare tok --text stories.txt none.txt --documents 2": r"none\.txt: no such file",
    "compare tok --text blank.txt --documents 2": r"blank\.txt: has no document that is not blank",
    "compare none --text stories.txt --curve": "none: no such tokenizer folder",
    "compare tok --text stories.txt --plot c.png": r"--plot c\.png: draws the curve; add --curve",
    "compare tok --text stories.txt --curve --plot stories.txt": r"stories\.txt: is one of the inputs",
    "compare tok --text stories.txt --curve --plot blank.txt": r"blank\.txt: exists, and is not a plot of ours",
    "compare tok --text stories.txt --curve --plot tok": "tok: is a folder or a device",
    "compare tok --text stories.txt --curve --plot=": "argument --plot: is empty",
    "compare tok --text . --curve --plot new.txt": r"new\.txt: plots are PNG pictures; choose",
    "compare tok --text s* --curve --plot s.png": r"s\.png: would from then on be read as text of s\*",
}


@pytest.mark.parametrize("arguments", BAD_INPUT)
def test_bad_input_gets_one_line_and_nothing_is_written(work, capsys, arguments):
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"tokenization {arguments.split()[0]}: .*{BAD_INPUT[arguments]}.*\n", err)
    assert out == ""
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before
