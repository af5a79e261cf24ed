"""A tokenizer gives the same ids in the libraries that own the formats, tiktoken and tokenizers, under every named
pattern; what comes back from their files is what went out; what they ask for beyond byte-level BPE is refused."""

import base64
import contextlib
import itertools
import json
import random
import re
from pathlib import Path

import pytest
import regex
import tiktoken
import tiktoken_ext.openai_public
import tokenizers
from helpers.split_patterns import check_complete, known_parts
from tiktoken.load import load_tiktoken_bpe

from tokenization import END_OF_TEXT, InputError, Tokenizer, pretokenization
from tokenization.__main__ import main
from tokenization.bpe import merge_by_rank
from tokenization.formats import gpt2 as gpt2_files
from tokenization.formats.gpt2 import bytes_to_text, vocabulary_table
from tokenization.formats.tokenizer_json import COMPLETE, LLAMA3_PATTERN
from tokenization.interchange import (
    export_huggingface,
    export_tiktoken,
    import_huggingface,
    import_tiktoken,
    recover_merges,
)
from tokenization.pretokenization import PATTERNS, cut_into_chunks, find_cut

SEEDS = range(300)
TRICKY = [
    "In 2022 and 12345678: don't, DON'T, I'LL.\n\n  And\tthen\r\n\r\n/* x */\n/path  ",
    "a\n  ",
    "a \n b\n\n\n",
    "HelloWorld helloWORLD's ÉCOLE École",
    f"x{END_OF_TEXT}\n{END_OF_TEXT}{END_OF_TEXT} y",
    "   ",
    "",
]


@pytest.fixture(scope="module", params=PATTERNS)
def tokenizer(request, gpt2) -> Tokenizer:
    """GPT-2's vocabulary under each of the named patterns."""
    check_complete(PATTERNS[request.param])
    return Tokenizer(gpt2.vocab, gpt2.merges, [END_OF_TEXT], PATTERNS[request.param])


def texts(random_text) -> list[str]:
    return TRICKY + [random_text(seed) for seed in SEEDS]


def test_patterns_are_those_of_tiktoken(monkeypatch) -> None:
    monkeypatch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    for name in ("cl100k", "o200k"):
        assert getattr(tiktoken_ext.openai_public, f"{name}_base")()["pat_str"] == PATTERNS[name]


def test_tiktoken_gives_the_same_ids(tokenizer, tmp_path, random_text) -> None:
    export_tiktoken(tokenizer, tmp_path / "x.tiktoken")
    lines = (tmp_path / "x.tiktoken").read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    theirs = tiktoken.Encoding(
        "x", pat_str=tokenizer.pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256}
    )
    for text in texts(random_text):
        assert tokenizer.encode(text) == theirs.encode(text, allowed_special="all"), ascii(text)


