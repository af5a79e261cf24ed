"""The pages of the documentation: their blocks of code, and which of these are run."""

import re
import runpy
import shlex
from dataclasses import dataclass
from importlib import import_module

import pytest

from helpers import ROOT
from lm.__main__ import COMMANDS
from lm.commands import account, find_lr, race, read_with_settings, sweep

SWEEPERS = {"sweep": sweep, "find-lr": find_lr}

RUN_PAGES = (  # in the order of their running
    "docs/walkthrough.md",
    "README.md",
    "docs/start.md",
    "docs/your-text.md",
    "docs/share.md",
)
UNDERSTOOD_PAGES = ("docs/cs336.md",)  # whose commands are given to the parsers alone
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A block of code of a page. why: the reason why it is not run, if a comment above it gives one."""

    language: str
    code: str
    why: str | None

    def lines(self) -> list[str]:
        """Returns the commands of a block of shell, without comments; one that goes on in the next line is one."""
        joined = self.code.replace("\\\n", " ").splitlines()
        return [command for line in joined if (command := re.sub(r"(^|\s)# .*", "", line).strip())]


def read_blocks(page: str) -> list[Block]:
    """Returns all blocks of a page, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(found["language"], found["code"], found["why"]) for found in BLOCK.finditer(text)]


def blocks(language: str, *pages: str) -> list[str]:
    """Returns the blocks of a language that are run, in the order of the pages."""
    found = [block for page in pages for block in read_blocks(page)]
    return [block.code for block in found if block.language == language and block.why is None]


def commands(*pages: str) -> list[str]:
    """Returns the lines of the blocks of shell commands that are run."""
    return [line for block in blocks("sh", *pages) for line in block.splitlines()]


def check_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives a command to the parser of its program, which ends the test if it does not understand it."""
    from lm.training.parser import SettingsCLI

    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # as python does for a script
    program, name, *arguments = words
    if program == "python":
        parts = runpy.run_path(name)
        assert not arguments or parts["make_parser"]().parse_args(arguments)
    elif program == "tokenization":
        import_module(f"tokenization.commands.{name}").make_parser().parse_args(arguments)
    elif name == "account":
        args, rest = account.make_parser().parse_known_args(arguments[1:])
        account.check(args, arguments[0])
        assert rest == []
    elif name == "fit":
        SettingsCLI([name, *arguments])
    elif name == "validate":  # a run has the settings of the configuration that has its name
        SettingsCLI([name, "-c", arguments[0].replace("checkpoints", "configs") + ".yaml", *arguments[1:]])
    elif name in SWEEPERS:
        SettingsCLI(["fit", *read_with_settings(SWEEPERS[name].make_parser(), arguments)[1]])
    elif name == "race":
        args, rest = race.make_parser().parse_known_args(arguments)
        configs, shared = race.split(rest)
        for settings in ("", *(variant.partition(":")[2] for variant in args.variant)):
            SettingsCLI(["fit", "-c", configs[0], *shared, *shlex.split(settings)])
    else:
        import_module(f"lm.commands.{COMMANDS[name]}").make_parser().parse_args(arguments)
