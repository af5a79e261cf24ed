"""Proves that encoding with GPT-2's vocabulary equals tiktoken and Hugging Face id by id, that decoding inverts it,
that a stream encodes as the whole in constant memory, and that a tokenizer comes back from its files unchanged."""

import errno
import itertools
import json
import os
import random
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import tiktoken
import tokenizers
import torch
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from tokenization import END_OF_TEXT, GPT2_PATTERN, InputError, Tokenizer, plain_encoding
from tokenization import tokenizer as tokenizer_module
from tokenization.bpe import learn_merges, merge_by_rank

BYTES = {value: bytes([value]) for value in range(256)}
SPECIAL_TOKENS = [END_OF_TEXT, END_OF_TEXT * 2, "<|", "a b", "\n\n", "\u3000é 漢", "😀"]
TRICKY = f"we'll  go\n\n\nnow{END_OF_TEXT * 3} a b<|endof \t it's\u3000é 漢字 '  s|>\n\n 😀👩‍👩‍👧  "


@pytest.fixture(scope="module")
def gpt2_tiktoken(gpt2_files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")  # no copy kept; the loader checks vocab.json against merges.txt itself
        ranks = data_gym_to_mergeable_bpe_ranks(str(gpt2_files / "merges.txt"), str(gpt2_files / "vocab.json"))
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256})


def hugging_face(folder, special_tokens) -> tokenizers.Tokenizer:
    model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    other = tokenizers.Tokenizer(model)
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    other.decoder = tokenizers.decoders.ByteLevel()
    other.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special_tokens])
    return other


@pytest.fixture(scope="module")
def gpt2_hugging_face(gpt2_files):
    return hugging_face(gpt2_files, [END_OF_TEXT])


@pytest.fixture(scope="module")
def special(small) -> Tokenizer:
    return Tokenizer(small.vocab, small.merges, SPECIAL_TOKENS)


def test_the_handouts_example():
    vocab = dict(enumerate([b" ", b"a", b"c", b"e", b"h", b"t", b"th", b" c", b" a", b"the", b" at"]))
    merges = [(b"t", b"h"), (b" ", b"c"), (b" ", b"a"), (b"th", b"e"), (b" a", b"t")]
    tokenizer = Tokenizer(vocab, merges)
    assert tokenizer.encode("the cat ate") == [9, 7, 1, 5, 10, 3]
    assert tokenizer.decode([9, 7, 1, 5, 10, 3]) == "the cat ate"


@pytest.mark.parametrize("seed", range(0, 2000, 100))
def test_gpt2_ids_equal_tiktoken_and_hugging_face(seed, random_text, gpt2, gpt2_tiktoken, gpt2_hugging_face):
    for text in (random_text(seed + n) for n in range(100)):
        text += END_OF_TEXT * (seed % 3) + random_text(seed + 5000, 20)
        token_ids = gpt2.encode(text)
        assert token_ids == gpt2_tiktoken.encode(text, allowed_special="all")
        assert token_ids == gpt2_hugging_face.encode(text).ids
        assert gpt2.decode(token_ids) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        " \n \n",
        "a" * 3000,
        " " * 3000,
        "\n" * 3000 + "x",
        "ab" * 2000,
        "=-" * 2000,
        "漢字かな交じり文" * 20,
        "نص عربي، हिन्दी, ไทย, 한국어",
        "".join(map(chr, range(0x250))),
        "# # ## ### #$",
        f"{END_OF_TEXT}{END_OF_TEXT} {END_OF_TEXT}\n",
        "<|endoftext|",
        TRICKY,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_gpt2_ids_of_odd_texts(text, gpt2, gpt2_tiktoken, gpt2_hugging_face):
    assert gpt2.encode(text) == gpt2_tiktoken.encode(text, allowed_special="all") == gpt2_hugging_face.encode(text).ids
    assert gpt2.decode(gpt2.encode(text)) == text


def test_gpt2_vocabulary(gpt2, gpt2_tiktoken):
    assert gpt2.vocab_size == len(gpt2.vocab) == gpt2_tiktoken.n_vocab == 50257
    assert gpt2.end_of_text_id == 50256
    assert gpt2.special_tokens == [END_OF_TEXT]
    for token_id in range(50256):
        assert gpt2.vocab[token_id] == gpt2_tiktoken.decode_single_token_bytes(token_id)
    assert (b"#", b"#") in gpt2.merges  # a line "# #", which is not a comment


