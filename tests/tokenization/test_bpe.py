"""Proves that training learns the handout's merges: its worked example, and on many small random corpora what a
brute-force trainer learns that counts every pair anew for every merge; the same for any number of processes."""

import gzip
import random
import tracemalloc
from collections import Counter
from functools import partial
from itertools import pairwise

import pytest
from helpers.native import NEVER, take_kernels_from

from tokenization import END_OF_TEXT, InputError, Tokenizer, TrainingReport, train_bpe, training
from tokenization.bpe import find_merge_ids, learn_merges, merge_by_rank, merge_word, rank_merges
from tokenization.pretokenization import count_pretokens, cut_into_chunks
from tokenization.text import corpus

HANDOUT = {b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6}
HANDOUT_MERGES = "s t, e st, o w, l ow, w est, n e, ne west, w i, wi d, wid est, low e, lowe r"


def apply(word: tuple[bytes, ...], pair: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    """The word with every occurrence of the pair merged, from the left."""
    for start in range(len(word) - 1):
        if word[start : start + 2] == pair:
            return (*word[:start], pair[0] + pair[1], *apply(word[start + 2 :], pair))
    return word


def brute_force(counts, num_merges: int) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, ...]]]:
    """(merges, the words at the end): all pairs counted again for every merge, of ties the greatest pair of bytes."""
    words = {tuple(bytes([value]) for value in word): count for word, count in counts.items()}
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < num_merges:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        words = {apply(word, merges[-1]): count for word, count in words.items()}
    return merges, list(words)


def random_counts(seed: int) -> Counter[bytes]:
    rng = random.Random(seed)
    alphabet = [b"ab", b"abc", b"a", bytes(range(256)), "éß漢😀".encode(), b"\x00\xff\x7f\x80"][seed % 6]
    counts: Counter[bytes] = Counter()
    for _ in range(rng.randint(1, 25)):
        letters = (
            bytes([rng.choice(alphabet)]) * (rng.randint(1, 9) if seed % 2 else 1) for _ in range(rng.randint(1, 8))
        )
        counts[b"".join(letters)] += rng.choice([1, 1, 1, 2, 3, 1 << 40])
    return counts


def test_the_handouts_example():
    expected = [tuple(token.encode() for token in merge.split()) for merge in HANDOUT_MERGES.split(", ")]
    vocab, merges = learn_merges(HANDOUT, 256 + 12)
    assert merges == expected
    assert list(vocab.values())[256:] == [left + right for left, right in expected]
    six = Tokenizer(*learn_merges(HANDOUT, 256 + 6))
    assert [six.vocab[token_id] for token_id in six.encode("newest")] == [b"ne", b"west"]


@pytest.mark.parametrize("seed", range(240))
def test_merges_equal_brute_force(seed):
    counts, num_merges = random_counts(seed), 1 + seed % 40
    vocab, merges = learn_merges(counts, 256 + num_merges)
    expected, words = brute_force(counts, num_merges)
    assert merges == expected
    assert vocab == dict(enumerate([*(bytes([value]) for value in range(256)), *(a + b for a, b in expected)]))
    assert len(set(vocab.values())) == len(vocab)
    ids = {token: token_id for token_id, token in vocab.items()}
    ranks = rank_merges(find_merge_ids(merges, ids))
    for pretoken, word in zip(counts, words, strict=True):  # encoding a pre-token ends where training ended
        assert tuple(vocab[token_id] for token_id in merge_by_rank(list(pretoken), ranks)) == word


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["AB", "AC", "BX", "ZA"], (b"Z", b"A")),
        (["xa", "xb"], (b"x", b"b")),
        (["\x7fa", "\x80a"], (b"\xc2", b"\x80")),  # bytes compare without sign
    ],
)
def test_ties_go_to_the_greater_pair(words, first):
    _, merges = learn_merges({word.encode(): 1 for word in words}, 257)
    assert merges == [first]


def test_a_tie_with_a_prefix_goes_to_the_longer_token():
    # after b + c: (a, bc) and (a, b) occur twice each, and "bc" > "b"
    counts = {b"bc": 9, b"abc": 2, b"abx": 1, b"aby": 1}
    assert learn_merges(counts, 258)[1] == [(b"b", b"c"), (b"a", b"bc")]
    # after a + b: (ab, z) and (a, z) occur twice each, and "ab" > "a"
    counts = {b"ab": 9, b"abz": 2, b"az": 2}
    assert learn_merges(counts, 258)[1] == [(b"a", b"b"), (b"ab", b"z")]


@pytest.mark.parametrize(
    ("word", "merged"),
    [([1, 1, 1], [9, 1]), ([1, 1, 1, 1], [9, 9]), ([2, 1, 1, 2], [2, 9, 2]), ([1], [1]), ([], [])],
)
def test_runs_are_merged_from_the_left(word, merged):
    assert merge_word(word, (1, 1), 9) == merged


def test_vocabulary_is_bytes_then_special_tokens_then_merges():
    vocab, merges = learn_merges({b"hug": 3}, 260, ["<a>", "é", "<a>", "h"])  # one twice, one that is a byte
    assert vocab == dict(enumerate([*(bytes([n]) for n in range(256)), b"<a>", "é".encode(), b"ug", b"hug"]))
    assert merges == [(b"u", b"g"), (b"h", b"ug")]


def test_a_merge_that_spells_a_special_token_takes_its_id():
    vocab, merges = learn_merges({b"abc": 1}, 300, ["bc"])
    assert merges == [(b"b", b"c"), (b"a", b"bc")]
    assert list(vocab.values())[256:] == [b"bc", b"abc"]


