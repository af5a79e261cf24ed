"""Proves that the compiled kernels encode as the plain-Python reference, Hugging Face's tokenizers and tiktoken do."""

import ctypes
import mmap
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
from helpers.native import native_modules, new_encoder, take_kernels_from
from helpers.split_patterns import hard_text
from helpers.texts import SEED_TEXT, SPECIAL_TOKENS, WORDS, random_text
from tokenizers import decoders, models, pre_tokenizers

from tokenization import END_OF_TEXT, GPT2_PATTERN, Tokenizer, native, train_bpe
from tokenization.bpe import learn_merges
from tokenization.native import Window
from tokenization.native import table as table_module
from tokenization.native.memory import address_of
from tokenization.native.text import first_invalid
from tokenization.pretokenization import PATTERNS, count_pretokens
from tokenization.text.corpus import Corpus


def encoder_of(tokenizer: Tokenizer) -> native.Encoder:
    return tokenizer.switch.encoder_of(native)


def encode(encoder: native.Encoder, text: str) -> list[int]:
    return encoder.encode(Window.of_bytes(text.encode())).tolist()


# --- text ---


def test_validity_is_pythons():
    source = random.Random(2)
    for _ in range(3000):
        data = bytearray("".join(source.choices(WORDS, k=30)).encode())
        for _ in range(source.randrange(3)):
            data[source.randrange(len(data))] = source.choice(
                [0x80, 0xC0, 0xC1, 0xE0, 0xED, 0xF0, 0xF4, 0xF5, 0xFF, 0x41]
            )
        window = Window.of_bytes(bytes(data[: source.randrange(len(data))]))
        try:
            window.text  # noqa: B018
            wrong = window.length
        except UnicodeDecodeError as error:
            wrong = error.start
        start = address_of(window.buffer)
        assert first_invalid(start, start + window.length) - start == wrong


# --- encoding ---


def test_ids_on_random_text(tokenizer):
    source, encoder = random.Random(3), encoder_of(tokenizer)
    for _ in range(3000):
        text = random_text(source)
        assert encode(encoder, text) == tokenizer.plain.encode(text), repr(text)


@pytest.mark.slow
def test_ids_on_a_million_random_texts(tokenizer):
    source, encoder = random.Random(4), encoder_of(tokenizer)
    for _ in range(1_000_000):
        text = random_text(source)
        assert encode(encoder, text) == tokenizer.plain.encode(text), repr(text)


def test_ids_at_every_cut(tokenizer):
    encoder, tricky = encoder_of(tokenizer), SEED_TEXT + "".join(WORDS)
    for cut in range(len(tricky)):
        for part in (tricky[:cut], tricky[cut:]):
            assert encode(encoder, part) == tokenizer.plain.encode(part)


def test_ids_beyond_16_bits(tokenizer):
    """The same vocabulary with ids that need 32 bits, which leaves room for three of them in a slot."""
    wide = {token_id + 70000: token for token_id, token in tokenizer.vocab.items()}
    shifted = Tokenizer(wide, tokenizer.merges, SPECIAL_TOKENS)
    encoder, source = encoder_of(shifted), random.Random(5)
    assert encoder.dtype == np.uint32
    for _ in range(1000):
        text = random_text(source)
        assert encode(encoder, text) == [token_id + 70000 for token_id in tokenizer.plain.encode(text)]


@pytest.mark.parametrize("merges", [[(b"!", b"!"), (b"!!", b"!!")], [(b"!", b"a"), (b"a", b"!!")], []])
def test_the_pair_of_ids_0(merges):
    """As a key it is 0, as a free slot of the table of merges is."""
    tokens = [b"!", *(bytes([value]) for value in range(256) if value != 33), *map(b"".join, merges)]
    tokenizer = Tokenizer(dict(enumerate(dict.fromkeys([*tokens, b"!!"]))), merges)
    for count in (1, 2, 3, 5, 17, 70, 3000):
        for text in ("!" * count, "!a!!" * count):
            assert encode(encoder_of(tokenizer), text) == tokenizer.plain.encode(text)


def test_tables_that_grow_and_forget(tokenizer, text, monkeypatch):
    """Smallest tables: they fill up, grow, and are emptied when they may not grow."""
    monkeypatch.setattr(table_module.Table.__init__, "__defaults__", (1 << 13, 1 << 15))
    source = random.Random(6)
    rare = " ".join("".join(source.choices("abcdefghij", k=source.randint(3, 30))) for _ in range(30000))
    expected = tokenizer.plain.encode(rare)
    for max_slots in (1 << 13, 1 << 14, 1 << 21):
        monkeypatch.setattr(table_module, "MAX_SLOTS", max_slots)
        encoder = new_encoder(tokenizer)
        for _ in range(2):
            assert encode(encoder, rare) == expected