def test_gpt2_without_special_tokens_reads_them_as_text(gpt2_files, gpt2_tiktoken):
    plain = Tokenizer.from_files(gpt2_files / "vocab.json", gpt2_files / "merges.txt")
    assert plain.encode(END_OF_TEXT) == gpt2_tiktoken.encode(END_OF_TEXT, disallowed_special=())
    assert plain.decode([50256]) == END_OF_TEXT
    assert plain.end_of_text_id is None


@pytest.mark.parametrize("seed", range(60))
def test_ids_equal_merging_the_oldest_pair_again_and_again(seed):
    """On vocabularies with much overlap (two letters), against the plainest way to merge."""
    rng = random.Random(seed)

    def word() -> str:
        return "".join(rng.choice("aab") * rng.randint(1, 4) for _ in range(rng.randint(1, 8)))

    vocab, merges = learn_merges({word().encode(): rng.randint(1, 4) for _ in range(12)}, 256 + 30)
    tokenizer = Tokenizer(vocab, merges)
    for text in (word() for _ in range(20)):
        tokens = [bytes([value]) for value in text.encode()]
        while fitting := [pair for pair in pairwise(tokens) if pair in merges]:
            place = list(pairwise(tokens)).index(min(fitting, key=merges.index))
            tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]
        assert [vocab[token_id] for token_id in tokenizer.encode(text)] == tokens


def test_of_a_merge_given_twice_the_first_counts():
    vocab = {**BYTES, 256: b"ab", 257: b"bc"}
    assert Tokenizer(vocab, [(b"a", b"b"), (b"b", b"c"), (b"a", b"b")]).encode("abc") == [256, 99]


def test_every_learnt_token_is_its_own_encoding(small):
    ranks = small.plain.ranks
    for token_id, token in small.vocab.items():
        if token.decode(errors="replace") not in small.special_tokens:
            assert merge_by_rank(list(token), ranks) == [token_id]


# special tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (END_OF_TEXT, [END_OF_TEXT]),
        (END_OF_TEXT * 2, [END_OF_TEXT * 2]),
        (END_OF_TEXT * 3, [END_OF_TEXT * 2, END_OF_TEXT]),
        (f"x{END_OF_TEXT}<|x", ["x", END_OF_TEXT, "<|", "x"]),
        ("<|endoftext", ["<|", *"endoftext"]),
        ("a b", ["a b"]),
        ("aa b", ["a", "a b"]),
        ("\n\n\n", ["\n\n", "\n"]),
        ("\u3000é 漢", ["\u3000é 漢"]),
        ("x😀😀", ["x", "😀", "😀"]),
    ],
)
def test_of_overlapping_special_tokens_the_longest_wins(text, tokens):
    tokenizer = Tokenizer(BYTES, [], SPECIAL_TOKENS)
    assert [tokenizer.vocab[token_id].decode() for token_id in tokenizer.encode(text)] == tokens
    in_another_order = Tokenizer(BYTES, [], SPECIAL_TOKENS[::-1])
    assert [in_another_order.vocab[token_id].decode() for token_id in in_another_order.encode(text)] == tokens
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_missing_special_tokens_are_appended_and_present_ones_keep_their_ids():
    given = {**BYTES, 300: b"<a>"}
    tokenizer = Tokenizer(given, [], ["<b>", "<a>", "<b>", "é"])
    assert tokenizer.vocab == {**BYTES, 300: b"<a>", 301: b"<b>", 302: "é".encode()}
    assert tokenizer.vocab_size == 303
    assert tokenizer.encode("<a>é<b>a") == [300, 302, 301, 97]
    assert 301 not in given
    assert tokenizer.end_of_text_id is None


EXTRA = [END_OF_TEXT, "<|im_start|>", "<|im_end|>", "[INST]"]


