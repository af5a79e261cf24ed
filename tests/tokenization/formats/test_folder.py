"""Proves that a tokenizer's folder loads only as it was written: no flipped bit, no cut file, no missing file and no
mixture of two tokenizers; and that older and foreign folders load by their own rules, or are refused by name."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import tokenizers

from tokenization import END_OF_TEXT, InputError, Tokenizer
from tokenization.bpe import find_merge_ids
from tokenization.formats import gpt2
from tokenization.formats.folder import is_verified
from tokenization.interchange import export_huggingface
from tokenization.pretokenization import CL100K_PATTERN, GPT2_PATTERN

FILES = ["vocab.json", "merges.txt", "tokenizer_config.json"]


@pytest.fixture
def tokenizer(small) -> Tokenizer:
    """One that GPT-2's pattern and special tokens would not give back."""
    return Tokenizer(small.vocab, small.merges, [END_OF_TEXT, "<|é|>"], CL100K_PATTERN)


@pytest.fixture
def folder(tokenizer, tmp_path) -> Path:
    tokenizer.save(tmp_path / "tok")
    return tmp_path / "tok"


def without_digests(folder: Path) -> Path:
    """As folders were written before they had digests."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    older = {key: config[key] for key in ("pattern", "special_tokens")}
    (folder / "tokenizer_config.json").write_text(json.dumps(older, ensure_ascii=False, indent=2) + "\n")
    lines = (folder / "merges.txt").read_text().split("\n")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines[1:]]))
    return folder


def test_every_flipped_bit_is_found(folder, tokenizer):
    rng = random.Random(0)
    for number in range(750):
        path = folder / FILES[number % 3]
        whole = path.read_bytes()
        changed, bit = bytearray(whole), rng.randrange(8 * len(whole))
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"vocab\.json|merges\.txt|tokenizer_config\.json") as error:
            Tokenizer.load(folder)
        assert "\n" not in str(error.value)
        path.write_bytes(whole)
    assert Tokenizer.load(folder).digest == tokenizer.digest


def test_every_byte_of_the_configuration_counts(folder):
    path = folder / "tokenizer_config.json"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 7):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(InputError):
            Tokenizer.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_an_empty_file_is_found(name, folder):
    (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match=name):
        Tokenizer.load(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        Tokenizer.load(folder)


@pytest.mark.parametrize("digests", [True, False])
def test_merges_that_are_cut_at_a_lines_end_are_found(digests, folder):
    if not digests:
        without_digests(folder)
    path = folder / "merges.txt"
    lines = path.read_text().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        path.write_text("".join(lines[:kept]))
        reason = "is not the one that" if digests else f"{len(lines) - kept} tokens? of vocab.json (is|are) made by no"
        with pytest.raises(InputError, match=reason):
            Tokenizer.load(folder)


def stop_after(renames: int, monkeypatch) -> None:
    """The process is killed after so many renames."""
    calls, real = iter(range(100)), os.replace

    def replace(source, target):
        if next(calls) == renames:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("renames", [0, 1, 2])
@pytest.mark.parametrize("before", ["digests", "no digests", "nothing"])
def test_a_kill_between_renames_leaves_no_mixture_that_loads(renames, before, folder, tokenizer, small, monkeypatch):
    if before == "no digests":
        without_digests(folder)
    if before == "nothing":
        shutil.rmtree(folder)
    vocab = {token_id: token for token_id, token in small.vocab.items() if token_id < 299}
    stop_after(renames, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        Tokenizer(vocab, small.merges[:-1], [END_OF_TEXT]).save(folder)
    if renames == 0 and before != "nothing":
        assert Tokenizer.load(folder).digest == tokenizer.digest
    else:
        with pytest.raises(InputError):
            Tokenizer.load(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_not_waited_for(name, folder):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match=rf"tok/{name}: cannot be read \(it is a pipe or a device\)"):
        Tokenizer.load(folder)


def test_a_missing_file_is_said_once(folder):
    (folder / "vocab.json").unlink()
    with pytest.raises(InputError) as error:
        Tokenizer.load(folder)
    assert str(error.value).count("cannot be read") == 1


def test_an_older_folder_loads_and_says_that_it_has_no_digest(folder, tokenizer):
    assert is_verified(folder)
    assert Tokenizer.load(without_digests(folder)).digest == tokenizer.digest
    assert not is_verified(folder)


# --- foreign folders ---


def write_tokenizer_json(tokenizer: Tokenizer, folder: Path) -> tokenizers.Tokenizer:
    export_huggingface(tokenizer, folder / "tokenizer.json")
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture
def foreign(small, tmp_path) -> Path:
    """Two files in GPT-2's format; transformers and others put more beside them."""
    small.save(tmp_path / "hf")
    (without_digests(tmp_path / "hf") / "tokenizer_config.json").unlink()
    return tmp_path / "hf"


