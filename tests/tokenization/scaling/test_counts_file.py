"""Proves that equal counts are equal bytes, whoever counted, added and in which order; and that damage is named."""

import random
from collections import Counter
from pathlib import Path

import pytest
from helpers.native import NEVER, take_kernels_from
from helpers.texts import random_text

from tokenization import GPT2_PATTERN, InputError, native
from tokenization.pretokenization import count_pretokens
from tokenization.scaling.counts_file import MIX_1, MIX_2, TITLE, Counts, add_up, read_counts, sort_key


@pytest.fixture
def counted() -> list[Counter[bytes]]:
    """Counts of several texts, with pre-tokens longer than a slot's 15 bytes among them."""
    source = random.Random(7)
    texts = [" ".join(random_text(source) for _ in range(30)) + " a" * part + "b" * 40 for part in range(5)]
    counts = [count_pretokens(text, pattern=GPT2_PATTERN) for text in texts]
    assert {15, 16, 17} <= {len(pretoken) for pretoken in sum(counts, Counter())}
    return counts


def written(counts: Counts, folder: Path) -> bytes:
    digest = counts.write(folder / "t.counts")
    read, again = read_counts(folder / "t.counts")
    assert digest == again
    assert (read.as_counter(), read.text_bytes, read.total) == (counts.as_counter(), counts.text_bytes, counts.total)
    return (folder / "t.counts").read_bytes()


def test_kernels_and_plain_python_write_the_same_bytes_in_any_order(counted, tmp_path):
    total = sum(counted, Counter())
    items = list(total.items())
    random.Random(1).shuffle(items)
    files = [written(Counts.of(counts, None, 99), tmp_path) for counts in (total, dict(items))]
    files += [written(Counts.of(native.table_of(counts), native, 99), tmp_path) for counts in (total, dict(items))]
    assert set(files) == {files[0]}
    assert read_counts(tmp_path / "t.counts")[0].as_counter() == total
    other = Counts.of(total | {b"cat": total[b"cat"] + 1}, None, 99)
    assert written(other, tmp_path) != files[0]


def test_equal_hashes_and_slots_that_run_over_are_in_order_too(tmp_path):
    """Keys made so that multiplying tells their hashes: all bits 0, or the highest 16 all 1."""
    source = random.Random(3)
    equal = [MIX_1.to_bytes(8, "little") + bytes(source.choices(b"ab", k=length % 8)) for length in range(60)]
    last = [
        (MIX_1 ^ 1 << 8).to_bytes(8, "little") + ((~MIX_2 - number) % (1 << 56)).to_bytes(7, "little")
        for number in range(60)
    ]
    assert {sort_key(pretoken)[0] for pretoken in equal} == {0}
    assert {sort_key(pretoken)[0] >> 48 for pretoken in last} == {(1 << 16) - 1}
    others = [source.randbytes(source.randint(1, 40)) for _ in range(3000)]
    counts = {pretoken: number for number, pretoken in enumerate(source.sample(others + equal + last, 3120), start=1)}
    expected = written(Counts.of(counts, None, 0), tmp_path)
    table = native.table_of(counts)
    assert written(Counts.of(table, native, 0), tmp_path) == expected
    assert written(Counts.of(native.add_rows(*native.rows_of(table)), native, 0), tmp_path) == expected


@pytest.mark.parametrize("from_bytes", [0, NEVER])
def test_a_sum_does_not_depend_on_its_parts(counted, tmp_path, monkeypatch, from_bytes):
    take_kernels_from(from_bytes, monkeypatch)
    expected = written(Counts.of(sum(counted, Counter()), None, 10), tmp_path)
    parts = [Counts.of(counts, None, 2) for counts in counted]
    assert written(add_up(iter(parts)), tmp_path) == expected
    assert written(add_up(iter([add_up(iter(parts[3:])), add_up(iter(parts[2::-1]))])), tmp_path) == expected
    assert written(add_up(iter([Counts.of({}, None, 0), *parts])), tmp_path) == expected


def test_damage_is_named(tmp_path):
    path = tmp_path / "t.counts"
    Counts.of({b"a": 3, b"long" * 9: 1, b" cat": 2}, None, 60).write(path)
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(InputError, match=r"t\.counts: is (damaged|not a file of counts|of another version)"):
            read_counts(path)
    for size in (0, 50, 64, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"t\.counts: is (damaged|not a file of counts|of another version)"):
            read_counts(path)
    path.unlink()
    with pytest.raises(InputError, match=r"t\.counts: cannot be read \(No such file"):
        read_counts(path)


def test_an_earlier_format_is_refused_by_name(tmp_path):
    path = tmp_path / "t.counts"
    path.write_bytes((TITLE + b"1\n").ljust(200, b"\0"))
    with pytest.raises(InputError, match=r"t\.counts: is of another version; delete it, and count the text again"):
        read_counts(path)