@pytest.fixture(scope="module")
def gpt2_with_more(gpt2, gpt2_tiktoken) -> tuple[Tokenizer, tiktoken.Encoding]:
    """GPT-2's tokenizer with the special tokens EXTRA: ours and tiktoken's."""
    tokenizer = Tokenizer(gpt2.vocab, gpt2.merges, EXTRA)
    reference = tiktoken.Encoding(
        "more",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=gpt2_tiktoken._mergeable_ranks,
        special_tokens={token: tokenizer.encode(token)[0] for token in EXTRA},
    )
    return tokenizer, reference


@pytest.mark.parametrize("seed", range(40))
def test_special_tokens_of_gpt2_equal_tiktoken(seed, random_text, gpt2_with_more):
    tokenizer, reference = gpt2_with_more
    rng = random.Random(seed)
    text = "".join(random_text(rng.randrange(10**6), 12) + rng.choice(EXTRA) for _ in range(20))
    assert tokenizer.encode(text) == reference.encode(text, allowed_special="all")


# decoding


def test_every_single_byte_and_every_pair_of_bytes_decodes_as_python_decodes_it(small):
    for pair in itertools.chain(((n,) for n in range(256)), itertools.product(range(256), repeat=2)):
        assert small.decode(pair) == bytes(pair).decode("utf-8", errors="replace")


@pytest.mark.parametrize("seed", range(100))
def test_malformed_bytes_become_the_replacement_character(seed, small):
    rng = random.Random(seed)
    good = [list(character.encode()) for character in "aé漢😀\ufffd"]
    data = b"".join(bytes(rng.choice(good)[: rng.choice([1, 2, 3, 4, 4])]) for _ in range(rng.randint(1, 30)))
    data += rng.randbytes(rng.randint(0, 8))
    assert small.decode(list(data)) == data.decode("utf-8", errors="replace")
    assert "".join(small.decode_iterable(iter(list(data)))) == data.decode("utf-8", errors="replace")


def test_a_character_is_decoded_as_soon_as_its_bytes_are_there(small):
    assert list(small.decode_iterable("a漢".encode())) == ["a", "", "", "漢", ""]
    assert list(small.decode_iterable("漢".encode()[:2])) == ["", "", "\ufffd"]
    assert small.decode([]) == ""


@pytest.mark.parametrize("token_id", [300, -1, -301, 10**9])
def test_an_id_outside_the_vocabulary_is_refused(token_id, small):
    for decode in (small.decode, small.decode_bytes, lambda ids: list(small.decode_iterable(ids))):
        for ids in ([97, token_id], iter([97, token_id]), np.array([97, token_id])):
            with pytest.raises(InputError, match=f"token id {token_id} is not in the vocabulary, whose ids end at 299"):
                decode(ids)


@pytest.mark.parametrize("token_id", [5, 10**6, 2**32 - 1])
def test_ids_that_a_vocabulary_leaves_out(token_id):
    """A gap among them, and ids far apart: the list of tokens stays short."""
    vocab = {value + (value > 4): bytes([value]) for value in range(256)} | {2**31: b"ab"}
    sparse = Tokenizer(vocab, [(b"a", b"b")])
    assert sparse.decode([0, 98, 2**31, 256]) == "\x00aab\ufffd"
    with pytest.raises(InputError, match=f"token id {token_id} is not in the vocabulary"):
        sparse.decode([0, token_id])
    with pytest.raises(InputError, match="token id -1 is not in the vocabulary"):
        sparse.decode([-1])


# streams