@pytest.mark.parametrize(
    "alphabet", ["a", "ab", "abcdefghijklmnopqrstuvwxyz", "0123456789", "中文字漢", "😀🏽", " ", "\n", "="]
)
def test_long_runs(tokenizer, alphabet):
    """One pre-token of many windows equals one heap over all of it."""
    run = "".join(random.Random(7).choices(alphabet, k=20_000))
    assert encode(encoder_of(tokenizer), run) == tokenizer.plain.encode(run)


def test_windows_joined_with_random_merges():
    """Vocabularies that no training would give, where windows agree late or never."""
    source = random.Random(8)
    for _ in range(60):
        tokens = [b"a", b"b", b"c"]
        merges: list[tuple[bytes, bytes]] = []
        while len(tokens) < 40:
            left, right = source.choice(tokens), source.choice(tokens)
            if left + right not in tokens and len(left + right) < 200:
                tokens.append(left + right)
                merges.append((left, right))
        source.shuffle(merges)
        vocab = dict(enumerate([bytes([value]) for value in range(256)] + tokens[3:]))
        tokenizer = Tokenizer(vocab, merges)
        encoder = encoder_of(tokenizer)
        for _ in range(5):
            run = "".join(source.choices("abc"[: source.randint(1, 3)], k=source.randint(100, 6000)))
            assert encode(encoder, run) == tokenizer.plain.encode(run)


def seconds(function, *args) -> float:
    start = time.thread_time()  # of the processor: other processes do not count
    function(*args)
    return time.thread_time() - start


def test_threads_share_a_table(tokenizer, text, tmp_path, monkeypatch):
    """Four threads fill small tables at the same time, which grow and are replaced under them."""
    source, path = random.Random(12), tmp_path / "text.txt"
    path.write_text(" ".join("".join(source.choices("abcdefghij", k=source.randint(2, 25))) for _ in range(40_000)))
    monkeypatch.setattr(table_module.Table.__init__, "__defaults__", (1 << 13, 1 << 15))
    monkeypatch.setattr("tokenization.native.windows.WINDOW_BYTES", 1 << 13)

    def ids(num_threads: int) -> list[int]:
        encoder = new_encoder(tokenizer)
        results = encoder.encode_corpus(Corpus([path]), num_threads)
        return np.concatenate([token_ids for _, token_ids in results]).tolist()

    expected = ids(1)
    for max_slots in (1 << 13, 1 << 15, 1 << 20):
        monkeypatch.setattr(table_module, "MAX_SLOTS", max_slots)
        assert ids(4) == expected


def test_room_for_a_long_text_is_made_at_once(tokenizer, tmp_path, monkeypatch):
    encoder, text = new_encoder(tokenizer), " ".join(f"word{number}" for number in range(2000))
    ids, small = encode(encoder, text), encoder.table.current
    for text_bytes, num_slots in ((0, 1 << 15), (100_000_000, 1 << 19), (1000, 1 << 19), (1 << 40, 1 << 20)):
        encoder.table.reserve(text_bytes)
        assert len(encoder.table.current.slots) == num_slots
        assert encoder.table.current.unique == small.unique > 2000
        assert encode(encoder, text) == ids
        assert encoder.table.current.unique == small.unique  # all were found
    monkeypatch.setattr(table_module, "TEXT_PER_PRETOKEN", 1)
    (tmp_path / "text.txt").write_text(text * 3)
    encoder = new_encoder(tokenizer)
    next(encoder.encode_corpus(Corpus([tmp_path / "text.txt"]), 1))
    assert len(encoder.table.current.slots) == 1 << 17 > 8 / 5 * 3 * len(text)


def test_room_is_made_while_threads_encode(tokenizer, tmp_path, monkeypatch):
    source, path = random.Random(13), tmp_path / "text.txt"
    path.write_text(" ".join("".join(source.choices("abcdefghij", k=source.randint(2, 25))) for _ in range(20_000)))
    monkeypatch.setattr("tokenization.native.windows.WINDOW_BYTES", 1 << 13)
    monkeypatch.setattr(table_module.Table.__init__, "__defaults__", (1 << 13, 1 << 15))
    expected = np.concatenate([ids for _, ids in new_encoder(tokenizer).encode_corpus(Corpus([path]), 1)]).tolist()
    encoder, got = new_encoder(tokenizer), []
    for number, (_, ids) in enumerate(encoder.encode_corpus(Corpus([path]), 4)):
        got += ids.tolist()
        encoder.table.reserve(number * 333 << 9)
    assert got == expected


