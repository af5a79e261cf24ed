"""Proves that Ray gives the bytes of one process, however many of its workers are killed, and reads from S3.

`make test-cluster` installs Ray and moto, and runs this; elsewhere it is skipped. test_ray_engine.py does without Ray.
"""

import contextlib
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.processes import free_port

from tokenization import END_OF_TEXT, TokenFile, Tokenizer, train_bpe
from tokenization.__main__ import main
from tokenization.bpe import learn_merges
from tokenization.pretokenization import count_pretokens

PATTERN = r"\w+\W?|\W+"  # which the kernels do not know: so a task takes long enough to be killed in it
FILES, KILLS = 12, 20
HAVE_RAY = importlib.util.find_spec("ray") is not None


def run(line: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tokenization", *line.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(process: int) -> list[int]:
    """Returns the descendants of a process, from /proc."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found, new = [], [process]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def tasks_of(process: int, name: bytes = rb"\d{5}|sum-") -> list[int]:
    """Returns the workers below a process that are at a task. name: a regular expression of its beginning."""
    found = []
    for child in children(process):
        try:
            if re.match(rb"ray::(%b)" % name, Path(f"/proc/{child}/cmdline").read_bytes()):
                found.append(child)
        except OSError:
            continue
    return found


def kill_until_done(line: str, cluster: int, rng: random.Random) -> int:
    """Runs a command again until it ends well, while the cluster's workers are killed at random; returns how many."""
    kills, code, results_at_kill = 0, None, -1
    while code != 0:
        process = run(line)
        while process.poll() is None:
            time.sleep(rng.uniform(0.1, 0.5))
            at_work, results = tasks_of(cluster), len(list(Path.cwd().glob("*/.tasks/*")))
            if at_work and kills < KILLS and results != results_at_kill:  # so that no machine is too slow for it
                results_at_kill = results
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(at_work), signal.SIGKILL)
                    kills += 1
        code, (_, err) = process.returncode, process.communicate()
        assert code == 0 or (code == 2 and "its worker was lost 4 times" in err), err
    return kills


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A folder with texts and a tokenizer for them."""
    monkeypatch.chdir(tmp_path)
    source = random.Random(3)
    words = ["".join(source.choices("abcdefghé", k=source.randint(1, 9))) for _ in range(9000)]
    for number in range(FILES):
        Path(f"{number:02}.txt").write_text(" ".join(source.choices(words, k=90_000)) + END_OF_TEXT)
    counts = count_pretokens(Path("00.txt").read_text()[:100_000], [END_OF_TEXT], PATTERN)
    Tokenizer(*learn_merges(counts, 400, [END_OF_TEXT]), [END_OF_TEXT], PATTERN).save("given")
    return tmp_path


S3_PORT = free_port()
# Tasks have the environment of their cluster, and not that of the command.
S3 = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{S3_PORT}", "AWS_DEFAULT_REGION": "us-east-1"}
S3 |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "testing")


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    """Ray's files in a folder of these tests, with a short name, for sockets; no cluster but the one a test names."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ADDRESS", "local")
        yield


GCS_PORT, CLIENT_PORT = free_port(), free_port()


