"""From plain Python to the kernels while a program goes on: no id changes, nobody waits, threads and forks are safe."""

import os
import random
import subprocess
import sys
import threading

import llvmlite.binding  # noqa: F401  # what the loading thread imports
import numpy as np
import pytest
from helpers.split_patterns import PUBLISHED, hard_text
from helpers.texts import SEED_TEXT, SPECIAL_TOKENS, random_text

from tokenization import GPT2_PATTERN, InputError, Tokenizer, kernels, native, switching
from tokenization import tokenizer as tokenizer_module
from tokenization.bpe import learn_merges
from tokenization.pretokenization import count_pretokens

VOCAB, MERGES = learn_merges(count_pretokens(SEED_TEXT, SPECIAL_TOKENS), 500, SPECIAL_TOKENS)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(VOCAB, MERGES, SPECIAL_TOKENS)


def long_text(seed: int) -> str:
    source = random.Random(seed)
    return " ".join(random_text(source) for _ in range(60))


@pytest.mark.parametrize("asked", [1, 2, 5, 17])
def test_a_switch_between_any_two_pieces_changes_no_id(tokenizer, monkeypatch, asked):
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(switching, "BEHIND_FROM_CHARACTERS", 1)
    calls = []

    def load_at_once(load):
        calls.append(load)
        if len(calls) == asked:
            load()

    monkeypatch.setattr(switching, "load_behind", load_at_once)
    for seed in range(3):
        text = long_text(100 * asked + seed)
        expected = tokenizer.plain.encode(text)
        for encode in (tokenizer.encode, lambda text: list(tokenizer.encode_iterable(text))):
            tokenizer.switch.encoder, tokenizer.switch._encoded_plainly = None, 0
            calls.clear()
            assert encode(text) == expected
            assert tokenizer.switch.encoder
            assert len(calls) == asked
            assert encode(text) == expected


def test_threads_that_encode_while_the_kernels_are_loaded(monkeypatch):
    """Two tokenizers, three threads on each, of which any may ask for the kernels."""
    monkeypatch.setattr(switching, "BEHIND_FROM_CHARACTERS", 300)
    source = random.Random(1)
    texts = [random_text(source) for _ in range(150)]
    tokenizers = [Tokenizer(VOCAB, MERGES, special_tokens) for special_tokens in (SPECIAL_TOKENS, [])]
    expected = [[tokenizer.plain.encode(text) for text in texts] for tokenizer in tokenizers]
    wrong = []

    def work(number: int) -> None:
        tokenizer, ids = tokenizers[number % 2], expected[number % 2]
        order = random.Random(number).choices(range(len(texts)), k=400)
        wrong.extend(texts[index] for index in order if tokenizer.encode(texts[index]) != ids[index])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    if kernels._loader:
        kernels._loader.join()
    for tokenizer, ids in zip(tokenizers, expected, strict=True):
        tokenizer.switch.load()
        assert [tokenizer.encode(text) for text in texts] == ids


def test_kernels_that_cannot_be_loaded_are_done_without(tokenizer, monkeypatch, capfd):
    monkeypatch.setattr(switching, "BEHIND_FROM_CHARACTERS", 1)
    for failure in ((None, "plain Python (llvmlite is not installed)", "loading"), MemoryError("no room")):

        def load(work, pattern, failure=failure):
            if isinstance(failure, Exception):
                raise failure
            return failure

        monkeypatch.setattr(kernels, "load_kernels", load)
        for seed in range(3):
            text = long_text(seed)
            assert tokenizer.encode(text) == tokenizer.plain.encode(text)
            if kernels._loader:
                kernels._loader.join()
        assert tokenizer.switch.encoder is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("loaded", "cached", "least"), [(True, True, 30_000), (False, True, 500_000), (False, False, 4_000_000)]
)
def test_the_text_that_is_worth_waiting_for(monkeypatch, loaded, cached, least):
    monkeypatch.setattr(kernels, "_loaded", {("encoding", GPT2_PATTERN)} if loaded else set())
    monkeypatch.setattr(kernels, "are_cached", lambda pattern, work: cached)
    monkeypatch.setattr(kernels, "load_kernels", lambda work, pattern: (kernels, "compiled kernels", "loading"))
    assert kernels.kernels_for(GPT2_PATTERN, least, "encoding")[:2] == (kernels, "compiled kernels")
    native, reason, *_ = kernels.kernels_for(GPT2_PATTERN, least - 1, "encoding")
    assert native is None
    assert reason == f"plain Python (less than {max(least, 500_000) / 1e6:g} MB)"


