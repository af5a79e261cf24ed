"""The command `lm`, also `python -m lm`: what each of its commands is, and how it fails.

Verify is written out here; the others are in the files that do their work. What takes long to import is imported when
signals are listened to.
"""

import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module

from lm.contention import choose_waiting
from lm.machine import keep_large_blocks, use_granted_cores
from lm.signals import interruptible

HELP = """usage: lm {init,fit,validate,account,sweep,find-lr,report,generate,serve,test,export,import,verify} ...

  lm init work                                    put the configurations and sample stories into a folder
  lm fit -c configs/demo.yaml                     train; the run becomes a folder under checkpoints/
  lm fit -c configs/demo.yaml --model.num_layers 6 --trainer.default_root_dir checkpoints/deeper
                                                  the same with other values; they count more than the file's,
                                                  wherever -c stands; a name that does not exist is an error
  lm fit -c configs/demo.yaml --print_config      every setting there is, with its value
  lm fit -c checkpoints/demo/config.yaml --ckpt_path checkpoints/demo/last.ckpt
                                                  go on where the run stopped; `--ckpt_path auto` finds the newest
                                                  checkpoint that is whole, and begins where there is none
  lm validate checkpoints/demo                    loss, perplexity and bits per byte on the validation file
  lm generate checkpoints/demo --prompt "Once upon a time"
                                                  write a text, or many from a file; --interactive to talk
  lm serve checkpoints/demo                       a page to write with, and OpenAI's API, on this machine
  lm test checkpoints/demo data/demo/valid.bin    how well a model predicts a text, or each document of it
  lm export checkpoints/demo --format hf --output exported
                                                  for transformers, llama.cpp and others
  lm import exported --output checkpoints/again   a Llama of transformers' as a run of ours
  lm verify checkpoints/demo                      is every checkpoint still what was saved?
  lm account -c configs/demo.yaml                 what a run will cost: parameters, memory, FLOPs; with --probe
                                                  also the time of all of it, from some of its steps
  lm sweep -c configs/demo.yaml --param model.learning_rate --values 1e-3 4e-3 1.6e-2 --trainer.max_steps 200
                                                  a short training with each value, a table and a plot
  lm find-lr -c configs/demo.yaml                 a quick look for the learning rate
  lm report checkpoints/demo                      a run, or several compared, as one page with curves

`lm COMMAND --help` lists what each one takes; `lm --version` prints the version.
"""

VERIFY_HELP = (
    """Read checkpoints and the tokenizer beside them, and compare every byte with the digests saved with them."""
)


def run_verify(argv: list[str]) -> None:
    from lm.run_folder import describe
    from tokenization.commands import ArgumentParser

    parser = ArgumentParser(prog="lm verify", description=VERIFY_HELP)
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT", help="a checkpoint, or a run's folder for all in it")
    for path in parser.parse_args(argv).checkpoints:
        for line in describe(path):
            print(line)


def run_lightning(argv: list[str]) -> None:
    from lm.cli import RunCLI

    RunCLI(argv)


def defined_in(module: str, function: str) -> Callable[[list[str]], None]:
    """A command that its own file defines, which is read when it is called."""

    def run(argv: list[str]) -> None:
        getattr(import_module(module), function)(argv[1:])

    return run


@contextmanager
def training() -> Iterator[None]:
    """The machine made ready; what Lightning and jsonargparse refuse comes out in one line."""
    keep_large_blocks()
    use_granted_cores()
    from jsonargparse import ArgumentError
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from tokenization import InputError

    try:
        yield
    except ArgumentError as error:
        message = textwrap.shorten(str(error), 400)  # on one line, however much of a wrong file it quotes
        raise InputError(f"{message}; `lm fit --print_config` shows every setting") from None
    except MisconfigurationException as error:
        raise InputError(" ".join(str(error).split())) from None


COMMANDS = {
    "init": defined_in("lm.init", "run_init"),
    "fit": run_lightning,
    "validate": run_lightning,
    "account": defined_in("lm.account", "run_account"),
    "sweep": defined_in("lm.sweep", "run_sweep"),
    "find-lr": defined_in("lm.find_lr", "run_find_lr"),
    "report": defined_in("lm.report", "run_report"),
    "generate": defined_in("lm.generate", "run_generate"),
    "serve": defined_in("lm.serve", "run_serve"),
    "test": defined_in("lm.evaluation", "run_test"),
    "export": defined_in("lm.export", "run_export"),
    "import": defined_in("lm.importing", "run_import"),
    "verify": lambda argv: run_verify(argv[1:]),
}
TRAINING = ("fit", "validate", "account", "sweep", "find-lr")  # that read the settings of a run
COMPUTING = (*TRAINING, "generate", "serve", "test")  # on as many threads as there are cores


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        with interruptible(argv[0]) if argv and argv[0] in TRAINING else nullcontext():
            return run_command(argv)
    except KeyboardInterrupt:
        return 130
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):  # which Lightning answers with a 1
            return 130
        raise


def run_command(argv: list[str]) -> int:
    from tokenization import InputError
    from tokenization.errors import describe_os_error, did_you_mean, drop_stdout
    from tokenization.version import own_version

    name = " ".join(["lm", *argv[:1]])
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(HELP, end="", flush=True)
            return 0 if argv else 2
        if argv[0] == "--version":
            print(f"lm {own_version()}", flush=True)
            return 0
        if argv[0] not in COMMANDS:
            meant = did_you_mean(argv[0], COMMANDS)
            raise InputError(f"no such command; there are {', '.join(COMMANDS)}, and `lm --help`{meant}")
        if argv[0] in COMPUTING:
            choose_waiting()
        with training() if argv[0] in TRAINING else nullcontext():
            COMMANDS[argv[0]](argv)
        sys.stdout.flush()
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has left, as `head` does
        drop_stdout()
        return 141
    except OSError as error:
        print(f"{name}: {describe_os_error(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