@pytest.mark.parametrize("others", ["all", "tokenizer.json"])
def test_a_tokenizer_json_counts_whatever_lies_beside_it(others, small, foreign, random_text):
    pattern = CL100K_PATTERN.replace("{1,3}+", "")
    theirs = write_tokenizer_json(Tokenizer(small.vocab, small.merges, [END_OF_TEXT], pattern), foreign)
    (foreign / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 1024}')
    if others != "all":
        for path in foreign.iterdir():
            if path.name != others:
                path.unlink()
    ours = Tokenizer.load(foreign)
    assert ours.pattern == pattern
    for text in ("In 2023, 1234567.", *(random_text(seed) for seed in range(30))):
        assert ours.encode(text) == theirs.encode(text).ids


def test_a_tokenizer_json_that_is_not_ours_is_refused_with_its_folder(small, foreign):
    write_tokenizer_json(small, foreign)
    content = json.loads((foreign / "tokenizer.json").read_text())
    (foreign / "tokenizer.json").write_text(json.dumps(content | {"normalizer": {"type": "NFC"}}))
    with pytest.raises(InputError, match=r"hf/tokenizer\.json: cannot be imported: normalizer is .*NFC"):
        Tokenizer.load(foreign)


def test_our_own_configuration_counts_before_a_tokenizer_json(folder, tokenizer, small):
    write_tokenizer_json(small, folder)
    assert Tokenizer.load(folder).digest == tokenizer.digest


@pytest.mark.parametrize("config", [{}, {"model_max_length": 1024}, {"tokenizer_class": "GPT2Tokenizer"}])
def test_gpt2s_two_files_are_gpt2(config, foreign, small):
    (foreign / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Tokenizer.load(foreign)
    assert loaded.digest == small.digest
    assert (loaded.pattern, loaded.special_tokens) == (GPT2_PATTERN, [END_OF_TEXT])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"}, "says Qwen2Tokenizer"),
        ("tokenizer_config.json", {"add_prefix_space": True}, "puts a space before every text"),
        ("tokenizer_config.json", {"add_bos_token": True}, "puts a token before every text"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"50257": {"content": "<pad>"}}}, "adds tokens"),
        ("added_tokens.json", {"<pad>": 300}, r"added_tokens\.json adds tokens"),
    ],
)
def test_two_files_that_are_not_gpt2s_are_refused_by_name(name, content, reason, foreign):
    (foreign / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=reason):
        Tokenizer.load(foreign)


def test_special_tokens_that_nothing_names_are_refused(foreign):
    table = json.loads((foreign / "vocab.json").read_text())
    (foreign / "vocab.json").write_text(json.dumps(table | {"<pad>": 300}))
    with pytest.raises(InputError, match=r"1 token of vocab.json is made by no merge .first '<pad>'"):
        Tokenizer.load(foreign)


@pytest.mark.parametrize(
    "token_id", [str(2**32), str(2**33), str(2**60), "1.5", "true", "[" * 100_000, "9" * 5000], ids=len
)
def test_ids_that_no_token_file_holds_are_refused(token_id, foreign):
    table = json.loads((foreign / "vocab.json").read_text())
    (foreign / "vocab.json").write_text(json.dumps(table | {END_OF_TEXT: 0.125}).replace("0.125", token_id))
    with pytest.raises(InputError, match=r"vocab\.json: (token '<.endoftext.>' has id|cannot be read)"):
        Tokenizer.load(foreign)


SPELLINGS = {  # tokens beside the single bytes, the special ones, merges, and whether their spelling is enough
    "ordinary": (["\u0120t", "\u0120th"], [], ["\u0120 t", "\u0120t h"], True),
    "a special token that a merge makes": (["th", "Ã©", "éé"], ["th", "éé"], ["t h", "Ã ©", "Ã© Ã©"], True),
    "a special token beside its bytes": (["Ã©", "Ã©Ã©", "éé"], ["éé"], ["Ã ©"], False),
    "a special token like the spelling of another": (["\u0120t"], ["\u0120t"], ["\u0120 t"], False),
    "no id": ([], [], ["t h"], False),
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_merges_are_found_by_their_spelling_as_by_their_bytes(kind):
    tokens, special_tokens, lines, enough = SPELLINGS[kind]
    table = {text: number for number, text in enumerate([*gpt2.byte_values(), *tokens])}
    found = gpt2.merge_ids_by_text(*gpt2.split_merges(lines), table, special_tokens)
    assert (found is not None) == enough
    if found is not None:
        ids = {token: token_id for token_id, token in gpt2.parse_vocabulary("", table, special_tokens).items()}
        merges = [tuple(map(gpt2.text_to_bytes, line.split(" "))) for line in lines]
        assert found.tolist() == find_merge_ids(merges, ids).tolist()
