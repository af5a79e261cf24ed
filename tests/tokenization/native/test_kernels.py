"""The compiled kernels against the plain-Python reference, Hugging Face's tokenizers and tiktoken: no difference."""

import ctypes
import gzip
import mmap
import os
import random
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
from helpers.native import NEVER, take_kernels_from
from helpers.split_patterns import hard_text
from helpers.texts import SEED_TEXT, SPECIAL_TOKENS, WORDS, random_text
from tokenizers import decoders, models, pre_tokenizers, trainers

from tokenization import END_OF_TEXT, GPT2_PATTERN, InputError, Tokenizer, TrainingReport, native, train_bpe
from tokenization import kernels as kernels_module
from tokenization.bpe import learn_merges
from tokenization.corpus import Corpus
from tokenization.encoding import EncodingReport
from tokenization.native import Window, learning
from tokenization.native import table as table_module
from tokenization.native.compiling import Kernel
from tokenization.native.memory import PAIRS_FULL, PLACES_FULL, address_of
from tokenization.native.pairs import Trainer
from tokenization.native.text import first_invalid
from tokenization.native.words import WordCutter
from tokenization.pretokenization import PATTERNS, count_pretokens

NATIVE_MODULES = [module for name, module in sys.modules.items() if name.startswith("tokenization.native.")]


@pytest.fixture(scope="module")
def text() -> str:
    """A text of its own for training: words made of syllables, with Zipf's frequencies."""
    source = random.Random(0)
    syllables = [a + b for a in "bcdfglmnprst" for b in ("a", "e", "i", "on", "ur")]
    words = ["".join(source.choices(syllables, k=source.randint(1, 4))) for _ in range(3000)]
    drawn = source.choices(words, weights=[1 / rank for rank in range(1, 3001)], k=20000)
    return SEED_TEXT * 20 + " ".join(drawn) + END_OF_TEXT + SEED_TEXT


@pytest.fixture(scope="module")
def tokenizer(text: str) -> Tokenizer:
    return Tokenizer(*learn_merges(count_pretokens(text, SPECIAL_TOKENS), 2000, SPECIAL_TOKENS), SPECIAL_TOKENS)


@pytest.fixture
def always_compiled(monkeypatch):
    take_kernels_from(0, monkeypatch)


def encoder_of(tokenizer: Tokenizer) -> native.Encoder:
    return tokenizer.switch.encoder_of(native)


def new_encoder(tokenizer: Tokenizer, dtype: str = "<u2") -> native.Encoder:
    """An encoder with tables of its own."""
    return native.Encoder(
        tokenizer._byte_ids, tokenizer._merge_ids, tokenizer._special_ids, tokenizer.pattern, np.dtype(dtype)
    )


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
        assert encode(encoder, text) == tokenizer.encode_plainly(text), repr(text)


@pytest.mark.slow
def test_ids_on_a_million_random_texts(tokenizer):
    source, encoder = random.Random(4), encoder_of(tokenizer)
    for _ in range(1_000_000):
        text = random_text(source)
        assert encode(encoder, text) == tokenizer.encode_plainly(text), repr(text)


def test_ids_at_every_cut(tokenizer):
    encoder, tricky = encoder_of(tokenizer), SEED_TEXT + "".join(WORDS)
    for cut in range(len(tricky)):
        for part in (tricky[:cut], tricky[cut:]):
            assert encode(encoder, part) == tokenizer.encode_plainly(part)


def test_ids_beyond_16_bits(tokenizer):
    """The same vocabulary with ids that need 32 bits, which leaves room for three of them in a slot."""
    wide = {token_id + 70000: token for token_id, token in tokenizer.vocab.items()}
    shifted = Tokenizer(wide, tokenizer.merges, SPECIAL_TOKENS)
    encoder, source = encoder_of(shifted), random.Random(5)
    assert encoder.dtype == np.uint32
    for _ in range(1000):
        text = random_text(source)
        assert encode(encoder, text) == [token_id + 70000 for token_id in tokenizer.encode_plainly(text)]


@pytest.mark.parametrize("merges", [[(b"!", b"!"), (b"!!", b"!!")], [(b"!", b"a"), (b"a", b"!!")], []])
def test_the_pair_of_ids_0(merges):
    """As a key it is 0, as a free slot of the table of merges is."""
    tokens = [b"!", *(bytes([value]) for value in range(256) if value != 33), *map(b"".join, merges)]
    tokenizer = Tokenizer(dict(enumerate(dict.fromkeys([*tokens, b"!!"]))), merges)
    for count in (1, 2, 3, 5, 17, 70, 3000):
        for text in ("!" * count, "!a!!" * count):
            assert encode(encoder_of(tokenizer), text) == tokenizer.encode_plainly(text)