@pytest.mark.parametrize(
    ("folder", "said"), [("cache", "about 2 s, once\n"), ("", "about 2 s; no folder can keep them\n")]
)
def test_compiling_is_a_phase_and_said_in_a_line_by_commands_alone(monkeypatch, capfd, folder, said):
    monkeypatch.setattr(native, "compile_kernels", lambda *arguments: None)
    monkeypatch.setattr(native, "cache_folder", lambda: folder)

    def choose(cached: bool) -> str:
        monkeypatch.setattr(native, "are_cached", lambda work, pattern: cached)
        monkeypatch.setattr(kernels, "_loaded", set())
        kernels._log_compiling.cache_clear()
        kernels.load_kernels.cache_clear()
        phases = [
            kernels.kernels_for(GPT2_PATTERN, 1 << 40, work).phase for work in ("training", "encoding", "training")
        ]
        assert phases[2] == "loading"  # a second time
        return phases[0]

    try:
        assert choose(cached=False) == "compiling"
        assert capfd.readouterr() == ("", "")
        with kernels.announcing():
            assert choose(cached=True) == "loading"
            assert capfd.readouterr() == ("", "")
            assert choose(cached=False) == "compiling"
        assert capfd.readouterr() == ("", f"compiling the tokenizer's kernels, {said}")
        assert choose(cached=False) == "compiling"
        assert capfd.readouterr() == ("", "")
    finally:
        kernels.load_kernels.cache_clear()


def test_a_second_tokenizer_soon_takes_the_kernels_that_are_loaded(tokenizer, monkeypatch):
    tokenizer.switch.load()
    assert kernels.are_loaded(tokenizer.pattern, "encoding")
    monkeypatch.setattr(switching, "load_behind", lambda load: load())
    second = Tokenizer(VOCAB, MERGES, SPECIAL_TOKENS)
    text = "ab " * 6_000
    assert second.encode(text) == tokenizer.encode(text)
    assert second.switch.encoder is None
    assert second.encode(text) == tokenizer.encode(text)
    assert second.switch.encoder


@pytest.mark.parametrize(
    "pattern", [r"\w+|\W", "[a-z]+", "x*", "|a", r"(?<=a)b|\s+(?!\S)|\S", r"[^\n]*\n?", *PUBLISHED.values()]
)
def test_any_other_pattern_is_split_by_regex_and_merged_by_the_kernels(pattern, monkeypatch):
    monkeypatch.setattr("tokenization.native.worker.KEPT_BYTES", 1 << 12)  # the longest text needs more, and pieces
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 1 << 11)
    pattern = f"(?:{pattern})"  # no longer one that a scanner knows
    source = random.Random(6)
    counts = count_pretokens(SEED_TEXT + "".join(hard_text(source)[:50] for _ in range(100)), SPECIAL_TOKENS, pattern)
    tokenizer = Tokenizer(*learn_merges(counts, 350, SPECIAL_TOKENS), SPECIAL_TOKENS, pattern)
    tokenizer.switch.load()
    assert type(tokenizer.switch.encoder) is native.PieceEncoder
    texts = [draw(source) for _ in range(40) for draw in (random_text, hard_text)]
    texts += ["", "".join(texts), SPECIAL_TOKENS[0]]
    assert len(texts[-2]) > 1 << 12
    expected = [tokenizer.plain.encode(text) for text in texts]
    assert list(map(tokenizer.encode, texts)) == expected
    assert tokenizer.encode_batch(texts, 2) == expected
    assert [ids.tolist() for ids in map(tokenizer.encode_to_numpy, texts)] == expected
    assert list(tokenizer.encode_iterable(texts)) == tokenizer.plain.encode("".join(texts))


def test_pieces_begin_again_where_the_table_or_the_memory_was_full(monkeypatch):
    """A full table is renewed in the middle of a text, and a long piece needs more memory than there is at first."""
    monkeypatch.setattr("tokenization.native.worker.WORK_TOKENS", 100)
    tokenizer = Tokenizer(VOCAB, MERGES, SPECIAL_TOKENS, r"(?:\w+|\W)")
    tokenizer.switch.load()
    source = random.Random(7)
    lengths = source.choices([3, 8, 20, 400], [20, 40, 38, 2], k=30_000)
    text = " ".join("".join(source.choices("abcdé", k=length)) for length in lengths)
    assert tokenizer.encode(text) == tokenizer.plain.encode(text)


def test_files_of_other_patterns_are_encoded_plainly(tmp_path):
    """Processes share that work, which threads cannot: `regex` holds Python's lock."""
    tokenizer = Tokenizer(VOCAB, MERGES, SPECIAL_TOKENS, r"\w+|\W")
    native_module, reason, *_ = tokenizer.switch.choose(1 << 40)
    assert native_module is None
    assert reason == "plain Python (the kernels do not know the pattern)"


