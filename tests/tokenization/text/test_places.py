"""Proves that a file at a URL is read as the same file beside us is, from servers that serve parts of files and from
those that do not; that folders and patterns work where there are any; and that whatever goes wrong there, down to a
connection that ends early, is one line with the URL."""

import gzip
import importlib.util
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from tokenization import END_OF_TEXT, InputError, Tokenizer, train_bpe
from tokenization.__main__ import main
from tokenization.text.corpus import Corpus
from tokenization.text.packing import zstd
from tokenization.text.places import Url
from tokenization.text.text_files import TextFiles, reads

TEXTS = ["The cat's tale.\n", f"A hat{END_OF_TEXT}!", "漢字 😀 " * 2000, "the end"]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
FILES = {
    "t.txt": END_OF_TEXT.join(TEXTS).encode(),
    "t.jsonl": LINES,
    "t.jsonl.gz": gzip.compress(LINES),
    "t.ndjson.zst": zstd.compress(LINES),
}


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder: whole files only; under /parts/, parts of files; and what servers do wrong."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/fails"):
            self.send_error(500, "out of order")
        elif self.path.startswith("/cut."):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"the cat " * 20)
        elif self.path.startswith("/stored/"):  # an archive that is announced as a way to send what is in it
            self.path = self.path.removeprefix("/stored")
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        elif self.path.startswith("/endless/"):  # of a length that is not said
            self.send_response(200)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(Path(self.translate_path(self.path.removeprefix("/endless"))).read_bytes())
        elif self.path.startswith("/parts/"):
            data = Path(self.translate_path(self.path.removeprefix("/parts"))).read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            start, end = (int(asked[1]), min(int(asked[2]) + 1, len(data))) if asked else (0, len(data))
            self.send_response(206 if asked else 200)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            self.wfile.write(data[start:end])
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        self.path = self.path.removeprefix("/parts").removeprefix("/stored")
        if self.path.startswith("/cut."):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
        elif self.path.startswith(("/fails", "/endless")):
            self.do_GET()
        else:
            super().do_HEAD()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


