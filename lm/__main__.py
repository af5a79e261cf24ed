"""The command `lm`, also `python -m lm`: finds the command's file in lm/commands/, and says how it failed.

    0    done                       2    refused, with one line on stderr that says what to change
    130  ended by Ctrl-C            143  by SIGTERM            141  nobody reads the output any more

A command's file is imported when signals are listened to, as its imports may take long.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module

from lm.machine.contention import choose_waiting
from lm.machine.signals import interruptible
from tokenization.errors import InputError, describe_os_error, did_you_mean, drop_stdout
from tokenization.version import own_version

HELP = """usage: lm {init,fit,validate,account,sweep,find-lr,report,generate,serve,test,export,import,verify} ...

  lm init work                                    put the configurations and sample stories into a folder
  lm fit -c configs/demo.yaml                     train; the run becomes a folder under checkpoints/
  lm fit -c configs/demo.yaml --model.num_layers 6 --trainer.default_root_dir checkpoints/deeper
                                                  the same with other values, which override the file's wherever
                                                  -c stands; a name that does not exist is an error
  lm fit -c configs/demo.yaml --print_config      every setting there is, with its value
  lm fit -c checkpoints/demo/config.yaml --ckpt_path checkpoints/demo/last.ckpt
                                                  resume the run where it stopped; `--ckpt_path auto` finds the
                                                  newest whole checkpoint, and starts afresh where there is none
  lm validate checkpoints/demo                    loss, perplexity and bits per byte on the validation file
  lm generate checkpoints/demo --prompt "Once upon a time"
                                                  write a text, or one for each prompt of a file; --interactive
                                                  for a conversation
  lm serve checkpoints/demo                       a page to write with, and OpenAI's API, on this machine
  lm test checkpoints/demo data/demo/valid.bin    how well a model predicts a text, or each document of it
  lm export checkpoints/demo --format hf --output exported
                                                  convert the model for transformers, llama.cpp and others
  lm import exported --output checkpoints/again   import a Hugging Face Llama as a run
  lm verify checkpoints/demo                      is every checkpoint still what was saved?
  lm account -c configs/demo.yaml                 what a run will cost: parameters, memory, FLOPs; with --probe
                                                  also its time, estimated from some of its steps
  lm sweep -c configs/demo.yaml --param model.learning_rate --values 1e-3 4e-3 1.6e-2 --trainer.max_steps 200
                                                  a short training with each value, a table and a plot
  lm find-lr -c configs/demo.yaml                 a quick look for the learning rate
  lm report checkpoints/demo                      a run, or several compared, as one page with curves

`lm COMMAND --help` lists what each one takes; `lm --version` prints the version.
"""
COMMANDS = {  # each is a file in commands/
    "init": "init",
    "fit": "fit",
    "validate": "validate",
    "account": "account",
    "sweep": "sweep",
    "find-lr": "find_lr",
    "report": "report",
    "generate": "generate",
    "serve": "serve",
    "test": "test",
    "export": "export",
    "import": "import_",
    "verify": "verify",
}
TRAINING = ("fit", "validate", "account", "sweep", "find-lr")  # that read the settings of a run
COMPUTING = (*TRAINING, "generate", "serve", "test")  # on as many threads as there are cores


def main(argv: list[str] | None = None) -> int:
    """Runs `lm` with these arguments (default: the process's) and returns its exit code."""
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
    """Runs a command and returns its exit code; what it refuses becomes one line on stderr."""
    name = " ".join(["lm", *argv[:1]])
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(HELP, end="", flush=True)
            return 0 if argv else 2
        if argv[0] == "--version":
            print(f"lm {own_version()}", flush=True)
            return 0
        find_command(argv[0])(argv[1:])
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


def find_command(name: str) -> Callable[[list[str]], None]:
    """Imports a command's file and returns its function; InputError where there is no such command."""
    if name not in COMMANDS:
        meant = did_you_mean(name, COMMANDS)
        raise InputError(f"no such command; there are {', '.join(COMMANDS)}, and `lm --help`{meant}")
    if name in COMPUTING:
        choose_waiting()  # before torch is imported
    run: Callable[[list[str]], None] = import_module(f"lm.commands.{COMMANDS[name]}").run
    return run


if __name__ == "__main__":
    sys.exit(main())
