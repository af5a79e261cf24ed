"""The command `lm`, also `python -m lm`: fit and validate (cli.py), and generate."""

import argparse
import os
import sys
import textwrap

from lm.machine import keep_large_blocks, use_granted_cores
from tokenization import END_OF_TEXT, InputError
from tokenization.errors import ArgumentParser

HELP = """usage: lm {fit,validate,generate} ...

  lm fit -c configs/demo.yaml                     train; the run becomes a folder under checkpoints/
  lm fit -c configs/demo.yaml --model.num_layers 6 --trainer.default_root_dir checkpoints/deeper
                                                  the same with other values; a name that does not exist is an error
  lm fit -c configs/demo.yaml --print_config      every setting there is, with its value
  lm fit -c checkpoints/demo/config.yaml --ckpt_path checkpoints/demo/last.ckpt
                                                  go on where the run stopped
  lm validate -c checkpoints/demo/config.yaml --ckpt_path checkpoints/demo/best.ckpt
                                                  loss, perplexity and bits per byte on the validation file
  lm generate checkpoints/demo/best.ckpt --prompt "Once upon a time"
                                                  write a text

`lm COMMAND --help` lists what each one takes.
"""

GENERATE_HELP = """Write a text, token by token, with a trained model. The checkpoint's folder is all it needs.

  lm generate checkpoints/demo/best.ckpt --prompt "Once upon a time" --temperature 0.7 --top-p 0.9 --seed 3
"""


def generate_parser() -> ArgumentParser:
    from lm.generation import Sampling

    parser = ArgumentParser(
        prog="lm generate", description=GENERATE_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, kind: type, default: object, text: str) -> None:
        parser.add_argument(name, type=kind, default=default, help=f"{text} (default: {default or 'keep all'})")

    parser.add_argument("checkpoint", help="a run's best.ckpt or last.ckpt")
    add("--prompt", str, "Once upon a time", "how the text begins")
    add("--max-new-tokens", int, 256, "its length at most; it ends earlier where the model ends it")
    add("--temperature", float, Sampling.temperature, "below 1 is more predictable; 0 takes the likeliest token")
    add("--top-k", int, Sampling.top_k, "draw among the k likeliest tokens only")
    add("--top-p", float, Sampling.top_p, "draw among the fewest likely tokens whose probabilities reach this sum")
    add("--min-p", float, Sampling.min_p, "drop tokens less than this share as likely as the likeliest")
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="above 1 makes tokens that the text has already less likely (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same text (default: 0)")
    return parser


def run_generate(argv: list[str]) -> None:
    args = generate_parser().parse_args(argv)
    from lm.checkpoint import load_model, load_tokenizer
    from lm.generation import Sampling, generate

    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty)
    if args.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {args.max_new_tokens}: at least 1 is needed")
    if not 0 <= args.seed < 1 << 63:
        raise InputError(f"--seed {args.seed}: it must be at least 0 and below 2^63")
    if any("\ud800" <= character <= "\udfff" for character in args.prompt):
        raise InputError("--prompt: is not UTF-8 text")
    model, tokenizer = load_model(args.checkpoint), load_tokenizer(args.checkpoint)
    prompt = tokenizer.encode(args.prompt or END_OF_TEXT)  # a new document begins after the end of another
    if len(prompt) + args.max_new_tokens > model.context_length:
        print(
            f"[{len(prompt)} + up to {args.max_new_tokens} tokens do not fit the context: the window slides, the model"
            f" sees the last {model.context_length // 2} to {model.context_length} tokens]",
            file=sys.stderr,
        )
    new_ids = generate(
        model, prompt, args.max_new_tokens, sampling, args.seed, tokenizer.end_of_text_id, tokenizer.vocab_size
    )
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print(args.prompt, end="", flush=True)
    for text in tokenizer.decode_iterable(new_ids):
        print(text, end="", flush=True)
    print()


def run_lightning(argv: list[str]) -> None:
    keep_large_blocks()
    use_granted_cores()
    from jsonargparse import ArgumentError
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lm.cli import RunCLI

    try:
        RunCLI(argv)
    except ArgumentError as error:
        message = textwrap.shorten(str(error), 400)  # on one line, however much of a wrong file it quotes
        raise InputError(f"{message}; `lm {argv[0]} --print_config` shows every setting") from None
    except MisconfigurationException as error:
        raise InputError(" ".join(str(error).split())) from None


COMMANDS = {"fit": run_lightning, "validate": run_lightning, "generate": lambda argv: run_generate(argv[1:])}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if argv else 2
    try:
        if argv[0] not in COMMANDS:
            raise InputError(f"no such command; there are {', '.join(COMMANDS)}, and `lm --help`")
        COMMANDS[argv[0]](argv)
    except InputError as error:
        print(f"lm {argv[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"lm {argv[0]}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):  # which Lightning answers with a 1
            return 130
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