def test_tables_that_grow_and_forget(tokenizer, text, monkeypatch):
    """Smallest tables: they fill up, grow, and are emptied when they may not grow."""
    monkeypatch.setattr(table_module.Table.__init__, "__defaults__", (1 << 13, 1 << 15))
    source = random.Random(6)
    rare = " ".join("".join(source.choices("abcdefghij", k=source.randint(3, 30))) for _ in range(30000))
    expected = tokenizer.encode_plainly(rare)
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
    assert encode(encoder_of(tokenizer), run) == tokenizer.encode_plainly(run)


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
            assert encode(encoder, run) == tokenizer.encode_plainly(run)


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
    for module in NATIVE_MODULES:
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
            assert encode(encoder, sample) == tokenizer.encode_plainly(sample)
        long = "".join(hard_text(source) for _ in range(200))
        path.write_bytes(long.encode())
        windows = [token_ids for _, token_ids in encoder.encode_corpus(Corpus([path]), 2)]
        assert len(windows) > 1
        assert np.concatenate(windows).tolist() == tokenizer.encode_plainly(long)
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


# --- training ---


def train(
    path: Path, size: int, ties: str, monkeypatch, from_bytes: int, special_tokens=(END_OF_TEXT,), threads: int = 2
):
    take_kernels_from(from_bytes, monkeypatch)
    report = TrainingReport()
    result = train_bpe(path, size, special_tokens, ties=ties, num_processes=threads, report=report)
    assert report.path.startswith("plain Python" if from_bytes else "compiled kernels")
    return result, (report.text_bytes, report.pretokens, report.unique_pretokens, report.longest_token)


@pytest.mark.parametrize("ties", ["lexicographic", "huggingface"])
@pytest.mark.parametrize("size", [257, 300, 3000])
def test_merges_equal_the_reference(text, tmp_path, monkeypatch, ties, size):
    path = tmp_path / "text.txt"
    path.write_text(text, newline="")
    expected = train(path, size, ties, monkeypatch, NEVER)
    assert train(path, size, ties, monkeypatch, 0) == expected
    assert train(path, size, ties, monkeypatch, 0, threads=1) == expected


@pytest.mark.parametrize("ties", ["lexicographic", "huggingface"])
def test_merges_of_a_pattern_that_no_kernel_knows(text, tmp_path, monkeypatch, ties):
    """`regex` splits, the kernels merge; the smallest table grows, by slots and by text."""
    monkeypatch.setattr(table_module.Table.__init__, "__defaults__", (1 << 11, 1 << 8))
    path = tmp_path / "text.txt"
    path.write_text(text, newline="")
    results = []
    for from_bytes in (NEVER, 0):
        take_kernels_from(from_bytes, monkeypatch)
        report = TrainingReport()
        result = train_bpe(path, 900, SPECIAL_TOKENS, pattern=r"\w+\W?|\W+", ties=ties, num_processes=1, report=report)
        results.append((result, report.pretokens, report.unique_pretokens, report.longest_token))
        assert report.path.endswith("for the merges") == (from_bytes == 0)
    assert results[0] == results[1]


@pytest.mark.parametrize("ties", ["lexicographic", "huggingface"])
def test_merges_on_random_text(tmp_path, monkeypatch, ties):
    """Few letters, many ties, runs, special tokens within."""
    source, path = random.Random(ties), tmp_path / "text.txt"
    pools = [["a"], *map(list, ["ab", "abc", "ab ", "ab \n'st", "é中a b", "-=- ", "\x00\x00a ", "abcdefghij  "])]
    pools += [[unit * length + " " for length in range(1, 40)] for unit in ("a", "ab", "-=-")]
    for _ in range(100):
        pool, length = source.choice(pools), source.choice([2, 30, 300, 3000])
        special_tokens = source.choice([(), (END_OF_TEXT,), ("ab", "b a", END_OF_TEXT)])
        path.write_text("x" + END_OF_TEXT.join("".join(source.choices(pool, k=length)) for _ in range(2)), newline="")
        monkeypatch.setattr("tokenization.native.learning.FLOOR_SHARE", source.choice([1, 128]))
        size = 259 + source.choice([0, 5, 50, 500])
        expected = train(path, size, ties, monkeypatch, NEVER, special_tokens, threads=1)
        assert train(path, size, ties, monkeypatch, 0, special_tokens, threads=1) == expected


