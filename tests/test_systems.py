"""Proves that both packages work where POSIX is missing: a process on Linux that refuses what Windows refuses runs
their commands. And that one file alone calls what not every system has, and that text files have an encoding named."""

import ast
import json
import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT
from helpers.runs import DEBUG, TINY

PROGRAM = ROOT / "tests" / "helpers" / "windows.py"
TEXT = "日本の猫 — “Tom” saw a red ball. Übung!\n" * 20 + "<|endoftext|>" + "One day Lily ran.\n" * 20
SOURCES = sorted(path for package in ("lm", "tokenization") for path in (ROOT / package).rglob("*.py"))
POSIX = re.compile(
    r"\b(fcntl|resource|termios|tty|pty|pwd|grp|syslog|select\.e?poll\w*|signal\.(SIG(HUP|USR\d|KILL|ALRM|PIPE"
    r"|CHLD|QUIT|TSTP|CONT|STOP)|setitimer|alarm|pthread_\w+|pause)|mmap\.(MAP|MADV|PROT)_\w+|os\.(fork\w*|register_at_"
    r"fork|sched_\w+|sysconf|statvfs|sync|fdatasync|gete?[ug]id|getpg\w+|killpg|setsid|nice|p(read|write)v?|posix_"
    r"\w+|mkfifo|getloadavg|openpty|l?chown|fchmod|fchown|uname|O_(NOFOLLOW|DIRECTORY|D?SYNC|CLOEXEC)))$"
)


def test_commands_where_posix_is_missing(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8", newline="")
    tokenizer, tokens, run = (str(tmp_path / name) for name in ("tok", "text.bin", "run"))
    text, token_set = str(tmp_path / "text.txt"), str(tmp_path / "text.tokens")
    settings = {name: value for name, value in TINY.items() if name != "model.vocab_size"}
    settings |= {"trainer.default_root_dir": run, "trainer.max_steps": 4, "trainer.val_check_interval": 2}
    settings |= {"data.train_path": tokens, "data.val_path": tokens, "data.tokenizer": tokenizer}
    settings |= {
        "checkpoints.every_n_steps": 1,
        "samples.max_new_tokens": 3,
        "model.vocab_size": 300,
        "model.warmup_steps": 1,
    }
    fit = ["lm", "fit", "-c", str(DEBUG), *(f"--{name}={value}" for name, value in settings.items())]
    train = ["tokenization", "train", text, "--vocab-size=300", f"--output={tokenizer}"]
    encode = ["tokenization", "encode", text, f"--tokenizer={tokenizer}"]
    commands = [
        train,
        [*train, "--overwrite"],
        [*encode, f"--output={tokens}"],
        [*encode, f"--output={tokens}", "--overwrite"],
        [*encode, f"--output={token_set}/"],
        [*encode, f"--output={token_set}/", "--overwrite"],
        ["tokenization", "decode", tokens, f"--tokenizer={tokenizer}"],
        ["tokenization", "inspect", tokenizer, "--word", "日本"],
        fit,
        [*fit, "--trainer.max_steps=6", "--ckpt_path=auto"],
        ["lm", "validate", run],
        ["lm", "test", run, text],
        ["lm", "generate", run, "--prompt=日本", "--max-new-tokens=5"],
        ["lm", "serve", run, "--port=0"],
        ["lm", "export", run, f"--output={tmp_path / 'hf'}"],
        ["lm", "report", run],
    ]
    (tmp_path / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
    environment = {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    environment |= {"PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, PROGRAM, tmp_path]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    codes = json.loads((tmp_path / "codes.json").read_text(encoding="utf-8"))
    failed = [command for command, code in zip(commands, codes, strict=True) if code]
    assert not failed, (done.stdout + done.stderr).decode(errors="replace")


def foreign_to_some(source: str) -> list[str]:
    """Returns the modules and functions in a source that not every system has."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.append(f"{node.value.id}.{node.attr}")
    return [name for name in found if POSIX.fullmatch(name)]


def without_encoding(source: str) -> list[int]:
    """Returns the lines of a source that open a text file in whatever encoding the system prefers."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        settings = {keyword.arg: keyword.value for keyword in call.keywords}
        mode = settings.get("mode") or (call.args[1] if len(call.args) > 1 else None)
        if name == "open" and isinstance(call.func, ast.Name):
            binary = isinstance(mode, ast.Constant) and "b" in mode.value
        else:
            binary = name not in ("read_text", "write_text") or isinstance(call.func, ast.Name)
        if not binary and "encoding" not in settings:
            found.append(call.lineno)
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import fcntl, os\nos.path.join('a')", ["fcntl"]),
        ("from os import fork", ["os.fork"]),
        (
            "import os, signal\nos.sched_getaffinity(0), signal.SIGUSR1, signal.SIGTERM",
            ["os.sched_getaffinity", "signal.SIGUSR1"],
        ),
        ("def f():\n    import resource", ["resource"]),
    ],
)
def test_what_some_systems_lack_is_found(source, found):
    assert sorted(foreign_to_some(source)) == found


def test_text_without_an_encoding_is_found():
    source = "open(a)\nopen(a, 'rb')\nopen(a, 'w', encoding='utf-8')\nopen(a, mode='x')\np.read_text()\np.open(a)\n"
    assert without_encoding(source) == [1, 4, 5]


def test_one_file_calls_what_some_systems_lack():
    found = {path.relative_to(ROOT).as_posix(): foreign_to_some(path.read_text("utf-8")) for path in SOURCES}
    assert {"fcntl", "resource", "termios", "os.register_at_fork"} <= set(found.pop("tokenization/systems.py"))
    assert {path: names for path, names in found.items() if names} == {}


def test_text_files_have_an_encoding_named():
    """Windows takes another one than UTF-8."""
    found = {path.relative_to(ROOT).as_posix(): without_encoding(path.read_text("utf-8")) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}
