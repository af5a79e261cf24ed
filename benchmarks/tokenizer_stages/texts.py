"""Texts of four kinds and vocabularies for three patterns: published ones from a folder, or made here, the same always.

  english*.txt, multilingual*.txt            .gz or not; documents are separated by <|endoftext|>
  gpt2_vocab.json, gpt2_merges.txt           GPT-2's own
  cl100k_base.tiktoken, o200k_base.tiktoken  OpenAI's, .gz or not

English is otherwise the stories of this repository, multilingual text is random words of several scripts, and each
vocabulary is learnt from these. CJK is what is written so of the multilingual text; code is Python's own library.
"""

import gzip
import json
import os
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenization import END_OF_TEXT, Tokenizer, train_bpe
from tokenization.interchange import KNOWN_SPECIAL_TOKENS, export_huggingface, export_tiktoken, import_tiktoken
from tokenization.pretokenization import PATTERNS
from tokenizer_stages.peers import ABOUT

ROOT = Path(__file__).parent.parent.parent
KINDS = ("english", "multilingual", "code", "cjk")
SCRIPTS = (  # letters of Latin, Cyrillic, Greek, Hebrew, Devanagari, Chinese and Korean
    *(range(0x61, 0x7B), range(0x430, 0x450), range(0x3B1, 0x3CA), range(0x5D0, 0x5EB), range(0x905, 0x93A)),
    *(range(0x4E00, 0x5200), range(0xAC00, 0xAE00)),
)
CJK = re.compile("[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")


def read_text(kind: str, data: Path | None, num_bytes: int) -> bytes:
    """Returns at most so many bytes of a kind of text, as UTF-8, without <|endoftext|>."""
    parts: list[str] = []
    length = 0
    for document in documents_of(kind, data, num_bytes):
        parts.append(document)
        length += len(document.encode())
        if length >= num_bytes:
            break
    return "".join(parts).encode()[:num_bytes].decode(errors="ignore").encode()


def documents_of(kind: str, data: Path | None, num_bytes: int) -> Iterator[str]:
    if kind == "code":
        for path in sorted(Path(os.__file__).parent.glob("**/*.py")):
            if "site-packages" not in path.parts and path.stat().st_size > 1000:
                yield path.read_text(encoding="utf-8", errors="replace")
    elif kind == "cjk":
        for document in documents_of("multilingual", data, 50 * num_bytes):
            if len(CJK.findall(document)) > 0.3 * len(document):
                yield document
    else:
        found = sorted(data.glob(f"{kind}*.txt*")) if data else []
        if not found and kind == "english":
            found = [ROOT / "data" / "tinystories-train.txt.gz"]
        if found:
            yield from read(found[0]).decode().split(END_OF_TEXT)
        else:
            yield from made_up(num_bytes)


def write_english(path: Path, data: Path | None, num_bytes: int) -> None:
    """Writes at most so many bytes of whole documents, with <|endoftext|> between them."""
    chosen: list[str] = []
    for document in documents_of("english", data, num_bytes):
        num_bytes -= len(f"{document}{END_OF_TEXT}".encode())
        if num_bytes < 0:
            break
        chosen.append(document)
    path.write_text(END_OF_TEXT.join(chosen), encoding="utf-8", newline="")


def read(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def made_up(num_bytes: int) -> Iterator[str]:
    """Yields documents of one script each: words of a few letters, of which some are frequent."""
    source = random.Random(0)
    while num_bytes > 0:
        for letters in (list(map(chr, script)) for script in SCRIPTS):
            words = ["".join(source.choices(letters, k=source.randint(1, 8))) for _ in range(300)]
            weights = [1 / rank for rank in range(1, 301)]
            document = " ".join(source.choices(words, weights, k=1000)) + ".\n"
            num_bytes -= len(document.encode())
            yield document


def write_vocabularies(folder: Path, data: Path | None, names: Iterable[str]) -> None:
    """Writes the vocabularies of these patterns for `Vocabulary.read`, but for those that the folder of data lacks."""
    about = {}
    for name in names:
        if (tokenizer := published(name, data, folder) if data else learnt(name, folder)) is not None:
            tokenizer.save(folder / name)
            export_huggingface(tokenizer, folder / f"{name}.json")
            export_tiktoken(tokenizer, folder / f"{name}.tiktoken")
            special = {token: tokenizer.encode(token)[0] for token in tokenizer.special_tokens}
            about[name] = {"pattern": PATTERNS[name], "special": special, "published": data is not None}
    (folder / ABOUT).write_text(json.dumps(about))


def published(name: str, data: Path, folder: Path) -> Tokenizer | None:
    if name == "gpt2" and (data / "gpt2_vocab.json").exists():
        return Tokenizer.from_files(data / "gpt2_vocab.json", data / "gpt2_merges.txt", [END_OF_TEXT])
    found = sorted(data.glob(f"{name}*.tiktoken*"))
    if not found:
        return None
    (folder / f"{name}.ranks.tiktoken").write_bytes(read(found[0]))
    return import_tiktoken(folder / f"{name}.ranks.tiktoken", PATTERNS[name], KNOWN_SPECIAL_TOKENS[name])


def learnt(name: str, folder: Path) -> Tokenizer:
    (folder / "learn.txt").write_bytes(b"".join(read_text(kind, None, 100_000) for kind in KINDS))
    vocab, merges = train_bpe(folder / "learn.txt", 2000, pattern=PATTERNS[name], num_processes=1)
    return Tokenizer(vocab, merges, [END_OF_TEXT], PATTERNS[name])