def test_lists_that_grow(text, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text(text, newline="")
    expected = train(path, 3000, "lexicographic", monkeypatch, 0)
    enlarge = Trainer.enlarge
    calls = []

    def note(trainer, status):
        calls.append(status)
        enlarge(trainer, status)

    monkeypatch.setattr(Trainer, "enlarge", note)
    monkeypatch.setattr("tokenization.native.pairs.SPARE_PLACES", 0)
    monkeypatch.setattr("tokenization.native.pairs.FIRST_PAIRS", 2000)
    assert train(path, 3000, "lexicographic", monkeypatch, 0) == expected
    assert {PLACES_FULL, PAIRS_FULL} == set(calls)


def test_the_counts_take_no_memory_while_merges_are_learnt(monkeypatch):
    table = native.table_of({b"abc" * length: length for length in range(1, 9)})
    slots, arena = weakref.ref(table.slots), weakref.ref(table.arena)
    run_trainer = learning.run_trainer

    def run(*arguments):
        assert slots() is None
        assert arena() is None
        return run_trainer(*arguments)

    monkeypatch.setattr(learning, "run_trainer", run)
    tokens, _ = native.learn_merges(table, [bytes([value]) for value in range(256)], 258, None, progress=False)
    assert tokens[256:] == [b"bc", b"abc"]


def test_merges_of_huggingface(text, tmp_path, always_compiled):
    path = tmp_path / "text.txt"
    path.write_text(text, newline="")
    vocab, merges = train_bpe(path, 1200, [END_OF_TEXT], ties="huggingface")
    other = tokenizers.Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1199, initial_alphabet=alphabet, show_progress=False)
    other.train_from_iterator(text.split(END_OF_TEXT), trainer)
    other.model.save(str(tmp_path))
    Tokenizer(vocab, merges, [END_OF_TEXT]).save(tmp_path / "ours")
    theirs, ours = (
        path.read_text().split("\n")[1:] for path in (tmp_path / "merges.txt", tmp_path / "ours/merges.txt")
    )
    assert ours == theirs


@pytest.mark.parametrize("name", ["text.txt", "text.txt.gz"])
def test_the_size_of_the_text_decides_and_not_that_of_the_file(tmp_path, monkeypatch, name):
    data = SEED_TEXT.encode() * 50
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    for from_bytes, path in ((len(data), "compiled kernels"), (len(data) + 1, "plain Python")):
        take_kernels_from(from_bytes, monkeypatch)
        training, encoding = TrainingReport(), EncodingReport()
        tokenizer = Tokenizer(*train_bpe(tmp_path / name, 300, report=training))
        tokenizer.encode_files([tmp_path / name], tmp_path / f"{from_bytes}.bin", 1, report=encoding)
        assert training.path.startswith(path)
        assert encoding.path == training.path


# --- files ---


def files_of(folder: Path, text: str) -> list[Path]:
    contents = [text, "", "one line", SEED_TEXT * 3 + END_OF_TEXT + " \n", "   ", "\u3000", text[:999], "x" * 3000]
    paths = [folder / f"{number}.txt" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content.encode())
    return paths


@pytest.mark.parametrize("window", [1, 64, 1000, 1 << 20])
def test_token_files_equal_the_reference(tokenizer, text, tmp_path, monkeypatch, window):
    """Any window, any number of threads: the bytes and the description of the reference."""
    paths = files_of(tmp_path, text[-20000:])
    expected = tokenizer.encode_files(paths, tmp_path / "expected.bin", 1).description
    take_kernels_from(0, monkeypatch)
    monkeypatch.setattr("tokenization.native.windows.WINDOW_BYTES", window)
    for threads in (1, 2, 3):
        assert tokenizer.encode_files(paths, tmp_path / "ids.bin", threads).description == expected
        assert (tmp_path / "ids.bin").read_bytes() == (tmp_path / "expected.bin").read_bytes()


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("alphabet", ["a", "abcdefgh", "中文字漢", "0123", " ", "!=", "aé1中!'", "<|endoftext|>"])
def test_a_text_without_spaces_is_encoded_in_bounded_memory(tokenizer, tmp_path, monkeypatch, alphabet, pattern):
    """No window grows with the file, and the ids are those of the whole word."""
    tokenizer = Tokenizer(tokenizer.vocab, tokenizer.merges, SPECIAL_TOKENS, pattern)
    run = "".join(random.Random(13).choices(alphabet, k=30_000))
    (tmp_path / "text.txt").write_text(run + "\n")
    monkeypatch.setattr("tokenization.native.windows.WINDOW_BYTES", 1000)
    results = list(new_encoder(tokenizer).encode_corpus(Corpus([tmp_path / "text.txt"]), 2))
    assert max(len(window.buffer) for window, _ in results) < 20_000
    assert np.concatenate([ids for _, ids in results]).tolist() == tokenizer.encode_plainly(run + "\n")


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("alphabet", ["a", "abcdefgh", "中文字漢", "0123", " ", "!=", "<|endoftext|>"])
def test_a_stream_without_spaces_is_encoded_in_bounded_memory(tokenizer, monkeypatch, alphabet, pattern):
    """No piece grows with the stream, and the ids are those of the whole word."""
    tokenizer = Tokenizer(tokenizer.vocab, tokenizer.merges, SPECIAL_TOKENS, pattern)
    tokenizer.switch.load()
    monkeypatch.setattr("tokenization.tokenizer.PIECE_CHARACTERS", 600)
    texts = ["x y ", *["".join(random.Random(13).choices(alphabet, k=300)) for _ in range(24)], "'s end"]
    assert max(map(len, tokenizer._pieces(texts))) < 8000
    assert list(tokenizer.encode_iterable(texts)) == tokenizer.encode_plainly("".join(texts))