def test_huggingface_gives_the_same_ids(tokenizer, tmp_path, random_text) -> None:
    export_huggingface(tokenizer, tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in texts(random_text):
        token_ids = tokenizer.encode(text)
        assert token_ids == theirs.encode(text).ids, ascii(text)
        assert theirs.decode(token_ids, skip_special_tokens=False) == text


def test_round_trips(tokenizer, tmp_path) -> None:
    export_huggingface(tokenizer, tmp_path / "tokenizer.json")
    export_tiktoken(tokenizer, tmp_path / "x.tiktoken")
    assert import_huggingface(tmp_path / "tokenizer.json").digest == tokenizer.digest
    assert import_tiktoken(tmp_path / "x.tiktoken", tokenizer.pattern, {END_OF_TEXT: 50256}).digest == tokenizer.digest


@pytest.mark.parametrize("late", ["abc", "b", "cab", "bc", "xa", "漢", "<|"])
def test_added_tokens_that_are_looked_for_later_give_the_same_ids_or_are_refused(late, small, tmp_path) -> None:
    """Hugging Face finds those that are `normalized` in a second pass, even where no normalizer is."""
    path = tmp_path / "tokenizer.json"
    export_huggingface(Tokenizer(small.vocab, small.merges, [END_OF_TEXT, "ab", late]), path)
    content = json.loads(path.read_text())
    content["added_tokens"][2]["normalized"] = True
    path.write_text(json.dumps(content))
    theirs = tokenizers.Tokenizer.from_file(str(path))
    samples = ["".join(letters) for letters in itertools.product("abcx漢", repeat=4)]
    if late == "漢":
        assert all(import_huggingface(path).encode(text) == theirs.encode(text).ids for text in samples)
    else:
        with pytest.raises(InputError, match="overlap, and only the latter is normalized"):
            import_huggingface(path)


@pytest.mark.parametrize("special", ["<|end of text|>", "<é>", "\n\n"])
def test_special_tokens_of_any_text_survive(special, small, tmp_path) -> None:
    tokenizer = Tokenizer(small.vocab, small.merges, [END_OF_TEXT, special])
    export_huggingface(tokenizer, tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = f"the cat{special}the rain{special}{END_OF_TEXT}"
    assert tokenizer.encode(text) == theirs.encode(text).ids
    assert import_huggingface(tmp_path / "tokenizer.json").digest == tokenizer.digest


def test_a_tokenizer_that_huggingface_trained_is_imported(tmp_path, random_text) -> None:
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator([random_text(seed) for seed in SEEDS], vocab_size=400, special_tokens=[END_OF_TEXT])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = import_huggingface(tmp_path / "tokenizer.json")
    for text in texts(random_text):
        assert ours.encode(text) == theirs.encode(text).ids, ascii(text)


@pytest.fixture(scope="module")
def many_texts(random_text) -> list[str]:
    return TRICKY + [random_text(seed) for seed in range(2000)]


@pytest.mark.parametrize("name", PATTERNS)
def test_no_pretoken_reaches_across_a_safe_cut(name, many_texts) -> None:
    known_parts(PATTERNS[name])
    split, places = regex.compile(PATTERNS[name]).findall, 0
    for text in many_texts:
        whole = split(text)
        assert "".join(whole) == text
        for match in regex.finditer(pretokenization.safe_cuts(PATTERNS[name]), text):
            cut = match.start()
            assert split(text[:cut]) + split(text[cut:]) == whole, (ascii(text), cut)
            places += 1
    assert places > 500


def test_pieces_of_a_pattern_without_safe_cuts_end_at_special_tokens() -> None:
    text = "a b c" + END_OF_TEXT + "d e f"
    assert find_cut(text, [END_OF_TEXT], r"\S+|\s+") == text.rindex("d")
    pieces = list(cut_into_chunks([text * 5, text * 5], [END_OF_TEXT], r"\S+|\s+", size=3))
    assert "".join(pieces) == text * 10
    assert len(pieces) == 3
    assert all(piece.endswith(END_OF_TEXT) for piece in pieces[:-1])


REFUSED = {
    "normalizes": lambda content: content.update(normalizer={"type": "NFC"}),
    "ignore_merges": lambda content: content["model"].update(ignore_merges=True),
    "byte_fallback": lambda content: content["model"].update(byte_fallback=True),
    "not BPE": lambda content: content["model"].update(type="Unigram"),
    "dropout": lambda content: content["model"].update(dropout=0.1),
    "absorb white space": lambda content: content["added_tokens"][0].update(lstrip=True),
    "not a split by a pattern": lambda content: content["pre_tokenizer"]["pretokenizers"].pop(0),
    "single bytes have no token": lambda content: content["model"]["vocab"].pop("!"),
    "not the tokenizer.json": lambda content: content.pop("model"),
    "is not in the vocabulary": lambda content: content["model"]["merges"].append(["zz", "zz"]),
    'end_of_word_suffix is "</w>"': lambda content: content["model"].update(end_of_word_suffix="</w>"),
    "model.continuing_subword_prefix": lambda content: content["model"].update(continuing_subword_prefix="##"),
    "model.max_token_length is 5, which is not supported": lambda content: content["model"].update(max_token_length=5),
    "truncation is .* long texts": lambda content: content.update(truncation={"max_length": 5}),
    "padding is ": lambda content: content.update(padding={"strategy": {"Fixed": 5}}),
    "new_key is .*, which is not supported": lambda content: content.update(new_key=["anything"]),
    "added_tokens.0.later is true": lambda content: content["added_tokens"][0].update(later=True),
    "has the ids 7 and 256": lambda content: content["added_tokens"][0].update(id=7),
    "post_processor is RobertaProcessing": lambda content: content.update(
        post_processor={"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}
    ),
    "post_processor is TemplateProcessing, which adds": lambda content: content.update(
        post_processor={"type": "Sequence", "processors": [BYTE_LEVEL, template(END_OF_TEXT)]}
    ),
    "decoder is Metaspace": lambda content: content.update(decoder={"type": "Metaspace"}),
    "add_prefix_space is true": lambda content: content["pre_tokenizer"]["pretokenizers"][1].update(
        add_prefix_space=True
    ),
    "invert is true": lambda content: content["pre_tokenizer"]["pretokenizers"][0].update(invert=True),
    "its pre-tokenizer is not a split": lambda content: content["pre_tokenizer"]["pretokenizers"][0].update(
        pattern={"String": " "}
    ),
    "Split.behavior is Removed, not Isolated": lambda content: content["pre_tokenizer"]["pretokenizers"][0].update(
        behavior="Removed"
    ),
}


def template(*special_tokens: str) -> dict[str, object]:
    """A post-processor that puts special tokens before a text."""
    pieces = [{"SpecialToken": {"id": token, "type_id": 0}} for token in special_tokens]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    known = {token: {"id": token, "ids": [256], "tokens": [token]} for token in special_tokens}
    return {"type": "TemplateProcessing", "single": [*pieces, text], "pair": [text], "special_tokens": known}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


def layout(small, pattern: str | None, **changes) -> dict[str, object]:
    """A tokenizer.json with the keys that published ones have, around the small vocabulary."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pattern is None}
    token = {"content": END_OF_TEXT, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    merges = [f"{bytes_to_text(left)} {bytes_to_text(right)}" for left, right in small.merges]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "fuse_unk": False}
    model |= {"end_of_word_suffix": "", "byte_fallback": False, "ignore_merges": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 256, "special": True, **token}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, last]} if pattern else last,
        "post_processor": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        "model": model | {"vocab": vocabulary_table(small.vocab, small.special_tokens), "merges": merges},
    }
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(content[key], dict) and value else value
    return content


def olmo2_layout(small) -> dict[str, object]:
    """The one that drops what does not match, under a pattern that matches all."""
    content = layout(small, LLAMA3_PATTERN, post_processor=None)
    content["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed", invert=True)
    del content["model"]["ignore_merges"]
    return content


def gpt2_layout(small) -> dict[str, object]:
    """The oldest one: no type, no byte_fallback, and a token that is normalized, by nothing."""
    content = layout(small, None)
    for key in ("type", "byte_fallback", "ignore_merges"):
        del content["model"][key]
    del content["pre_tokenizer"]["use_regex"]
    content["added_tokens"][0]["normalized"] = True
    return content


IMPORTED = {
    "gpt2": gpt2_layout,
    "qwen2 without its normalizer": lambda small: layout(small, LLAMA3_PATTERN.replace("{1,3}", "")),
    "olmo2": olmo2_layout,
    "a template that adds nothing": lambda small: layout(small, LLAMA3_PATTERN) | {"post_processor": template()},
    "no post-processor, no decoder": lambda small: layout(small, LLAMA3_PATTERN, post_processor=None, decoder=None),
    "an unknown token that never comes": lambda small: layout(small, None, model={"unk_token": END_OF_TEXT}),
}
REFUSED_LAYOUTS = {
    "model.ignore_merges is true": lambda small: layout(
        small, LLAMA3_PATTERN, model={"ignore_merges": True}
    ),  # Llama 3
    "post_processor is TemplateProcessing": lambda small: (
        layout(small, LLAMA3_PATTERN)
        | {"post_processor": {"type": "Sequence", "processors": [BYTE_LEVEL, template(END_OF_TEXT)]}}
    ),
    'normalizer is {"type": "NFC"}': lambda small: layout(small, LLAMA3_PATTERN, normalizer={"type": "NFC"}),  # Qwen2
}


def test_patterns_that_are_called_complete_match_everything(random_text) -> None:
    split = {
        pattern: tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "removed", True) for pattern in COMPLETE
    }
    everything = "".join(chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000)
    for text in (everything, everything[::-1], " ".join(everything[:0x3000]), *texts(random_text)):
        for pattern, theirs in split.items():
            is_all = "".join(piece for piece, _ in theirs.pre_tokenize_str(text)) == text
            assert is_all, f"does not match all of any text: {pattern}"


@pytest.mark.parametrize("name", IMPORTED)
def test_published_layouts_are_imported(name, small, tmp_path, random_text) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(IMPORTED[name](small)))
    ours = import_huggingface(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in texts(random_text):
        assert ours.encode(text) == theirs.encode(text).ids, ascii(text)


@pytest.mark.parametrize("reason", REFUSED_LAYOUTS)
def test_published_layouts_with_other_ids_are_refused_by_name(reason, small, tmp_path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(REFUSED_LAYOUTS[reason](small)))
    tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))  # it is one
    with pytest.raises(InputError, match=re.escape(reason)):
        import_huggingface(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_byte_level_bpe_is_refused(reason, small, tmp_path) -> None:
    export_huggingface(small, tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    REFUSED[reason](content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=reason):
        import_huggingface(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        *[("?? 1", "line 257"), ("YQ==", "line 257"), ("YWI= 97", "same rank"), ("YWI= 256\nYWE= 256", "same rank")],
        ("YWI= 256\nYWI= 257", "line 258: the token has rank 257, and 256 in an earlier line"),
        *[("YWI= -1", "line 257"), ("YWI= 8589934592", "ranks run to 8589934592; they must lie between 0 and")],
        *[(f"YWI= {rank}", "line 257: 'YWI= ") for rank in ("+256", "2_56", "٢٥٦", "²", "256.0", "", "9" * 5000)],
        *[(f"YWI= 256{line_end}YWE= 257", "line 257") for line_end in "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"],
        *[(line, "line 257") for line in (" YWI= 256", "YWI=  256", "YWI=\t256", "YWI= 256 ", "YWI 256", "YWJ= 256")],
        *[(" 256", "line 257: ' 256'"), ("\nYWI= 256", "line 257: ''"), ("YWI= 256\n\nYWE= 257", "line 258: ''")],
    ],
)
def test_damaged_tiktoken_files_are_refused(line, reason, tmp_path) -> None:
    singles = [f"{base64.b64encode(bytes([value])).decode()} {value}" for value in range(256)]
    path = tmp_path / "x.tiktoken"
    path.write_bytes("\n".join([*singles, line]).encode())
    with pytest.raises(InputError, match=reason):
        import_tiktoken(path, PATTERNS["gpt2"], {})
    path.write_text("\n".join(singles[:-1]))
    with pytest.raises(InputError, match="1 of the 256 single bytes"):
        import_tiktoken(path, PATTERNS["gpt2"], {})


@pytest.mark.parametrize(("line_end", "end"), [("\n", ""), ("\n", "\n"), ("\r\n", "\r\n"), ("\n", "\n\n")])
def test_lines_of_tiktoken_files_end_in_either_way(line_end, end, tmp_path) -> None:
    lines = [f"{base64.b64encode(token).decode()} {n}" for n, token in enumerate([*map(bytes, zip(range(256))), b"ab"])]
    (tmp_path / "x.tiktoken").write_bytes((line_end.join(lines) + end).encode())
    assert import_tiktoken(tmp_path / "x.tiktoken", PATTERNS["gpt2"], {}).encode("abba") == [256, 98, 97]


def test_merges_out_of_order_cannot_become_ranks(small, tmp_path) -> None:
    tokenizer = Tokenizer(small.vocab, [*small.merges[1:], small.merges[0]], [END_OF_TEXT])
    with pytest.raises(InputError, match="not in the order of its ids"):
        export_tiktoken(tokenizer, tmp_path / "x.tiktoken")


WORDS = ["".join(letters) for size in range(1, 7) for letters in itertools.product("abc", repeat=size)]


def encoded_by_tiktoken(path: Path) -> list[list[int]]:
    lines = path.read_text().splitlines()  # load_tiktoken_bpe keeps what it has read once under this name
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    theirs = tiktoken.Encoding("t", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={})
    return [theirs.encode_ordinary(word) for word in WORDS]


def test_tiktoken_files_give_the_same_ids_or_are_refused(tmp_path) -> None:
    """Vocabularies that no training gives: merges left out, or in an order that ranks do not have."""
    source, path, exported, imported = random.Random(0), tmp_path / "t.tiktoken", 0, 0
    for _ in range(150):
        tokens, merges = [bytes([value]) for value in range(256)], []
        for _ in range(source.randint(1, 5)):
            left, right = source.choices([b"a", b"b", b"c", *tokens[256:]], k=2)
            if left + right not in tokens:
                tokens.append(left + right)
                merges += [(left, right)] if source.random() < 0.85 else []
        tokens += [b"cabcab"] if source.random() < 0.2 else []
        ours = Tokenizer(dict(enumerate(tokens)), merges, [], PATTERNS["gpt2"])
        with contextlib.suppress(InputError):
            export_tiktoken(ours, path)
            assert encoded_by_tiktoken(path) == [ours.encode(word) for word in WORDS]
            exported += 1
        path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
        with contextlib.suppress(InputError):
            read = import_tiktoken(path, PATTERNS["gpt2"], {})
            assert encoded_by_tiktoken(path) == [read.encode(word) for word in WORDS]
            imported += 1
    assert 30 < exported < 130
    assert 30 < imported < 145


def test_a_tiktoken_file_with_a_token_that_no_merges_make_is_refused(tmp_path) -> None:
    tokens = [*(bytes([value]) for value in range(256)), b"xyz"]
    path = tmp_path / "t.tiktoken"
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    with pytest.raises(InputError, match="no merges make token 256, b'xyz'"):
        import_tiktoken(path, PATTERNS["gpt2"], {})
    assert import_tiktoken(path, PATTERNS["gpt2"], {"xyz": 256}).encode("xyz") == [256]


def test_commands(small, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    small.save("tok")
    Path("text.txt").write_text("It's 2024! " * 50)
    assert main(["export", "tok", "--output", "a.json"]) == 0
    assert main(["import", "a.json", "--output", "b"]) == 0
    assert Tokenizer.load("b").digest == small.digest
    assert main(["export", "tok", "--output", "a.tiktoken"]) == 0
    assert main(["train", "text.txt", "--vocab-size", "262", "--pattern", "cl100k", "--output", "c"]) == 0
    assert Tokenizer.load("c").pattern == PATTERNS["cl100k"]
    capsys.readouterr()
    assert main(["import", "tok", "--output", "f"]) == 0
    assert "no digest" not in capsys.readouterr().out
    assert main(["import", "a.json", "--output", "f", "--overwrite"]) == 0
    assert "a.json has no digest" in capsys.readouterr().out
    Tokenizer(small.vocab, small.merges, [END_OF_TEXT], r"\w+").save("words")
    assert main(["export", "words", "--output", "words.tiktoken"]) == 0
    assert r"tiktoken drops what lies between matches of its pattern, here '\\w+'" in capsys.readouterr().out
    for command, reason in {
        "import a.tiktoken --output d": "does not hold its pattern",
        "import a.json --pattern gpt2 --output d": "holds its own pattern",
        "import a.json --output b": "already holds a tokenizer",
        "import none.json --output d": "none.json: cannot be read",
        "import text.txt --output d": "text.txt: not JSON",
        "train text.txt --vocab-size 300 --pattern ( --output d": "not a regular expression",
        "export tok --output tok": "tok: is a folder or a device, not a file to be replaced",
        "train text.txt --vocab-size 300 --pattern gpt4 --output d": "no such pattern; there are gpt2, cl100k, o200k",
        "import a.tiktoken --pattern gpt4 --output d": "no such pattern; there are gpt2, cl100k, o200k",
        "import a.tiktoken --pattern cl100k_base --output d": "no such pattern; there are gpt2, cl100k, o200k",
        "import a.tiktoken --pattern= --output d": "no such pattern",
        "import tok --pattern gpt2 --output d": "holds its own pattern",
    }.items():
        assert main(command.split()) == 2, command
        error = capsys.readouterr().err
        assert reason in error, command
        assert error.count("\n") == 1, command
    assert not Path("d").exists()
    assert main(["train", "text.txt", "--vocab-size", "262", "--pattern", "(2024)", "--output", "e"]) == 0
    assert Tokenizer.load("e").decode(Tokenizer.load("e").encode("in 2024!")) == "in 2024!"


def merges_by_merging(ranks: dict[bytes, int]) -> list[list[int]]:
    """Merges the bytes of each token by all older ones, as tiktoken itself would."""
    merges: list[list[int]] = []
    known: dict[int, int] = {}
    for rank, token in sorted((rank, token) for token, rank in ranks.items()):
        if len(token) > 1:
            pair = merge_by_rank([ranks[bytes([value])] for value in token], known)
            if len(pair) == 2:
                known[pair[0] << 32 | pair[1]] = rank << 32 | rank
                merges.append([*pair, rank])
    return merges


def test_recovered_merges_are_those_that_merging_finds():
    """On vocabularies that no training gives: tokens without a merge, in any order, of few letters."""
    source, num_merges, num_tokens = random.Random(0), 0, 0
    for _ in range(1500):
        letters = b"abcd"[: source.randint(1, 4)]
        tokens = {bytes([letter]) for letter in letters}
        for _ in range(source.randint(1, 40)):
            made = source.choice(sorted(tokens)) + source.choice(sorted(tokens))
            tokens.add(made[:12] if source.random() < 0.75 else bytes(source.choices(letters, k=source.randint(2, 8))))
        ordered = sorted(tokens, key=len) if source.random() < 0.5 else source.sample(sorted(tokens), len(tokens))
        ids = source.sample(range(3 * len(tokens)), len(tokens))
        ranks = dict(zip(ordered, sorted(ids) if source.random() < 0.5 else ids, strict=True))
        expected = merges_by_merging(ranks)
        assert recover_merges(ranks).tolist() == expected, ranks
        num_merges, num_tokens = num_merges + len(expected), num_tokens + len(ranks)
    assert num_merges > 5000
    assert num_tokens > num_merges + 5000


def huggingface_file(path, merges=(), added=()):
    """A tokenizer.json of the bytes, "ab" and "bc"."""
    vocab = {bytes_to_text(bytes([value])): value for value in range(256)} | {"ab": 256, "bc": 257}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None}
    content |= {"added_tokens": [{"id": token_id, "content": text, **flags} for token_id, text in added]}
    content |= {"pre_tokenizer": byte_level, "decoder": byte_level}
    content |= {"model": {"type": "BPE", "vocab": vocab, "merges": list(merges)}}
    path.write_text(json.dumps(content))
    return path


def test_a_merge_that_is_listed_twice_is_refused(tmp_path):
    path = huggingface_file(tmp_path / "t.json", ["a b", "b c", "a b"])
    assert tokenizers.Tokenizer.from_file(str(path)).encode("abc").ids == [97, 257]  # the last one counts there
    with pytest.raises(InputError, match="the merge of 'a' and 'b' is listed twice; leave one of them out"):
        import_huggingface(path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nb c\na b\n")
    with pytest.raises(InputError, match="listed twice"):
        gpt2_files.read_merges(tmp_path / "merges.txt")


def test_ids_of_added_tokens_are_those_that_hugging_face_gives(tmp_path):
    choices, right = random.Random(3), 0
    for _ in range(200):
        texts = choices.choices(["<x>", "<y>", "<z>", "ab", "a", "<w>"], k=choices.randint(1, 4))
        ids = [choices.choice([97, 256, 258, 259, 260, 261, 300]) for _ in texts]
        path = huggingface_file(tmp_path / "t.json", ["a b"], zip(ids, texts, strict=True))
        theirs = tokenizers.Tokenizer.from_file(str(path))
        same = all(theirs.token_to_id(text) == token_id for token_id, text in zip(ids, texts, strict=True))
        try:
            ours = import_huggingface(path)
        except InputError:
            assert not same
        else:
            assert same, (ids, texts)
            right += 1
            for text in ("<x>ab<y>abc", "<z><w>a"):
                assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert right > 5


def test_a_special_token_that_merges_make_is_exported(small, tmp_path):
    tokenizer = Tokenizer(small.vocab, small.merges, [END_OF_TEXT, " the", "\n"])
    assert b" the" in {left + right for left, right in small.merges}
    export_huggingface(tokenizer, tmp_path / "t.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json"))
    again = import_huggingface(tmp_path / "t.json")
    for text in ("all the\nthem there", "the other  the"):
        assert theirs.encode(text, add_special_tokens=False).ids == tokenizer.encode(text) == again.encode(text)
        assert theirs.decode(tokenizer.encode(text), skip_special_tokens=False) == text
    assert export_tiktoken(tokenizer, tmp_path / "t.tiktoken") == len(
        (tmp_path / "t.tiktoken").read_text().splitlines()
    )
    ranks = load_tiktoken_bpe(str(tmp_path / "t.tiktoken"))
    theirs = tiktoken.Encoding("t", pat_str=tokenizer.pattern, mergeable_ranks=ranks, special_tokens={})
    plain = Tokenizer(small.vocab, small.merges, [])
    assert theirs.encode_ordinary("all the\nthem") == plain.encode("all the\nthem")


def test_a_special_token_that_hugging_face_decodes_as_bytes_is_named(small, tmp_path, capsys):
    Tokenizer(small.vocab, small.merges, ["<|d\xe9but|>"]).save(tmp_path / "tok")
    assert main(["export", str(tmp_path / "tok"), "--output", str(tmp_path / "t.json")]) == 0
    assert "'<|d\xe9but|>' its id, but decodes that to the bytes b'<|d\\xe9but|>'" in capsys.readouterr().out
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json"))
    ids = theirs.encode("<|d\xe9but|>", add_special_tokens=False).ids
    assert theirs.decode(ids, skip_special_tokens=False) == "<|d\ufffdbut|>"


def test_two_ids_of_the_same_bytes_are_named(small, tmp_path):
    tokenizer = import_huggingface(huggingface_file(tmp_path / "t.json", [], [(258, "\n")]))
    with pytest.raises(InputError, match=r"the token b'\\n' has 2 ids, 10 and 258; vocab.json can hold one"):
        tokenizer.save(tmp_path / "saved")