class GuardedNumpy:
    """numpy, but the memory behind each new array cannot be touched: a step too far ends the process."""

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=np.float64) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pages = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
        start = np.frombuffer(memory, np.uint8).ctypes.data
        assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + pages), mmap.PAGESIZE, 0) == 0
        return np.frombuffer(memory, np.uint8)[pages - size : pages].view(dtype).reshape(shape)

    zeros = empty  # new pages are 0


@pytest.mark.skipif(sys.platform == "win32", reason="has no mprotect")
@pytest.mark.parametrize(("seed", "pattern"), list(enumerate(PATTERNS.values())))
def test_nothing_behind_an_array_is_touched(tokenizer, tmp_path, monkeypatch, seed, pattern):
    tokenizer = Tokenizer(tokenizer.vocab, tokenizer.merges, SPECIAL_TOKENS, pattern)
    for module in native_modules():
        if hasattr(module, "np"):
            monkeypatch.setattr(module, "np", GuardedNumpy())
    monkeypatch.setattr("tokenization.native.windows.WINDOW_BYTES", 999)
    monkeypatch.setattr(table_module.Table.__init__, "__defaults__", (1 << 13, 1 << 15))
    take_kernels_from(0, monkeypatch)
    source, path = random.Random(seed), tmp_path / "text.txt"
    for dtype in ("<u2", "<u4"):
        encoder = new_encoder(tokenizer, dtype)
        for _ in range(150):
            sample = hard_text(source)
            assert encode(encoder, sample) == tokenizer.plain.encode(sample)
        long = "".join(hard_text(source) for _ in range(200))
        path.write_bytes(long.encode())
        windows = [token_ids for _, token_ids in encoder.encode_corpus(Corpus([path]), 2)]
        assert len(windows) > 1
        assert np.concatenate(windows).tolist() == tokenizer.plain.encode(long)
    for size in (260, 400, 1000):
        ties = source.choice(["lexicographic", "huggingface"])
        train_bpe(path, size, SPECIAL_TOKENS, pattern=pattern, ties=ties)


@pytest.mark.parametrize("unit", [" ", "\n", "a", "7", "random letters", "random base64", "中", "😀", "\x00", "'s"])
def test_time_is_linear(tokenizer, unit):
    alphabet = {"random letters": "abcdefghijklmnopqrstuvwxyz", "random base64": "ABCDEFabcdef0123456789+/"}.get(
        unit, unit
    )
    source = random.Random(9)
    short = "".join(source.choices(alphabet, k=200_000)) if len(alphabet) > 2 else alphabet * 200_000
    encoder = encoder_of(tokenizer)
    encode(encoder, short[:100])
    once = min(seconds(encode, encoder, short) for _ in range(3))
    four_times = min(seconds(encode, encoder, 4 * short) for _ in range(3))
    assert four_times < 8 * once + 0.05  # a quadratic method would take 16 times as long


def huggingface_tokenizer(tokenizer: Tokenizer, folder: Path) -> tokenizers.Tokenizer:
    tokenizer.save(folder)
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    other = tokenizers.Tokenizer(model)
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.decoder = decoders.ByteLevel()
    other.add_special_tokens(tokenizer.special_tokens)
    return other


def test_ids_of_huggingface_and_tiktoken(text, tmp_path):
    """The same vocabulary in three libraries; assigned characters only, for their Unicode versions differ."""
    specials = [END_OF_TEXT]
    tokenizer = Tokenizer(*learn_merges(count_pretokens(text, specials), 1500, specials), specials)
    ranks = {token: token_id for token_id, token in tokenizer.vocab.items() if token != END_OF_TEXT.encode()}
    other = huggingface_tokenizer(tokenizer, tmp_path)
    third = tiktoken.Encoding(
        "test", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: tokenizer.end_of_text_id}
    )
    source, encoder = random.Random(10), encoder_of(tokenizer)
    words = [word for word in WORDS if "\x1c" not in word and "\x85" not in word]
    for _ in range(500):
        sample = "".join(source.choices(words, k=source.randrange(60)))
        ids = encode(encoder, sample)
        assert ids == other.encode(sample).ids
        assert ids == third.encode(sample, allowed_special="all")