def test_texts_one_after_the_other_in_the_same_memory(tokenizer, monkeypatch):
    """What is left of a longer text, or of its ids, has no influence; around the length that fits."""
    monkeypatch.setattr("tokenization.native.worker.KEPT_BYTES", 200)
    tokenizer.switch.load()
    source = random.Random(2)
    for _ in range(500):
        text = random_text(source)
        assert tokenizer.encode(text) == tokenizer.plain.encode(text), repr(text)
    for length in range(195, 206):
        assert tokenizer.encode("ab" * length) == tokenizer.plain.encode("ab" * length)
        assert tokenizer.encode("x" * length) == tokenizer.plain.encode("x" * length)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("num_threads", [None, 1, 3])
def test_a_batch_and_an_array_are_what_single_calls_give(tokenizer, monkeypatch, loaded, num_threads):
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 300)
    if loaded:
        tokenizer.switch.load()
    source = random.Random(3)
    texts = [random_text(source) for _ in range(200)] + ["", long_text(1)]
    expected = [tokenizer.plain.encode(text) for text in texts]
    assert tokenizer.encode_batch(iter(texts), num_threads) == expected
    assert tokenizer.decode_batch(expected) == texts
    arrays = [tokenizer.encode_to_numpy(text) for text in texts]
    assert {array.dtype for array in arrays} == {np.dtype(np.uint16)}
    assert [array.tolist() for array in arrays] == expected
    assert tokenizer.decode_batch(arrays) == texts
    assert tokenizer.encode_batch([], num_threads) == tokenizer.decode_batch([]) == []


@pytest.mark.parametrize("last_token", [b"no merge's", b"'t"])
def test_a_batch_where_every_id_of_16_bits_is_a_token(last_token):
    """So that none is free for what stands between two texts."""
    others = (b"token %d" % number for number in range(len(VOCAB), 65535))
    vocab = dict(enumerate([*VOCAB.values(), *others, last_token]))
    tokenizer = Tokenizer(vocab, [*MERGES, (b"'", b"t")] if last_token == b"'t" else MERGES, SPECIAL_TOKENS)
    tokenizer.switch.load()
    texts = [SEED_TEXT, "", "'t", "it's, isn't it?"]
    assert tokenizer.encode_batch(texts) == [tokenizer.plain.encode(text) for text in texts]
    assert (65535 in tokenizer.encode("'t")) == (last_token == b"'t")


def test_a_batch_names_what_cannot_be_encoded(tokenizer):
    with pytest.raises(InputError, match="texts is a string; it must be a list"):
        tokenizer.encode_batch("text")
    tokenizer.switch.load()
    with pytest.raises(InputError, match=r"lone surrogate U\+D800"):
        tokenizer.encode_batch(["a", "\ud800"])
    with pytest.raises(InputError, match=r"lone surrogate U\+D800"):
        tokenizer.encode_to_numpy("\ud800")
    with pytest.raises(InputError, match="token id 9999 is not in the vocabulary"):
        tokenizer.decode_batch([[97], [9999]])


@pytest.mark.parametrize("kind", [list, iter, np.int64, np.uint32, np.int8])
def test_many_ids_are_decoded_by_the_kernels_as_by_python(kind, monkeypatch):
    """A vocabulary with gaps, tokens of any bytes and lengths; ids that are unknown are refused in the same words."""
    source = random.Random(5)
    vocab = {token_id: token for token_id, token in VOCAB.items() if token_id % 7 or token_id < 256}
    vocab |= {600 + n: source.randbytes(source.choice([0, 1, 7, 8, 9, 300])) + b"%d" % n for n in range(50)}
    tokenizer = Tokenizer(vocab, [])
    tokenizer.switch.load()
    monkeypatch.setattr(type(tokenizer._decoder), "_join", None)  # plain Python would fail
    known = [token_id for token_id in vocab if kind is not np.int8 or token_id < 128]
    convert = kind if kind in (list, iter) else lambda ids: np.array(ids, kind)
    for count in (0, 1, 2, 128, 129, 1000, 10_000):
        ids = source.choices(known, k=count)
        data = b"".join(vocab[token_id] for token_id in ids)
        assert tokenizer.decode_bytes(convert(ids)) == data
        assert tokenizer.decode(convert(ids)) == data.decode(errors="replace")


@pytest.mark.parametrize("unknown", [-1, -301, 500, 10**6, 1 << 62, -(1 << 62), 1 << 70])
def test_many_ids_of_which_one_is_unknown(tokenizer, unknown):
    tokenizer.switch.load()
    for ids in ([97] * 200 + [unknown], [unknown] + [97] * 200):
        for given in (ids, iter(ids), np.array(ids)):
            with pytest.raises(InputError, match=f"token id {unknown} is not in the vocabulary"):
                tokenizer.decode(given)