def test_counts_are_exact_beyond_64_bits():
    assert learn_merges({b"ab": 2**64 + 1, b"cd": 2**64, b"ef": 2**64 + 2}, 258)[1] == [(b"e", b"f"), (b"a", b"b")]


@pytest.fixture
def text_file(tmp_path, random_text):
    path = tmp_path / "text.txt"
    stories = (random_text(seed, 400) for seed in range(30))
    path.write_text(f"{END_OF_TEXT}".join(stories), encoding="utf-8", newline="")
    return path


def test_training_on_a_file_equals_brute_force(text_file):
    special_tokens = [END_OF_TEXT, "\n\n"]
    counts = count_pretokens(text_file.read_bytes().decode(), special_tokens)
    vocab, merges = train_bpe(text_file, 400, special_tokens, num_processes=1)
    assert merges == brute_force(counts, 400 - 258)[0]
    assert len(vocab) == 400
    assert not any(b"<|end" in left + right or b"\n\n" in left + right for left, right in merges)


def test_no_merge_crosses_documents_or_takes_a_special_token(tmp_path):
    (tmp_path / "a.txt").write_text(f"x{END_OF_TEXT}y" * 50)
    vocab, merges = train_bpe(str(tmp_path / "a.txt"), 1000, [END_OF_TEXT], num_processes=1)
    assert merges == [(b"y", b"x")]
    assert len(vocab) == 258


def test_any_number_of_processes_and_any_blocks_give_the_same(text_file, monkeypatch):
    expected = train_bpe(text_file, 380, [END_OF_TEXT], num_processes=1)
    num_pieces = []
    small_pieces = partial(cut_into_chunks, size=300)
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 101)
    monkeypatch.setattr(
        training, "cut_into_chunks", lambda *args: (num_pieces.append(1) or p for p in small_pieces(*args))
    )
    for num_processes in (1, 2, 3):
        assert train_bpe(text_file, 380, [END_OF_TEXT], num_processes=num_processes) == expected
    assert len(num_pieces) > 3 * 10


def test_order_of_files_does_not_matter_and_gz_is_unpacked(text_file, tmp_path):
    data = text_file.read_bytes()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.txt.gz").write_bytes(gzip.compress(data))
    (tmp_path / "more" / "a.txt").write_text("other words, other words\n")
    both = train_bpe([text_file, tmp_path / "more" / "a.txt"], 350, num_processes=1)
    assert train_bpe([tmp_path / "more" / "a.txt", text_file], 350, num_processes=1) == both
    assert train_bpe(tmp_path / "more", 350, num_processes=1) == both
    assert train_bpe(str(tmp_path / "more" / "*"), 350, num_processes=1) == both


def test_memory_grows_with_different_pretokens_not_with_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(training, "cut_into_chunks", partial(cut_into_chunks, size=4096))
    take_kernels_from(NEVER, monkeypatch)

    def peak(repeats: int) -> int:
        (tmp_path / "t.txt").write_text("the same few words again and again\n" * repeats)
        tracemalloc.start()
        train_bpe(tmp_path / "t.txt", 300, num_processes=1)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(100)  # what is made once (compiled patterns) is not counted
    assert peak(20_000) < peak(1_000) + 100_000  # 700 kB of text against 35 kB


def test_the_report(text_file):
    report = TrainingReport()
    special_tokens = [END_OF_TEXT, "a long special token, which nothing has learnt"]
    vocab, _ = train_bpe(text_file, 300, special_tokens, num_processes=1, report=report)
    counts = count_pretokens(text_file.read_bytes().decode(), special_tokens)
    assert list(report.seconds) == ["reading", "pre-tokenizing", "initial counts", "merges"]
    assert all(seconds >= 0 for seconds in report.seconds.values())
    assert report.text_bytes == text_file.stat().st_size
    assert (report.pretokens, report.unique_pretokens) == (counts.total(), len(counts))
    assert report.vocab_size == len(vocab) == 300
    assert len(report.longest_token) == max(
        map(len, set(vocab.values()) - {token.encode() for token in special_tokens})
    )
    assert report.peak_memory_bytes is None or report.peak_memory_bytes > 1_000_000
    assert f"longest token   {len(report.longest_token)} bytes" in report.lines()[-1]


def test_training_stops_when_no_pair_is_left():
    vocab, merges = learn_merges({b"aaaa": 1}, 1000)
    assert merges == [(b"a", b"a"), (b"aa", b"aa")]
    assert len(vocab) == 258
    assert learn_merges({b"a": 5}, 1000)[1] == []


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("", {}, "no text to learn from"),
        (END_OF_TEXT, {}, "no text to learn from"),
        ("text", {"vocab_size": 256}, "256 bytes and 1 special token need 257"),
        ("text", {"special_tokens": [""]}, "special token is empty"),
        ("text", {"special_tokens": ["\udcff"]}, "special token '.udcff' is not UTF-8"),
        ("text", {"pattern": "("}, "not a regular expression"),
        (b"caf\xc3", {}, "not UTF-8 at byte 3 .0xc3."),
    ],
)
def test_what_training_refuses(tmp_path, content, arguments, message):
    path = tmp_path / "t.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        train_bpe(path, **{"vocab_size": 300, "special_tokens": [END_OF_TEXT], "num_processes": 1} | arguments)


def test_replacing_what_is_not_utf8(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"caf\xff caf\xc3")
    vocab, _ = train_bpe(tmp_path / "t.txt", 262, num_processes=1, errors="replace")
    assert "\ufffd".encode() in vocab.values()