class Server(ThreadingHTTPServer):
    """Says nothing of clients that leave early, as those do that only want the beginning."""

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web(served) -> Iterator[str]:
    """The URL of a server of that folder."""
    with Server(("127.0.0.1", 0), partial(Handler, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of a folder in memory with FILES, and with what is passed over."""
    files = fsspec.filesystem("memory")
    for name, data in {**FILES, "deep/a.md": b"deep", "README.md": b"about", "t.csv": b"1,2"}.items():
        files.pipe(f"/box/{name}", data)
    yield "memory://box"
    files.rm("/box", recursive=True)


def text_of(*inputs: str) -> list[str]:
    corpus = Corpus(inputs)
    return ["".join(corpus.blocks(file)).replace("\udcff", END_OF_TEXT) for file in corpus.files]


# --- reading ---


@pytest.mark.parametrize("name", FILES)
def test_a_file_at_a_url_is_read_as_the_same_file_beside_us(served, web, memory, name):
    whole = [END_OF_TEXT.join(TEXTS)]
    urls = [f"{web}/{name}", f"{web}/parts/{name}?download=true#top", f"{memory}/{name}"]
    urls += [f"{scheme}{served}/{name}" for scheme in ("file://", "file://localhost", "FILE://LocalHost")]
    for url in urls:
        assert text_of(url) == whole
    assert text_of(f"{web}/{name}", f"{memory}/{name}", f"HTTP{web[4:]}/{name}") == 2 * whole  # each name once


def test_training_and_encoding(served, web, memory, small, tmp_path):
    inputs = [f"{web}/t.jsonl.gz", f"{memory}/t.txt"]
    expected = small.encode_files([served / "t.jsonl.gz", served / "t.txt"], tmp_path / "here.bin", 1).description
    assert small.encode_files(inputs, tmp_path / "there.bin", 1).description == expected
    assert train_bpe(inputs, 300, num_processes=1) == train_bpe([served / "t.jsonl.gz", served / "t.txt"], 300)


def test_an_archive_is_read_as_it_is_stored(web):
    assert text_of(f"{web}/stored/t.jsonl.gz") == [END_OF_TEXT.join(TEXTS)]


def test_a_chain_has_the_name_of_what_is_read(served, tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.write(served / "t.jsonl", "in/t.jsonl")
    assert text_of(f"zip://in/t.jsonl::{tmp_path / 't.zip'}") == [END_OF_TEXT.join(TEXTS)]
    assert Url("simplecache::https://example.org/a.txt.gz").name == "a.txt.gz"


def test_a_length_that_is_not_said_is_measured(web):
    """Otherwise a large text would count as empty, and plain Python would do the work."""
    for name in FILES:
        url = f"{web}/endless/{name}"
        assert text_of(url) == [END_OF_TEXT.join(TEXTS)]
        assert Corpus([url]).file_bytes == 0
        assert Corpus([url]).text_bytes(10**9) == len(FILES["t.txt"] if name == "t.txt" else LINES)


def test_progress_ends_with_the_size_of_the_files(web, memory):
    corpus = Corpus([f"{web}/t.jsonl.gz", f"{memory}/t.ndjson.zst"])
    for file in corpus.files:
        assert "".join(corpus.blocks(file))
    assert corpus.file_bytes == len(FILES["t.jsonl.gz"]) + len(FILES["t.ndjson.zst"])


def test_folders_and_patterns(memory, monkeypatch):
    texts = TextFiles([memory])
    assert list(map(str, texts.files)) == [f"memory:///box/{name}" for name in ("deep/a.md", *sorted(FILES))]
    assert texts.summary() == (
        "reading 5 files; skipping 1 (about the other files; name it to have it read): README.md, and 1 (no .txt,"
        " .md, .jsonl, .ndjson, .parquet; name a file to have it read): t.csv"
    )
    found = TextFiles([f"{memory}/*.jsonl*", f"{memory}/t.csv"]).files
    assert [file.name for file in found] == ["t.jsonl", "t.jsonl.gz", "t.csv"]
    assert found[0] == Url(str(found[0]))
    assert reads([memory, f"{memory}/*"], Path("box/t.bin")) is None


def test_a_file_url_is_the_path_that_it_names(tmp_path):
    """A folder as well, a name with a space, and an output that a later run would read as text."""
    (tmp_path / "a b.txt").write_text("The cat")
    for url in (f"file://localhost{tmp_path}", f"file://{tmp_path}/a%20b.txt", f"file://{tmp_path}/*.txt"):
        assert TextFiles([url]).files == [tmp_path / "a b.txt"]
        assert (reads([url], tmp_path / "c.txt") is None) == ("%20" in url)


@pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="needs pyarrow")
def test_parquet_is_read_in_parts_where_the_server_has_them(served, web, memory):
    import pyarrow
    from pyarrow import parquet

    texts = [f"{number} " * 500 for number in range(4000)]
    parquet.write_table(pyarrow.table({"text": texts}), served / "t.parquet", compression="none", use_dictionary=False)
    fsspec.filesystem("memory").pipe("/box/t.parquet", (served / "t.parquet").read_bytes())
    for url in (f"{web}/parts/t.parquet", f"{memory}/t.parquet"):
        assert text_of(url) == [END_OF_TEXT.join(texts)]
    with pytest.raises(
        InputError, match=r"whole files only, and this kind is read in parts\); download it first"
    ) as error:
        text_of(f"{web}/t.parquet")
    assert str(error.value).startswith(f"{web}/t.parquet: ")


# --- what goes wrong ---


def test_whatever_goes_wrong_is_one_line_with_the_url(web, memory, small, tmp_path):
    wrong = {
        f"{web}/none.txt": "no such file",
        f"{web}/fails.txt": "cannot be read (500",
        f"{web}/cut.txt": "cannot be read (the connection was lost: ",
        f"{web}/*.txt": "no such file; a web server has no globs, so name each file",
        "http://127.0.0.1:1/t.txt": "cannot be read (Cannot connect",
        f"{memory}/none.txt": "no such file, folder or pattern",
        f"{memory}/none*": "no such file, folder or pattern",
        "memory://nowhere/deep": "no such file, folder or pattern",
        "file:///nowhere/t.txt": "/nowhere/t.txt: no such file, folder or pattern",
        "file://otherhost/t.txt": "file://otherhost/t.txt: is on the host 'otherhost'; a file of this machine is file:///",
        "nope://bucket/t.txt": "cannot be read (Protocol not known: nope",
    }
    for url, message in wrong.items():
        with pytest.raises(InputError) as error:
            small.encode_files([url], tmp_path / "t.bin", 1)
        assert str(error.value).startswith(f"{url}: {message}" if not url.startswith("file") else message), url
        assert "\n" not in str(error.value)
        assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(monkeypatch):
    for module in ("s3fs", "gcsfs"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    for url, package in (("s3://bucket/t.txt", "s3fs"), ("gs://bucket/*.jsonl", "gcsfs")):
        with pytest.raises(InputError, match=f"{re.escape(url)}: needs a package that is not installed .*{package}"):
            TextFiles([url])


def test_a_path_is_no_url():
    with pytest.raises(InputError, match=r"s3:/bucket/t\.txt: no such file.* needs ://, which a Path makes :/"):
        TextFiles([Path("s3://bucket/t.txt")])


def test_an_archive_that_the_connection_cuts_is_named(web, served):
    (served / "cut.jsonl.gz").write_bytes(FILES["t.jsonl.gz"][:-20])
    with pytest.raises(InputError, match=r"/cut2?\.jsonl\.gz: (cannot be read|damaged \.gz file)"):
        text_of(f"{web}/parts/cut.jsonl.gz")


def test_the_commands_take_urls(web, memory, small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small.save("tok")
    for line in (
        f"encode {web}/t.jsonl --tokenizer tok --output t.bin --processes 1",
        f"train {memory}/*.jsonl --vocab-size 260 --output new --processes 1",
        f"compare tok --text {web}/t.jsonl.gz",
    ):
        assert main(line.split(" ")) == 0
    assert Tokenizer.load("new").vocab_size == 260
    capsys.readouterr()
    assert main(["encode", f"{web}/none.jsonl", "--tokenizer", "tok", "--output", "u.bin"]) == 2
    assert capsys.readouterr().err == f"tokenization encode: {web}/none.jsonl: no such file\n"