class Index:
    """What is no int, but may stand for one; another list is emptied when it is asked which."""

    def __init__(self, value: int, emptied: list[object]) -> None:
        self.value, self.emptied = value, emptied

    def __index__(self) -> int:
        self.emptied.clear()
        return self.value


def test_ids_that_are_no_ints(tokenizer):
    tokenizer.switch.load()
    assert tokenizer.decode([np.uint16(97), np.int64(98), True]) == "ab\x01"
    with pytest.raises(InputError, match="token id a is not in the vocabulary"):
        tokenizer.decode(["a"])
    ids: list[object] = [97, 98, *[97] * 500]
    ids[1] = Index(98, ids)
    assert tokenizer.decode(ids) == ""  # there is nothing left, and nothing is read beyond it
    assert tokenizer.decode([97]) == "a"


def test_lists_share_their_numbers_and_count_the_references(tokenizer):
    tokenizer.switch.load()
    token_ids = tokenizer.encode("the cat " * 100)
    token_id = max(token_ids)
    assert token_id > 256  # below, Python shares them as well
    number = token_ids[token_ids.index(token_id)]
    before = sys.getrefcount(number)
    lists = [tokenizer.encode("the cat " * 100) for _ in range(10)]
    with_lists = sys.getrefcount(number)
    assert lists == [token_ids] * 10
    del lists
    assert (with_lists, sys.getrefcount(number)) == (before + 10 * token_ids.count(token_id), before)


def test_what_was_only_decoded_loads_the_kernels_as_well(tokenizer, monkeypatch):
    monkeypatch.setattr(switching, "BEHIND_FROM_CHARACTERS", 1000)
    monkeypatch.setattr(switching, "load_behind", lambda load: load())
    tokenizer.decode([97] * 500)
    assert tokenizer._decoder.native is None
    tokenizer.decode_batch([[97] * 500])
    assert tokenizer._decoder.native is not None


def test_arrays_of_a_large_vocabulary_are_uint32():
    wide = Tokenizer({token_id + 70_000: token for token_id, token in VOCAB.items()}, MERGES, SPECIAL_TOKENS)
    plain = wide.encode_to_numpy(SEED_TEXT)
    wide.switch.load()
    native = wide.encode_to_numpy(SEED_TEXT)
    assert plain.dtype == native.dtype == np.uint32
    assert plain.tolist() == native.tolist() == wide.plain.encode(SEED_TEXT)
    assert wide.decode(native) == SEED_TEXT


# --- processes of their own ---


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


START = """
import os, random, sys, threading, time
from tokenization import Tokenizer, kernels, switching
from tokenization.bpe import learn_merges
from tokenization.pretokenization import count_pretokens
text = "the cat's hat isn't theirs; they'll say 1234 reasons. " * 100
tokenizer = Tokenizer(*learn_merges(count_pretokens(text), 300))
expected = tokenizer.encode(text)
assert "llvmlite" not in sys.modules and kernels._loader is None
switching.BEHIND_FROM_CHARACTERS = 1
tokenizer.encode("a")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot fork")
def test_a_process_that_forks_while_the_kernels_are_loaded():
    """Children in every state: plain, loading anew, loaded. None hangs, and all ids are the same."""
    code = """
import warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # Python 3.12; see pyproject
def child(number):
    assert kernels._loader is None and kernels._stepping.acquire(blocking=False)
    kernels._stepping.release()
    ended = time.monotonic() + 60
    while number == 0 and tokenizer.switch.encoder is None and time.monotonic() < ended:
        assert tokenizer.encode(text) == expected
    assert number or tokenizer.switch.encoder
    assert tokenizer.encode(text) == expected

children = number = 0
while tokenizer.switch.encoder is None:
    assert tokenizer.encode(text) == expected
    pid = os.fork()
    if not pid:
        try:
            child(number)
        except BaseException:
            os._exit(1)
        os._exit(0)
    children += os.waitpid(pid, 0)[1] == 0
    number += 1
assert tokenizer.encode(text) == expected
print(children == number > 0, "llvmlite" in sys.modules)
"""
    assert run_python(START + code) == "True True\n"


@pytest.mark.parametrize("seconds", [0, 0.2])
def test_a_process_that_ends_while_the_kernels_are_loaded(seconds):
    assert run_python(START + f"time.sleep({seconds}); print(tokenizer.encode(text) == expected)") == "True\n"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 3, 6])
def test_a_process_that_ends_while_the_kernels_are_compiled(seconds, tmp_path):
    code = START + f"time.sleep({seconds}); print(tokenizer.encode(text) == expected)"
    assert run_python(code, TOKENIZATION_CACHE_DIR=str(tmp_path)) == "True\n"
