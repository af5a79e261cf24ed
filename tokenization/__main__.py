"""The command `tokenization`, or `python -m tokenization`: which commands there are, and how they fail."""

import io
import sys
from importlib import import_module

from tokenization.errors import InputError, describe_os_error, did_you_mean, drop_stdout
from tokenization.kernels import announcing
from tokenization.version import own_version

HELP = """usage: tokenization {check,train,encode,index,adopt,decode,inspect,compare,import,export} ...

  tokenization check stories.txt --valid held-out.txt
                                                  look for duplicates, and for validation text that is in training
  tokenization train data/tinystories-train.txt.gz --vocab-size 10000 --output data/tokenizer
                                                  learn a byte-level BPE vocabulary from text
  tokenization encode data/tinystories-train.txt.gz --tokenizer data/tokenizer --output data/train.bin
                                                  turn text into a token file for training
  tokenization index data/crawl.tokens            make the token files in a folder into one token set
  tokenization adopt ids.npy --tokenizer data/tokenizer --output data/train.bin
                                                  convert a token file of nanoGPT, llm.c or NumPy
  tokenization decode data/train.bin --tokenizer data/tokenizer --limit 200
                                                  print the text of a token file
  tokenization inspect data/tokenizer             show what a tokenizer has learnt
  tokenization inspect data/tokenizer --word " unbelievable"
                                                  show how a word is merged, step by step
  tokenization compare data/tokenizer other/tokenizer --text stories.txt
                                                  compression and speed of tokenizers
  tokenization import tokenizer.json --output data/theirs
                                                  import a tokenizer of Hugging Face or tiktoken
  tokenization export data/tokenizer --output tokenizer.json
                                                  write a tokenizer for Hugging Face or tiktoken

`tokenization COMMAND --help` lists the options of each command; `tokenization --version` prints the version.
"""
COMMANDS = {  # each is a file in commands/
    "check": "check",
    "train": "train",
    "encode": "encode",
    "index": "index",
    "adopt": "adopt",
    "decode": "decode",
    "inspect": "inspect",
    "compare": "compare",
    "import": "import_",
    "export": "export",
}


def run_command(argv: list[str]) -> int:
    """Runs the command that the first argument names, and returns its exit code: 0, but for `check`."""
    if not argv:
        raise InputError("a command is required; `tokenization --help` lists what there is")
    name, *arguments = argv
    if name in ("-h", "--help"):
        print(HELP, end="")
    elif name == "--version":
        print(f"tokenization {own_version()}")
    elif name in COMMANDS:
        return import_module(f"tokenization.commands.{COMMANDS[name]}").run(arguments) or 0
    else:
        meant = did_you_mean(name, COMMANDS)
        raise InputError(f"invalid command{meant}; `tokenization --help` lists what there is")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns the exit code.

    0; 1 if `check` finds too much; 2 for bad input; 130 for Ctrl-C; 141 if the reader has left.
    """
    argv = sys.argv[1:] if argv is None else argv
    command = " ".join(["tokenization", *argv[:1]])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a token that the terminal's encoding lacks
    try:
        with announcing():
            code = run_command(argv)
        sys.stdout.flush()
    except InputError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has left, as `head` does
        drop_stdout()
        return 141
    except OSError as error:
        print(f"{command}: {describe_os_error(error)}", file=sys.stderr)
        return 2
    except MemoryError:
        print(f"{command}: there is not enough memory; raise its limit, or use fewer --processes", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{command}: interrupted; no unfinished file is left", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
