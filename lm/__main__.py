"""The command `lm`, also `python -m lm`: runs a command of lm/commands/ and returns its exit code.

    0    success                    2    refused, with one line on stderr that says what to change
    130  ended by Ctrl-C            143  ended by SIGTERM      141  nobody reads the output any more

A command's file is imported only after the signal handlers are installed, as its imports may take long.
"""

import io
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module

from lm.machine.contention import watching_others
from lm.machine.lean_imports import import_torchmetrics_on_demand
from lm.machine.signals import interruptible
from tokenization.errors import InputError, describe_os_error, did_you_mean, drop_stdout
from tokenization.kernels import announcing
from tokenization.version import own_version

HELP = """usage: lm {init,fit,validate,account,sweep,race,find-lr,report,generate,serve,test,export,import,\
verify,consolidate} ...

  lm init work                                    copy the configurations and sample stories into a folder
  lm fit -c configs/demo.yaml                     train; the run becomes a folder under checkpoints/
  lm fit -c configs/demo.yaml --model.num_layers 6 --trainer.default_root_dir checkpoints/deeper
                                                  the same with other values, which override the file's; a
                                                  setting that does not exist is an error
  lm fit -c configs/demo.yaml --print_config      every setting, with its value
  lm fit -c checkpoints/demo/config.yaml --ckpt_path checkpoints/demo/last.ckpt
                                                  resume the run where it stopped; `--ckpt_path auto` finds the
                                                  newest intact checkpoint, or begins a new run if there is none
  lm validate checkpoints/demo                    loss, perplexity and bits per byte on the validation file
  lm generate checkpoints/demo --prompt "Once upon a time"
                                                  continue a prompt, or each prompt of a file; --interactive
                                                  takes turns with you
  lm serve checkpoints/demo                       a page to write with, and OpenAI's API, on this machine
  lm test checkpoints/demo data/demo/valid.bin    measure how well a model predicts a text, or each of its documents
  lm export checkpoints/demo --format hf --output exported
                                                  export the model for transformers, llama.cpp and others
  lm import exported --output checkpoints/again   import a Hugging Face Llama as a run
  lm verify checkpoints/demo                      check that every checkpoint is still what was saved
  lm consolidate checkpoints/demo                 merge a sharded checkpoint into one file (--checkpoints.sharded true)
  lm account -c configs/demo.yaml                 what a run will cost: parameters, memory, FLOPs; with --probe
                                                  also its time, estimated from some of its steps
  lm sweep -c configs/demo.yaml --param model.learning_rate --values 1e-3 4e-3 1.6e-2 --trainer.max_steps 200
                                                  train briefly with each value; print a table and a plot
  lm race configs/tinystories-fast.yaml configs/experiments/adamw.yaml --steps 600
                                                  compare configurations or settings, several seeds each, with
                                                  p-values; --cpu-seconds 120 gives all the same processor time
  lm find-lr -c configs/demo.yaml                 suggest a learning rate from one short training run
  lm report checkpoints/demo                      write a page that shows a run, or compares several

`lm COMMAND --help` lists the options of a command; `lm --version` prints the version.
"""
COMMANDS = {  # each is a file in commands/
    "init": "init",
    "fit": "fit",
    "validate": "validate",
    "account": "account",
    "sweep": "sweep",
    "race": "race",
    "find-lr": "find_lr",
    "report": "report",
    "generate": "generate",
    "serve": "serve",
    "test": "test",
    "export": "export",
    "import": "import_",
    "verify": "verify",
    "consolidate": "consolidate",
}
TRAINING = ("fit", "validate", "account", "sweep", "race", "find-lr")  # commands that read the settings of a run
COMPUTING = (*TRAINING, "generate", "serve", "test")  # commands that use as many threads as there are cores


def main(argv: list[str] | None = None) -> int:
    """Runs `lm` with these arguments (default: those of the process) and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that is not UTF-8, a letter that a terminal lacks
    try:
        with interruptible(argv[0]) if argv and argv[0] in TRAINING else nullcontext():
            return run_command(argv)
    except KeyboardInterrupt:
        return 130
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):  # Lightning exits with 1 on Ctrl-C
            return 130
        raise


def run_command(argv: list[str]) -> int:
    """Runs a command and returns its exit code; a refusal becomes one line on stderr."""
    name = " ".join(["lm", *argv[:1]])
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(HELP, end="", flush=True)
            return 0 if argv else 2
        if argv[0] == "--version":
            print(f"lm {own_version()}", flush=True)
            return 0
        with announcing():
            find_command(argv[0])(argv[1:])
        sys.stdout.flush()
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        drop_stdout()
        return 141
    except OSError as error:
        print(f"{name}: {describe_os_error(error)}", file=sys.stderr)
        return 2
    return 0


def find_command(name: str) -> Callable[[list[str]], None]:
    """Imports a command's file and returns its function; InputError for an unknown command."""
    if name not in COMMANDS:
        meant = did_you_mean(name, COMMANDS)
        raise InputError(f"no such command; there are {', '.join(COMMANDS)}; see `lm --help`{meant}")
    if name in TRAINING:
        import_torchmetrics_on_demand()  # before Lightning is
    with watching_others() if name in COMPUTING else nullcontext():
        run: Callable[[list[str]], None] = import_module(f"lm.commands.{COMMANDS[name]}").run
    return run


if __name__ == "__main__":
    sys.exit(main())