@pytest.fixture(scope="module")
def cluster() -> Iterator[int]:
    """The process id of a cluster of two cores on this machine, which RAY_ADDRESS names."""
    ray = Path(sys.executable).with_name("ray")
    ports = f"--port {GCS_PORT} --min-worker-port 0 --max-worker-port 0 --ray-client-server-port {CLIENT_PORT}"
    options = f"--head --block {ports} --num-cpus 2 --include-dashboard=false"
    settings = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "600"}
    settings["RAY_ADDRESS"] = ""  # the servers for ray:// would start clusters of their own
    command = [ray, "start", *options.split()]
    process = subprocess.Popen(command, env=os.environ | settings | S3, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any("Ray runtime started" in line for line in process.stdout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", f"127.0.0.1:{GCS_PORT}")
        yield process.pid
    process.terminate()
    process.wait()
    process.stdout.close()


class TestRay:
    pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HAVE_RAY, reason="needs Ray")]  # noqa: RUF012

    def test_a_damaged_file_is_named_and_all_others_are_done(self, work):
        Path("03.txt").write_bytes(b"\xff")
        process = run(
            "encode 01.txt 02.txt 03.txt 04.txt --tokenizer given --output s.tokens --shard-size 1 --engine ray"
        )
        _, err = process.communicate()
        assert process.returncode == 2
        assert err.splitlines()[-1].startswith("tokenization encode: 03.txt: not UTF-8 at byte 0")
        assert sorted(path.name for path in Path("s.tokens").glob("*.bin")) == ["00000.bin", "00001.bin", "00003.bin"]

    def test_workers_are_killed_at_random_and_the_results_are_equal(self, work, cluster, capsys):
        texts = sorted(work.glob("*.txt"))
        Tokenizer.load("given").encode_files(texts, "one.bin")
        vocabulary = train_bpe(texts, 400, [END_OF_TEXT], pattern=PATTERN)
        names, rng, kills, round_ = " ".join(path.name for path in texts), random.Random(), 0, 0
        train = f"train {names} --vocab-size 400 --pattern {PATTERN} --output tok{{}} --work work{{}} --group-size 1"
        encode = f"encode {names} --tokenizer given --output set{{}}.tokens --shard-size 1"
        while kills < KILLS:
            round_ += 1
            for line in (train, encode):
                kills += kill_until_done(f"{line.format(round_, round_)} --engine ray", cluster, rng)
            learnt = Tokenizer.load(f"tok{round_}")
            assert (learnt.vocab, learnt.merges) == vocabulary
            shards = sorted(Path(f"set{round_}.tokens").glob("*.bin"))
            assert b"".join(path.read_bytes() for path in shards) == Path("one.bin").read_bytes()
            assert TokenFile.open(f"set{round_}.tokens").description == TokenFile.open("one.bin").description
        with capsys.disabled():
            print(f"\n{kills} workers killed in {round_} rounds")

    def test_a_task_that_is_lost_every_time_is_named_and_all_others_are_done(self, work, cluster):
        line = "encode 00.txt 01.txt 02.txt 03.txt --tokenizer given --output s.tokens --shard-size 1 --engine ray"
        process = run(line)
        while process.poll() is None:
            for worker in tasks_of(cluster, b"00001"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            time.sleep(0.02)
        _, err = process.communicate()
        assert process.returncode == 2
        assert err.splitlines()[-1].startswith("tokenization encode: 00001.bin of 01.txt: its worker was lost 4 times")
        assert sorted(path.name for path in Path("s.tokens").glob("*.bin")) == ["00000.bin", "00002.bin", "00003.bin"]
        assert main(line.split()[:-2]) == 0
        Tokenizer.load("given").encode_files([f"{number:02}.txt" for number in range(4)], "one.bin")
        assert TokenFile.open("s.tokens").description == TokenFile.open("one.bin").description

    def test_ctrl_c_ends_it_and_the_same_command_goes_on(self, work, cluster):
        """At random moments among short tasks: Ray aborts a process that cancels a task which is just ending."""
        text, names = Path("00.txt").read_text(), [f"short-{number}.txt" for number in range(80)]
        for number, name in enumerate(names):
            Path(name).write_text(text[number * 2000 : number * 2000 + 2000])
        line = f"encode {' '.join(names)} --tokenizer given --output s.tokens --shard-size 1"
        rng, interrupted = random.Random(), 0
        while interrupted < 5:
            process = run(f"{line} --engine ray")
            done = len(list(work.glob("s.tokens/*.bin")))
            while process.poll() is None and len(list(work.glob("s.tokens/*.bin"))) <= done:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.2))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
            if process.returncode == 0:  # it was faster
                shutil.rmtree("s.tokens")
                continue
            interrupted += 1
            assert process.returncode == 130
            assert "Traceback" not in err
            assert "shards are done; the same command resumes with the next" in err
        assert main(line.split()) == 0
        Tokenizer.load("given").encode_files(names, "one.bin")
        assert TokenFile.open("s.tokens").description == TokenFile.open("one.bin").description

    def test_a_cluster_is_used_from_outside(self, work, cluster):
        line = "encode 00.txt 01.txt --tokenizer given --output s.tokens --shard-size 1"
        process = run(f"{line} --engine ray://127.0.0.1:{CLIENT_PORT}", RAY_ADDRESS="")
        _, err = process.communicate()
        assert process.returncode == 0, err
        Tokenizer.load("given").encode_files(["00.txt", "01.txt"], "one.bin")
        assert TokenFile.open("s.tokens").description == TokenFile.open("one.bin").description

    @pytest.mark.parametrize(
        ("engine", "address", "message"),
        [
            ("ray", f"127.0.0.1:{free_port()}", "no cluster answers at 127.0.0.1:"),
            ("ray", "http://127.0.0.1:8265", "cannot use http://127.0.0.1:8265 (Invalid Ray address"),
            ("ray", f"127.0.0.1:{CLIENT_PORT}", f"cannot use 127.0.0.1:{CLIENT_PORT}, named by RAY_ADDRESS ("),
            (f"ray://127.0.0.1:{free_port()}", "", "no cluster answers at 127.0.0.1:"),
            (f"ray://127.0.0.1:{GCS_PORT}", "", f"cannot use 127.0.0.1:{GCS_PORT}, named by --engine ("),
        ],
    )
    def test_no_cluster_at_the_address_is_one_line(self, work, cluster, engine, address, message):
        line = f"encode 01.txt --tokenizer given --output s.tokens --engine {engine}"
        process = run(line, RAY_ADDRESS=address)
        _, err = process.communicate(timeout=40)
        assert process.returncode == 2
        *warnings, line = err.splitlines()  # Ray's own, of a port that is another one's
        assert line.startswith(f"tokenization encode: --engine ray: {message}")
        assert not (warnings and line.startswith("tokenization encode: --engine ray: no cluster"))
        assert not Path("s.tokens").exists()

    def test_texts_on_s3(self, work, cluster, monkeypatch):
        pytest.importorskip("s3fs")
        for name, value in S3.items():
            monkeypatch.setenv(name, value)
        command = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(S3_PORT)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.encode_from_s3(work)
        finally:
            server.kill()
            server.wait()

    def encode_from_s3(self, work: Path) -> None:
        import fsspec

        for _ in range(100):
            try:
                urllib.request.urlopen(f"{S3['AWS_ENDPOINT_URL']}/moto-api/").close()
                break
            except OSError:
                time.sleep(0.2)
        store = fsspec.filesystem("s3")
        store.mkdir("crawl")
        for path in work.glob("0[0-4].txt"):
            store.put(str(path), f"crawl/{path.name}")
        process = run("encode s3://crawl/*.txt --tokenizer given --output s.tokens --shard-size 1 --engine ray")
        _, err = process.communicate()
        assert process.returncode == 0, err
        Tokenizer.load("given").encode_files(sorted(work.glob("0[0-4].txt")), "one.bin")
        assert TokenFile.open("s.tokens").description == TokenFile.open("one.bin").description
        half = "encode s3://crawl/*.txt --tokenizer given --output half.tokens --shard-size 1 --part"
        assert main([*half.split(), "0/2"]) == 0
        store.put("05.txt", "crawl/03.txt")
        assert main([*half.split(), "1/2"]) == 2  # the server's ETag says so