def test_a_cut_of_a_stream_is_certain(monkeypatch):
    """However little is known behind it: of merges that reach far, and of every way that the word can go on."""
    monkeypatch.setattr("tokenization.native.words.DECIDING", 1)
    source, certain = random.Random(5), 0
    for _ in range(12):
        vocab, merges = learn_merges({bytes(source.choices(b"ab", k=200)): 1 for _ in range(3)}, 280)
        tokenizer = Tokenizer(vocab, merges)
        cutter = new_encoder(tokenizer).cutter
        for _ in range(5):
            data = bytes(source.choices(b"ab", k=source.randrange(60, 200)))
            place = cutter.certain_cut(data, tokenizer._sorted_tokens, tokenizer._ranks)
            certain += place > 0
            for _ in range(10 if place else 0):
                whole = data + bytes(source.choices(b"ab", k=source.randrange(60)))
                parts = tokenizer.encode_bytes(whole[:place]) + tokenizer.encode_bytes(whole[place:])
                assert parts == tokenizer.encode_bytes(whole)
    assert 10 < certain < 60


def test_a_word_that_was_cut_at_a_wrong_place_is_refused(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("thethethe" * 1000)
    monkeypatch.setattr("tokenization.native.windows.WINDOW_BYTES", 1000)
    cut = WordCutter.cut
    monkeypatch.setattr(WordCutter, "cut", lambda cutter, window: (cut(cutter, window)[0] + 1, cut(cutter, window)[1]))
    with pytest.raises(InputError, match=r"text.txt: the word at byte \d+ is too long"):
        list(new_encoder(tokenizer).encode_corpus(Corpus([tmp_path / "text.txt"]), 1))


def test_no_cut_lies_inside_a_special_token(tokenizer, tmp_path, always_compiled, monkeypatch):
    """One with white space inside, at every place around the end of a window."""
    monkeypatch.setattr("tokenization.native.windows.WINDOW_BYTES", 64)
    for before in range(30, 70):
        text = "x" * before + "<|end of|>" + "y" * 40 + " z" * 40
        (tmp_path / "text.txt").write_text(text)
        file = tokenizer.encode_files([tmp_path / "text.txt"], tmp_path / "ids.bin", 1)
        assert file.tokens.tolist() == tokenizer.encode_plainly(text)


@pytest.mark.parametrize("from_bytes", [0, NEVER])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xe4\xb8", b"\x80"])
def test_invalid_utf8(tokenizer, tmp_path, monkeypatch, from_bytes, bad):
    take_kernels_from(from_bytes, monkeypatch)
    monkeypatch.setattr("tokenization.native.windows.WINDOW_BYTES", 1000)
    path = tmp_path / "text.txt"
    good = "naïve words \n" * 300
    for data, position in ((good.encode() + bad + b" rest\n", len(good.encode())), (b"end" + bad, 3)):
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"not UTF-8 at byte {position} \\(0x{bad[0]:02x}\\)"):
            tokenizer.encode_files([path], tmp_path / "ids.bin", 2)
        with pytest.raises(InputError, match=f"byte {position} "):
            train_bpe(path, 300)
        assert not (tmp_path / "ids.bin").exists()
        file = tokenizer.encode_files([path], tmp_path / "ids.bin", 2, errors="replace")
        assert file.tokens.tolist() == tokenizer.encode_plainly(data.decode(errors="replace"))
        (tmp_path / "ids.bin").unlink()


