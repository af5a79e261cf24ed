"""Proves that a table is found by the very files it was made from, gives the same tokenizer, and is not in the way."""

import os
import random
import shutil
from pathlib import Path

import pytest

from tokenization import END_OF_TEXT, InputError, Tokenizer, kept_tables
from tokenization import tokenizer as tokenizer_module
from tokenization.caches import places
from tokenization.interchange import export_huggingface
from tokenization.pretokenization import CL100K_PATTERN


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TOKENIZATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_tables, "LEAST_MERGES", 1)
    return tmp_path / "cache" / "tables"


@pytest.fixture
def folder(small, tmp_path) -> Path:
    """A folder that was saved elsewhere: no table is kept of it."""
    Tokenizer(small.vocab, small.merges, [END_OF_TEXT, "<|é|>"], CL100K_PATTERN).save(tmp_path / "tok")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    return tmp_path / "tok"


def load_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    """Loads a folder without reading its vocabulary and its merges."""
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_module, "read_folder", None)  # a call would fail
        return Tokenizer.load(folder)


@pytest.mark.parametrize("layout", ["ours", "gpt2", "huggingface"])
def test_a_kept_table_gives_the_same_tokenizer(folder, small, cache, monkeypatch, layout):
    if layout == "huggingface":
        export_huggingface(Tokenizer.load(folder), folder / "tokenizer.json")
        (folder / "tokenizer_config.json").unlink()
    if layout == "gpt2":  # a vocabulary with gaps, a merge twice
        vocab = {token_id * 1000: token for token_id, token in small.vocab.items()}
        Tokenizer(vocab, [*small.merges, small.merges[0]], small.special_tokens).save(folder)
        shutil.rmtree(cache)
    read = Tokenizer.load(folder)
    assert len(list(cache.iterdir())) == 1 + (layout == "huggingface")
    kept = load_kept(folder, monkeypatch)
    assert (kept.vocab, kept.merges) == (read.vocab, read.merges)
    assert list(kept.vocab) == list(read.vocab)
    assert (kept.special_tokens, kept.pattern, kept.digest) == (read.special_tokens, read.pattern, read.digest)
    assert Tokenizer(kept.vocab, kept.merges, kept.special_tokens, kept.pattern).digest == kept.digest
    text = "Once upon a time<|é|> there was<|endoftext|> 1234 élan\n\n"
    assert kept.encode(text) == read.encode(text)
    assert kept.decode(kept.encode(text)) == text
    kept.switch.load()
    assert kept.encode(text) == read.encode(text)


@pytest.mark.parametrize("special_tokens", [[END_OF_TEXT, "<|é|>"], [], ["a", "漢 "]])
def test_what_was_saved_is_loaded_by_its_table(small, cache, tmp_path, monkeypatch, special_tokens):
    """By the very table that reading the folder would make."""
    saved = Tokenizer(small.vocab, [*small.merges, small.merges[0]], special_tokens, CL100K_PATTERN)
    saved.save(tmp_path / "tok")
    (path,) = cache.iterdir()
    content = path.read_bytes()
    kept = load_kept(tmp_path / "tok", monkeypatch)
    assert list(kept.vocab.items()) == list(saved.vocab.items())
    assert (kept.merges, kept.special_tokens, kept.pattern) == (saved.merges, saved.special_tokens, saved.pattern)
    path.unlink()
    read = Tokenizer.load(tmp_path / "tok")
    assert path.read_bytes() == content
    assert kept.digest == read.digest == saved.digest


def test_a_folder_that_another_process_replaces_at_once_has_its_own_table(small, cache, tmp_path, monkeypatch):
    """And a vocabulary that lacks a byte, which no folder may have, has none."""
    other = Tokenizer(small.vocab, small.merges[:-5], [END_OF_TEXT])
    write_folder = tokenizer_module.write_folder

    def replaced(*arguments):
        written = write_folder(*arguments)
        write_folder(arguments[0], other.vocab, other._merge_ids, other.special_tokens, other.pattern)
        return written

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_module, "write_folder", replaced)
        Tokenizer(small.vocab, small.merges, [END_OF_TEXT]).save(tmp_path / "tok")
    assert Tokenizer.load(tmp_path / "tok").merges == other.merges
    assert len(list(cache.iterdir())) == 2
    Tokenizer({97: b"a", 98: b"b", 99: b"ab"}, [(b"a", b"b")]).save(tmp_path / "few")
    with pytest.raises(InputError, match="single bytes have no token"):
        Tokenizer.load(tmp_path / "few")
    assert len(list(cache.iterdir())) == 2