@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_a_stream_encodes_as_the_whole_at_every_cut(size, special, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", size)
    expected = special.encode(TRICKY)
    for cut in range(len(TRICKY) + 1):
        assert list(special.encode_iterable([TRICKY[:cut], "", TRICKY[cut:]])) == expected
    for first, second in itertools.combinations(range(0, len(TRICKY), 3), 2):
        assert list(special.encode_iterable([TRICKY[:first], TRICKY[first:second], TRICKY[second:]])) == expected
    assert list(special.encode_iterable(TRICKY)) == expected  # one character at a time
    assert special.decode(expected) == TRICKY


@pytest.mark.parametrize("seed", range(100))
def test_a_stream_of_random_text_encodes_as_the_whole(seed, special, random_text, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 1 + seed % 9)
    rng = random.Random(seed)
    text = "".join(random_text(seed * 100 + n, 15) + rng.choice(SPECIAL_TOKENS) for n in range(6))
    cuts = [0, *sorted(rng.choices(range(len(text)), k=10)), len(text)]
    assert list(special.encode_iterable(text[a:b] for a, b in pairwise(cuts))) == special.encode(text)


def test_a_stream_is_lazy(special, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 100)
    taken = []
    endless = (taken.append(n) or f"line {n}\n" for n in itertools.count())
    token_ids = special.encode_iterable(endless)
    assert not taken
    assert special.decode(itertools.islice(token_ids, 50)).startswith("line 0\nline 1\n")
    assert 1 < len(taken) < 40
    assert list(special.encode_iterable([])) == list(special.encode_iterable([""])) == []


def test_a_stream_takes_constant_memory(special, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 4096)

    def peak(lines: int) -> int:
        tracemalloc.start()
        count = sum(1 for _ in special.encode_iterable(f"line {n % 100}\n" for n in range(lines)))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count > 3 * lines
        return size

    peak(1_000)  # fills the cache
    assert peak(40_000) < peak(4_000) + 50_000  # 310 kB of text


def test_the_cache_is_bounded_and_changes_nothing(special, monkeypatch):
    monkeypatch.setattr(plain_encoding, "MAX_CACHED_PRETOKENS", 10)
    tokenizer = Tokenizer(special.vocab, special.merges, SPECIAL_TOKENS)
    text = " ".join(f"cat{n}" for n in range(100)) + "a" * 1000
    first = tokenizer.encode(text)
    first_again = tokenizer.encode(text)
    assert first == first_again == special.encode(text)
    assert len(tokenizer.plain.cache) == 10


# files


@pytest.mark.parametrize(
    "special_tokens",
    [
        [],
        [END_OF_TEXT],
        SPECIAL_TOKENS,
        ["two words", "tab\t", "line\r\nbreak", '"quoted\\"', "\0", "a", "zß", "\u2028"],
    ],
    ids=["none", "one", "overlapping", "odd"],
)
def test_saving_and_loading(tmp_path, small, special_tokens):
    tokenizer = Tokenizer(small.vocab, small.merges, special_tokens)
    tokenizer.save(tmp_path / "new" / "folder")
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [
        *("merges.txt", "tokenizer_config.json", "vocab.json"),
    ]
    loaded = Tokenizer.load(tmp_path / "new" / "folder")
    assert (loaded.vocab, loaded.merges) == (tokenizer.vocab, tokenizer.merges)
    assert (loaded.special_tokens, loaded.pattern) == (tokenizer.special_tokens, tokenizer.pattern)
    assert loaded.digest == tokenizer.digest
    text = TRICKY + "".join(special_tokens)
    assert loaded.encode(text) == tokenizer.encode(text)
    again = Tokenizer.from_files(
        *(tmp_path / "new" / "folder" / name for name in ("vocab.json", "merges.txt")), special_tokens
    )
    assert again.digest == tokenizer.digest


def test_another_pattern_is_saved(tmp_path, small):
    tokenizer = Tokenizer(small.vocab, small.merges, [], r"\S+\s*|\s+")
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).pattern == r"\S+\s*|\s+"
    assert tokenizer.digest != Tokenizer(small.vocab, small.merges).digest


def test_hugging_face_reads_what_is_saved(tmp_path, small, random_text):
    small.save(tmp_path)
    assert not any(b"\r" in file.read_bytes() for file in tmp_path.iterdir())
    other = hugging_face(tmp_path, small.special_tokens)
    for text in (TRICKY, *(random_text(seed) for seed in range(50))):
        assert small.encode(text) == other.encode(text).ids


def test_the_digest_tells_tokenizers_apart(small):
    vocab, merges = small.vocab, small.merges
    swapped = {**vocab, 0: vocab[1], 1: vocab[0]}
    others = [
        Tokenizer(vocab, merges),
        Tokenizer(vocab, merges, ["x y"]),
        Tokenizer(vocab, merges, [END_OF_TEXT], r"\S+|\s+"),
        Tokenizer(vocab, merges[:-1], [END_OF_TEXT]),
        Tokenizer(vocab, merges[::-1], [END_OF_TEXT]),
        Tokenizer(swapped, merges, [END_OF_TEXT]),
    ]
    digests = {small.digest, *(other.digest for other in others)}
    assert len(digests) == len(others) + 1
    assert Tokenizer(dict(reversed(vocab.items())), merges, small.special_tokens).digest == small.digest


