"""Proves that equal counts are equal bytes, whoever counted, added and in which order; and that damage is named."""

import random
from collections import Counter
from pathlib import Path

import pytest
from helpers.native import NEVER, take_kernels_from
from helpers.texts import random_text

from tokenization import GPT2_PATTERN, InputError, native
from tokenization.pretokenization import count_pretokens
from tokenization.scaling.counts_file import Counts, add_up, read_counts


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
    files = [written(Counts.of(counts, 99), tmp_path) for counts in (total, dict(items))]
    files += [written(Counts.of_table(native.table_of(counts), 99), tmp_path) for counts in (total, dict(items))]
    assert set(files) == {files[0]}
    assert read_counts(tmp_path / "t.counts")[0].as_counter() == total
    other = Counts.of(total | {b"cat": total[b"cat"] + 1}, 99)
    assert written(other, tmp_path) != files[0]


@pytest.mark.parametrize("from_bytes", [0, NEVER])
def test_a_sum_does_not_depend_on_its_parts(counted, tmp_path, monkeypatch, from_bytes):
    take_kernels_from(from_bytes, monkeypatch)
    expected = written(Counts.of(sum(counted, Counter()), 10), tmp_path)
    parts = [Counts.of(counts, 2) for counts in counted]
    assert written(add_up(iter(parts)), tmp_path) == expected
    assert written(add_up(iter([add_up(iter(parts[3:])), add_up(iter(parts[2::-1]))])), tmp_path) == expected
    assert written(add_up(iter([Counts.of({}, 0), *parts])), tmp_path) == expected


def test_damage_is_named(tmp_path):
    path = tmp_path / "t.counts"
    Counts.of({b"a": 3, b"long" * 9: 1, b" cat": 2}, 60).write(path)
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(InputError, match=r"t\.counts: is (damaged|not a file of counts)"):
            read_counts(path)
    for size in (0, 50, 64, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"t\.counts: is (damaged|not a file of counts)"):
            read_counts(path)
    path.unlink()
    with pytest.raises(InputError, match=r"t\.counts: cannot be read \(No such file"):
        read_counts(path)