def test_any_change_to_a_file_or_to_the_sources_finds_no_table(folder, cache, monkeypatch):
    digest = Tokenizer.load(folder).digest
    (kept,) = cache.iterdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"e", b"f", 1))
        with pytest.raises(InputError):
            Tokenizer.load(folder)
        path.write_bytes(whole)
    (folder / "added_tokens.json").write_text("{}")
    assert Tokenizer.load(folder).digest == digest
    (folder / "added_tokens.json").unlink()
    monkeypatch.setattr(kept_tables, "SOURCES", kept_tables.SOURCES[1:])
    assert Tokenizer.load(folder).digest == digest
    assert len(list(cache.iterdir())) == 3
    assert kept.exists()


def test_a_damaged_table_is_no_table_and_is_replaced(folder, cache, monkeypatch):
    digest = Tokenizer.load(folder).digest
    (path,) = cache.iterdir()
    whole, source = path.read_bytes(), random.Random(0)
    for _ in range(20):
        damaged = bytearray(whole[: source.randrange(len(whole) + 1)] if source.random() < 0.3 else whole)
        if len(damaged) == len(whole):
            damaged[source.randrange(len(damaged))] ^= 1 << source.randrange(8)
        path.write_bytes(damaged)
        assert Tokenizer.load(folder).digest == digest
        assert path.read_bytes() == whole


def test_the_digest_is_kept_once_it_was_asked_for(folder, cache, monkeypatch):
    """Of the folder's own tokenizer alone, and not of one that was changed after it was loaded."""
    changed = Tokenizer.load(folder)
    changed.special_tokens = [END_OF_TEXT]
    assert changed.digest != Tokenizer.load(folder).digest
    kept = load_kept(folder, monkeypatch)
    assert kept.__dict__["digest"] == Tokenizer(kept.vocab, kept.merges, kept.special_tokens, kept.pattern).digest


def test_files_that_change_while_they_are_read_are_not_kept(folder, cache, monkeypatch):
    read_folder = tokenizer_module.read_folder

    def change(name: Path):
        definition = read_folder(name)
        (folder / "added_tokens.json").write_text("{}")
        return definition

    monkeypatch.setattr(tokenizer_module, "read_folder", change)
    Tokenizer.load(folder)
    assert not cache.exists()


def test_only_the_tables_that_were_used_last_are_kept(small, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_tables, "MAX_KEPT", 3)
    for number in range(5):
        tokenizer = Tokenizer(small.vocab, small.merges, [f"<|{number}|>"])
        tokenizer.save(tmp_path / f"tok{number}")
        Tokenizer.load(tmp_path / f"tok{number}")
        for age, path in enumerate(sorted(cache.iterdir(), key=lambda path: -path.stat().st_mtime)):
            os.utime(path, (1e9 - age, 1e9 - age))
        if number:
            load_kept(tmp_path / "tok0", monkeypatch)  # is used again and again
    assert len(list(cache.iterdir())) == 3


def test_where_nothing_can_be_written_a_folder_loads_as_ever(folder, small, cache, monkeypatch):
    cache.parent.write_text("a file where the cache would be")
    for _ in range(2):
        assert Tokenizer.load(folder).vocab == Tokenizer.load(folder).vocab
    monkeypatch.setattr(kept_tables, "LEAST_MERGES", 10_000)
    cache.parent.unlink()
    Tokenizer.load(folder)
    assert not cache.exists()


def test_a_table_that_cannot_be_touched_is_used(folder, cache, monkeypatch):
    """Somebody else has kept it, or the disk is read-only."""
    Tokenizer.load(folder)

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(kept_tables.os, "utime", refuse)
    load_kept(folder, monkeypatch)


def test_a_table_goes_to_the_next_place_where_the_first_cannot_be_written(folder, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(kept_tables, "places", lambda _: [tmp_path / "first", tmp_path / "second"])
    Tokenizer.load(folder)
    (table,) = (tmp_path / "first/tables").iterdir()
    table.write_bytes(b"damaged, and not to be replaced")
    writing = kept_tables.writing

    def elsewhere(path):
        if path.parent == table.parent:
            raise PermissionError
        return writing(path)

    monkeypatch.setattr(kept_tables, "writing", elsewhere)
    Tokenizer.load(folder)
    assert [path.name for path in (tmp_path / "second/tables").iterdir()] == [table.name]
    load_kept(folder, monkeypatch)


def test_a_user_without_a_home_has_no_cache_there(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    for name in ("TOKENIZATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert places(tmp_path) == [tmp_path / "__pycache__"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert places(tmp_path) == [tmp_path / "__pycache__", tmp_path / "cache/tokenization"]