def test_merges_with_windows_line_ends_and_hash_signs(tmp_path):
    table = {bytes_text: n for n, bytes_text in enumerate(json.loads(vocab_json()))}
    (tmp_path / "vocab.json").write_text(json.dumps({**table, "##": 256, "###": 257}))
    for content in ("#version: 0.2\r\n# #\r\n## #\r\n\r\n", "#version: 0.2\n# #\n## #", "# #\n## #\n"):
        (tmp_path / "merges.txt").write_bytes(content.encode())
        assert Tokenizer.load(tmp_path).merges == [(b"#", b"#"), (b"##", b"#")]


def vocab_json(*without: int) -> str:
    """A vocab.json of single bytes, written down without the code under test: see GPT-2's bytes_to_unicode."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    characters = {**{n: chr(n) for n in printable}, **{value: chr(256 + n) for n, value in enumerate(others)}}
    return json.dumps({characters[n]: n for n in range(256) if n not in without})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", None, "vocab.json: cannot be read .No such file"),
        ("vocab.json", "{", "vocab.json: not JSON"),
        ("vocab.json", "[]", "vocab.json: holds list, not a JSON object"),
        ("vocab.json", b"\xff", "vocab.json: not UTF-8 at byte 0"),
        ("vocab.json", vocab_json(0), "1 of the 256 single bytes have no token .the first is b'.x00'"),
        ("vocab.json", '{"a": -1}', "token 'a' has id -1"),
        ("vocab.json", '{"a": "1"}', "token 'a' has id '1'"),
        ("vocab.json", '{"a": 1, "b": 1}', "token 'b' has id 1; ids must be distinct"),
        ("vocab.json", '{"a b": 1}', "token 'a b' has the character ' '.*name it as one"),
        ("merges.txt", None, "merges.txt: cannot be read"),
        ("merges.txt", "#version: 0.2\na b c", "merges.txt, line 2: 'a b c' is not two tokens"),
        ("merges.txt", "ab", "merges.txt, line 1: 'ab' is not two tokens"),
        ("merges.txt", "#version: 0.2\n\na b", "merges.txt, line 2: '' is not two tokens"),
        ("merges.txt", "\na b", "merges.txt, line 1: '' is not two tokens"),
        ("merges.txt", "a\tb", r"merges.txt, line 1: 'a\\tb' is not two tokens"),
        ("merges.txt", "a b\x0bc d", "merges.txt, line 1: .* is not two tokens"),
        ("merges.txt", "a b\u2028", "merges.txt, line 1: .* is not two tokens"),
        ("merges.txt", "a 漢", "merges.txt, line 1"),
        ("merges.txt", "a b", "merge 1, b'a' with b'b': b'ab' is not in the vocabulary"),
        ("tokenizer_config.json", "x", "tokenizer_config.json: not JSON"),
        ("tokenizer_config.json", '{"special_tokens": "x"}', "must be a list of strings"),
        ("tokenizer_config.json", '{"special_tokens": [1]}', "must be a list of strings"),
        ("tokenizer_config.json", '{"special_tokens": [""]}', "special token is empty"),
        ("tokenizer_config.json", '{"special_tokens": ["\\ud800"]}', "special token '.ud800' is not UTF-8"),
        ("tokenizer_config.json", '{"pattern": 5}', "pattern is 5; it must be a string"),
        ("tokenizer_config.json", '{"pattern": null}', "pattern is None; it must be a string"),
        ("tokenizer_config.json", '{"pattern": "("}', "not a regular expression"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, content, message):
    files = {"vocab.json": vocab_json(), "merges.txt": "", "tokenizer_config.json": "{}", name: content}
    for file, text in files.items():
        if text is not None:
            (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such tokenizer folder; make it with `tokenization train"):
        Tokenizer.load(tmp_path / "none")


def test_a_special_token_that_vocab_json_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match="special token 'Ġ' reads like an ordinary token"):  # GPT-2's letter for " "
        Tokenizer(BYTES, [], ["Ġ"]).save(tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("failing", range(3))
def test_a_full_disk_leaves_the_old_tokenizer_whole(tmp_path, monkeypatch, small, failing):
    small.save(tmp_path)
    calls = iter(range(10))

    def fsync(descriptor):
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        Tokenizer(BYTES, [], ["another"]).save(tmp_path)
    assert Tokenizer.load(tmp_path).digest == small.digest
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_cannot_be_made_is_named(tmp_path, small):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/t: cannot be written \(Not a directory\)"):
        small.save(tmp_path / "file" / "t")


def test_a_byte_without_a_token_is_named():
    with pytest.raises(InputError, match="byte 0x62 of 'ab' has no token"):
        Tokenizer({0: b"a"}, []).encode("ab")


def test_any_bytes_come_back(gpt2, small, random_text):
    """Random bytes, UTF-8 cut in the middle of characters, special tokens among them; and UTF-8 is as encode has it."""
    rng = random.Random(0)
    for seed in range(500):
        text = random_text(seed) + END_OF_TEXT
        noise = rng.randbytes(rng.randint(0, 12))
        cut = text.encode()[rng.randint(0, 3) :][: rng.randint(0, 60)]
        for tokenizer in (gpt2, small):
            for data in (noise, cut, noise + text.encode() + cut, END_OF_TEXT.encode() + noise):
                assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data
            assert tokenizer.encode_bytes(text.encode()) == tokenizer.encode(text)
    assert [gpt2.vocab[token_id] for token_id in gpt2.encode_bytes(b"a\xffb")] == [b"a", b"\xff", b"b"]


def test_special_tokens_are_a_list_and_not_its_letters(small):
    with pytest.raises(InputError, match="is the string '<x>'; it must be a list"):
        Tokenizer(small.vocab, small.merges, "<x>")


def test_length_and_repr(gpt2):
    assert len(gpt2) == 50257
    assert repr(gpt2) == "<Tokenizer: 50,257 tokens, special ['<|endoftext|>'], pattern gpt2>"
    single = {n: bytes([n]) for n in range(256)}
    tokenizer = Tokenizer(single | {1000: b"ab"}, [(b"a", b"b")], [f"<{n}>" for n in range(20)], r"\w+" * 100)
    assert (len(tokenizer), tokenizer.vocab_size) == (277, 1021)  # ids are left out
    assert "'<0>', '<1>'" in repr(tokenizer)
    assert "..." in repr(tokenizer)
    assert len(repr(tokenizer)) < 200


def test_from_files_refuses_merges_that_do_not_make_the_vocabulary(gpt2_files, small, tmp_path):
    """GPT-2's own files, cut after a line that is whole; and a special token that is not named."""
    lines = (gpt2_files / "merges.txt").read_text().splitlines()
    merges = tmp_path / "merges.txt"
    merges.write_text("\n".join(lines[:30_001]))
    with pytest.raises(
        InputError, match=r"merges\.txt: 20000 tokens of vocab\.json are made by no merge \(first '.*'\)"
    ):
        Tokenizer.from_files(gpt2_files / "vocab.json", merges)
    merges.write_text("\n".join(lines[:-1]))
    with pytest.raises(
        InputError, match=r"1 token of vocab\.json is made by no merge .*: merges\.txt is truncated, or a special"
    ):
        Tokenizer.from_files(gpt2_files / "vocab.json", merges, [END_OF_TEXT])

    Tokenizer(small.vocab, small.merges, [END_OF_TEXT, "<pad>"]).save(tmp_path)
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    with pytest.raises(InputError, match=r"first '<pad>'.* a special token is not named in special_tokens$"):
        Tokenizer.from_files(*files, [END_OF_TEXT])
    assert Tokenizer.from_files(*files, ["<pad>"]).encode("<pad>") == [300]


def test_an_element_of_a_tensor_is_an_id(small):
    ids = torch.tensor(small.encode("hello there"))
    for tokenizer in (Tokenizer(small.vocab, small.merges), small):  # the first without kernels
        assert tokenizer.decode(ids[:1]) == tokenizer.decode([int(ids[0])])
        assert "".join(tokenizer.decode_iterable(ids)) == "hello there"
        for wrong in (1.0, "1", None, torch.tensor(1.0)):
            with pytest.raises(InputError, match="is not in the vocabulary"):
                tokenizer.decode([wrong])
