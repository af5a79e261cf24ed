"""The command `lm`, also `python -m lm`: what each of its commands is, and how it fails.

Generate and verify are written out here; the others are in the files that do their work.
"""

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module

from lm.machine import keep_large_blocks, use_granted_cores
from tokenization import END_OF_TEXT, InputError, Tokenizer
from tokenization.errors import ArgumentParser

HELP = """usage: lm {fit,validate,account,sweep,find-lr,report,generate,export,verify} ...

  lm fit -c configs/demo.yaml                     train; the run becomes a folder under checkpoints/
  lm fit -c configs/demo.yaml --model.num_layers 6 --trainer.default_root_dir checkpoints/deeper
                                                  the same with other values; a name that does not exist is an error
  lm fit -c configs/demo.yaml --print_config      every setting there is, with its value
  lm fit -c checkpoints/demo/config.yaml --ckpt_path checkpoints/demo/last.ckpt
                                                  go on where the run stopped; `--ckpt_path auto` finds the newest
                                                  checkpoint that is whole, and begins where there is none
  lm validate -c checkpoints/demo/config.yaml --ckpt_path checkpoints/demo/best.ckpt
                                                  loss, perplexity and bits per byte on the validation file
  lm generate checkpoints/demo/best.ckpt --prompt "Once upon a time"
                                                  write a text
  lm export checkpoints/demo --format hf --output exported
                                                  for transformers, llama.cpp and others
  lm verify checkpoints/demo                      is every checkpoint still what was saved?
  lm account -c configs/demo.yaml                 what a run will cost: parameters, memory, FLOPs; with --probe
                                                  also the time of all of it, from some of its steps
  lm sweep -c configs/demo.yaml --param model.learning_rate --values 1e-3 4e-3 1.6e-2 --trainer.max_steps 200
                                                  a short training with each value, a table and a plot
  lm find-lr -c configs/demo.yaml                 a quick look for the learning rate
  lm report checkpoints/demo                      a run, or several compared, as one page with curves

`lm COMMAND --help` lists what each one takes.
"""

GENERATE_HELP = """Write a text, token by token, with a trained model. The checkpoint's folder is all it needs.

  lm generate checkpoints/demo/best.ckpt --prompt "Once upon a time" --temperature 0.7 --top-p 0.9 --seed 3
  lm generate checkpoints/demo/best.ckpt --prompt "The cat" --prompt "A dog was sad"    two texts at once
"""


def generate_parser() -> ArgumentParser:
    from lm.generation import PRECISIONS
    from lm.sampling import Sampling

    parser = ArgumentParser(
        prog="lm generate", description=GENERATE_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, kind: type, default: object, text: str) -> None:
        parser.add_argument(name, type=kind, default=default, help=f"{text} (default: {default or 'keep all'})")

    parser.add_argument("checkpoint", help="a run's folder, of which best.ckpt is taken, or a checkpoint")
    parser.add_argument(
        "--prompt",
        action="append",
        help="how the text begins (default: Once upon a time); given several times, as many texts are written at once",
    )
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
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="the same seed writes the same text; of several, the second takes the next, and so on (default: 0)",
    )
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        default="fp32",
        help="of the weights: bf16 is up to twice as fast where the processor has bfloat16, and rounds to 3 digits;"
        " fp32 writes what the checkpoint would (default: fp32)",
    )
    return parser


def run_generate(argv: list[str]) -> None:
    args = generate_parser().parse_args(argv)
    use_granted_cores()
    from lm.checkpoint import find_checkpoint, load_model, load_tokenizer
    from lm.generation import PRECISIONS, generate_batch
    from lm.sampling import Sampling

    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty)
    if args.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {args.max_new_tokens}: at least 1 is needed")
    if not 0 <= args.seed < 1 << 63:
        raise InputError(f"--seed {args.seed}: it must be at least 0 and below 2^63")
    prompts = args.prompt or ["Once upon a time"]
    if any("\ud800" <= character <= "\udfff" for prompt in prompts for character in prompt):
        raise InputError("--prompt: is not UTF-8 text")
    checkpoint = find_checkpoint(args.checkpoint)
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    # A new document begins after the end of another.
    prompt_ids = [tokenizer.encode(prompt or END_OF_TEXT) for prompt in prompts]
    longest = max(map(len, prompt_ids))
    if longest + args.max_new_tokens > model.context_length:
        print(
            f"[{longest} + up to {args.max_new_tokens} tokens do not fit the context: the window slides, the model"
            f" sees the last {model.context_length // 2} to {model.context_length} tokens]",
            file=sys.stderr,
        )
    drawn = generate_batch(
        model,
        prompt_ids,
        args.max_new_tokens,
        sampling,
        args.seed,
        stop_id=tokenizer.end_of_text_id,
        vocab_size=tokenizer.vocab_size,
        dtype=PRECISIONS[args.precision],
    )
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print_texts(prompts, drawn, tokenizer, args.seed)


def print_texts(prompts: list[str], drawn: Iterator[tuple[int, int]], tokenizer: Tokenizer, seed: int) -> None:
    """One text as it is written; of several, each when all are, under a line with its number and seed."""
    if len(prompts) == 1:
        print(prompts[0], end="", flush=True)
        for text in tokenizer.decode_iterable(token_id for _, token_id in drawn):
            print(text, end="", flush=True)
        print()
        return
    new_ids: list[list[int]] = [[] for _ in prompts]
    for number, token_id in drawn:
        new_ids[number].append(token_id)
    for number, (prompt, ids) in enumerate(zip(prompts, new_ids, strict=True)):
        print(f"[{number + 1} of {len(prompts)}, seed {seed + number}]\n{prompt}{tokenizer.decode(ids)}\n")


VERIFY_HELP = (
    """Read checkpoints and the tokenizer beside them, and compare every byte with the digests saved with them."""
)


def run_verify(argv: list[str]) -> None:
    from lm.run_folder import describe

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

    try:
        yield
    except ArgumentError as error:
        message = textwrap.shorten(str(error), 400)  # on one line, however much of a wrong file it quotes
        raise InputError(f"{message}; `lm fit --print_config` shows every setting") from None
    except MisconfigurationException as error:
        raise InputError(" ".join(str(error).split())) from None


COMMANDS = {
    "fit": run_lightning,
    "validate": run_lightning,
    "account": defined_in("lm.account", "run_account"),
    "sweep": defined_in("lm.sweep", "run_sweep"),
    "find-lr": defined_in("lm.find_lr", "run_find_lr"),
    "report": defined_in("lm.report", "run_report"),
    "generate": lambda argv: run_generate(argv[1:]),
    "export": defined_in("lm.export", "run_export"),
    "verify": lambda argv: run_verify(argv[1:]),
}
TRAINING = ("fit", "validate", "account", "sweep", "find-lr")  # that read the settings of a run


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if argv else 2
    try:
        if argv[0] not in COMMANDS:
            raise InputError(f"no such command; there are {', '.join(COMMANDS)}, and `lm --help`")
        with training() if argv[0] in TRAINING else nullcontext():
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