def test_a_byte_without_a_token(tokenizer, tmp_path, always_compiled):
    vocab = {token_id: token for token_id, token in tokenizer.vocab.items() if b"\x00" not in token}
    (tmp_path / "text.txt").write_bytes(b"a \x00 b")
    with pytest.raises(InputError, match="byte 0x00"):
        Tokenizer(vocab, []).encode_files([tmp_path / "text.txt"], tmp_path / "ids.bin")


@pytest.mark.parametrize("from_bytes", [0, NEVER])
def test_lone_surrogates_are_an_error(tokenizer, monkeypatch, from_bytes):
    take_kernels_from(from_bytes, monkeypatch)
    with pytest.raises(InputError, match=r"lone surrogate U\+D800"):
        tokenizer.encode("ab \ud800")


def test_large_strings_take_the_kernels(tokenizer, text, monkeypatch):
    expected = tokenizer.encode_plainly(text)
    take_kernels_from(len(text), monkeypatch)
    monkeypatch.setattr("tokenization.tokenizer.pretokenize", None)  # the plain path would fail
    assert tokenizer.encode(text) == expected


# --- without a compiler, without a cache ---


def run_python(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True)
    return done.stdout


def test_small_inputs_do_not_import_llvm():
    assert (
        run_python(
            "import sys; from tokenization import *;"
            "t = Tokenizer({i: bytes([i]) for i in range(256)}, []); t.encode('hello');"
            "print('llvmlite' in sys.modules)"
        )
        == "False\n"
    )


def test_without_llvmlite_the_reference_is_used(tmp_path):
    (tmp_path / "text.txt").write_text("hello world " * 10)
    code = f"""
import sys
sys.modules["llvmlite"] = None
from tokenization import *
from tokenization import kernels
kernels.KERNELS_FROM_BYTES = 0
report = TrainingReport()
train_bpe({str(tmp_path / "text.txt")!r}, 260, report=report)
print(report.path)
"""
    assert run_python(code) == "plain Python (llvmlite is not installed)\n"


def test_a_compiler_that_cannot_be_used_is_said_and_done_without(tmp_path):
    (tmp_path / "text.txt").write_text("hello world " * 10)
    code = f"""
import llvmlite.binding
def fail(*arguments, **names):
    raise RuntimeError("no target for this triple")
llvmlite.binding.create_mcjit_compiler = fail
from tokenization import *
from tokenization import kernels
from tokenization.encoding import EncodingReport
kernels.KERNELS_FROM_BYTES = 0
training, encoding = TrainingReport(), EncodingReport()
tokenizer = Tokenizer(*train_bpe({str(tmp_path / "text.txt")!r}, 260, report=training))
tokenizer.encode_files([{str(tmp_path / "text.txt")!r}], {str(tmp_path / "ids.bin")!r}, report=encoding)
print(training.path, encoding.path, *training.seconds, sep="; ")
"""
    training, encoding, *phases = run_python(code).strip().split("; ")
    assert training == encoding
    assert training == "plain Python (the kernels cannot be compiled: no target for this triple)"
    assert "compiling" not in phases


def test_whatever_the_compiler_raises_leads_to_plain_python(monkeypatch):
    def fail(work: str, pattern: str, step: object) -> None:
        raise OSError("libLLVM.so: cannot\nallocate memory")

    monkeypatch.setattr(native, "compile_kernels", fail)
    module, reason, _ = kernels_module.load_kernels.__wrapped__("training", GPT2_PATTERN)
    assert module is None
    assert reason == "plain Python (the kernels cannot be compiled: libLLVM.so: cannot allocate memory)"


@pytest.mark.parametrize("work", ["training", "encoding"])
def test_nothing_is_left_to_compile_while_phases_are_timed(work, tokenizer, text, tmp_path, always_compiled):
    """Every kernel that the package calls for the work is known to the function that compiles them beforehand."""
    path = tmp_path / "text.txt"
    path.write_text(text, newline="")
    native.compile_kernels(work, tokenizer.pattern)
    kernels = {value for module in NATIVE_MODULES for value in vars(module).values() if isinstance(value, Kernel)}
    loaded = {kernel for kernel in kernels if kernel.address}
    assert len(kernels) > 50
    assert len(loaded) >= 5
    if work == "training":
        report = TrainingReport()
        train_bpe(path, 1000, [END_OF_TEXT], num_processes=2, report=report)
        assert list(report.seconds) == ["loading", "reading", "pre-tokenizing", "merges"]
    else:
        tokenizer.encode_files([path], tmp_path / "ids.bin", 2)
    assert {kernel for kernel in kernels if kernel.address} == loaded
