"""Proves that the compiled kernels encode files and streams as the plain-Python reference does, in bounded memory."""

import random
from pathlib import Path

import numpy as np
import pytest
from helpers.native import NEVER, new_encoder, take_kernels_from
from helpers.texts import SEED_TEXT, SPECIAL_TOKENS

from tokenization import END_OF_TEXT, InputError, Tokenizer, train_bpe
from tokenization.bpe import learn_merges
from tokenization.native.words import WordCutter
from tokenization.pretokenization import PATTERNS
from tokenization.text.corpus import Corpus

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
    assert np.concatenate([ids for _, ids in results]).tolist() == tokenizer.plain.encode(run + "\n")


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("alphabet", ["a", "abcdefgh", "中文字漢", "0123", " ", "!=", "<|endoftext|>"])
def test_a_stream_without_spaces_is_encoded_in_bounded_memory(tokenizer, monkeypatch, alphabet, pattern):
    """No piece grows with the stream, and the ids are those of the whole word."""
    tokenizer = Tokenizer(tokenizer.vocab, tokenizer.merges, SPECIAL_TOKENS, pattern)
    tokenizer.switch.load()
    monkeypatch.setattr("tokenization.tokenizer.PIECE_CHARACTERS", 600)
    texts = ["x y ", *["".join(random.Random(13).choices(alphabet, k=300)) for _ in range(24)], "'s end"]
    assert max(map(len, tokenizer._pieces(texts))) < 8000
    assert list(tokenizer.encode_iterable(texts)) == tokenizer.plain.encode("".join(texts))


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
            place = cutter.certain_cut(data, tokenizer._sorted_tokens, tokenizer.plain.ranks)
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
        assert file.tokens.tolist() == tokenizer.plain.encode(text)


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
        assert file.tokens.tolist() == tokenizer.plain.encode(data.decode(errors="replace"))
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
    expected = tokenizer.plain.encode(text)
    take_kernels_from(len(text), monkeypatch)
    monkeypatch.setattr("tokenization.plain_encoding.pretokenize", None)  # the plain path would fail
    assert tokenizer.encode(text) == expected
