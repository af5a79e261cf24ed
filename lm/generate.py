"""`lm generate`: texts from a trained model, on the terminal as they are written, or as JSON lines.

How texts are written is in generation.py and pieces.py, and the conversation of --interactive in interactive.py.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from lm.checkpoint import find_checkpoint, load_model, load_tokenizer
from lm.devices import add_device, find_device
from lm.generation import PRECISIONS, Text, Writer, make_reader
from lm.interactive import Conversation, converse
from lm.machine import use_granted_cores
from lm.pieces import Piece, TextStream, write_pieces
from lm.sampling import Sampling
from lm.strict_json import to_json
from lm.transformer import TransformerLM
from tokenization import END_OF_TEXT, InputError, Tokenizer
from tokenization.commands import ArgumentParser

HELP = """Write texts, token by token, with a trained model. The run's folder is all it needs.

  lm generate checkpoints/demo --prompt "Once upon a time" --temperature 0.7 --top-p 0.9 --seed 3
  lm generate checkpoints/demo --prompt "The cat" --prompt "A dog was sad"      two texts at once
  lm generate checkpoints/demo --prompt "Tom said" --stop . --logprobs 3 --json
                                                    one sentence, with how likely each token and its rivals were
  lm generate checkpoints/demo --prompts begun.txt --json > texts.jsonl         a text for each line of a file
  lm generate checkpoints/demo --interactive        type a beginning, watch it go on, type on

A JSON line has prompt, text (what was written after it), finish_reason ("stop": the model or a stop string has ended
it; "length": --max-new-tokens has), tokens, seed, and with --logprobs the tokens with their natural log-probabilities,
as the model gives them before temperature and the rest.
"""


# --- the command -----------------------------------------------------------------------------------------------------


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="lm generate", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name: str, kind: type, default: object, text: str) -> None:
        parser.add_argument(name, type=kind, default=default, help=f"{text} (default: {default or 'keep all'})")

    parser.add_argument("checkpoint", help="a run's folder, of which best.ckpt is taken, or a checkpoint")
    parser.add_argument(
        "--prompt", action="append", help="how a text begins (default: Once upon a time); may be given several times"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help='prompts, one a line; of a .jsonl each {"prompt": TEXT}; - is the standard input',
    )
    parser.add_argument("--interactive", action="store_true", help="a conversation in the terminal; /help there")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of texts, in the prompts' order")
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        help="with --json: each token's log-probability, and those of the N likeliest",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="the text ends before this; may be given several times",
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
    parser.add_argument("--batch-size", type=int, default=16, help="texts written at once, at most (default: 16)")
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        default="fp32",
        help="of the weights: bf16 is up to twice as fast where the processor has bfloat16, and rounds to 3 digits;"
        " fp32 writes what the checkpoint would (default: fp32)",
    )
    add_device(parser)
    return parser


def check(args: argparse.Namespace) -> None:
    for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("logprobs", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: at least {least} is needed")
    if not 0 <= args.seed < 1 << 63:
        raise InputError(f"--seed {args.seed}: it must be at least 0 and below 2^63")
    if args.logprobs is not None and not args.json:
        raise InputError(f"--logprobs {args.logprobs}: goes with --json, where there is a place for them")
    if args.interactive and (args.json or args.prompts or args.prompt):
        raise InputError("--interactive: asks for the beginnings itself; leave out --prompt, --prompts and --json")
    if args.prompt and args.prompts:
        raise InputError("--prompt and --prompts: one of them; a file holds as many as one likes")
    for name in ("prompt", "stop"):
        for text in getattr(args, name) or []:
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"--{name}: is not UTF-8 text")


def read_prompts(name: str) -> list[str]:
    """A file's lines; empty ones are between prompts, and none."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: byte {error.start} is not UTF-8; prompts are UTF-8 text") from None
    except OSError as error:
        raise InputError(f"--prompts {name}: {error.strerror}") from None
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if not name.endswith(".jsonl"):
            prompts.append(line.removesuffix("\r"))
            continue
        try:
            prompt = json.loads(line)["prompt"]
            prompt.encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InputError(f'{name}, line {number}: {line[:60]!r} is not {{"prompt": TEXT}}') from None
        prompts.append(prompt)
    if not prompts:
        raise InputError(f"{name}: has no prompt; write one a line")
    return prompts


def run_generate(argv: list[str]) -> None:
    args = make_parser().parse_args(argv)
    check(args)
    device = find_device(args.device)
    use_granted_cores()
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty)
    prompts = read_prompts(args.prompts) if args.prompts else args.prompt or ["Once upon a time"]
    checkpoint = find_checkpoint(args.checkpoint)
    model = load_model(checkpoint).to(device)
    tokenizer = load_tokenizer(checkpoint, model.vocab_size)
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    rows = 1 if args.interactive else min(args.batch_size, len(prompts))
    reader = make_reader(model, rows, PRECISIONS[args.precision])
    writer = Writer.of_tokens(reader, tokenizer)
    if args.interactive:
        converse(Conversation(writer, tokenizer, sampling, args.seed, args.max_new_tokens, args.stop))
        return
    pieces = []
    for number, prompt in enumerate(prompts):
        # A new document begins after the end of another.
        ids = tokenizer.encode(prompt or END_OF_TEXT)
        text = Text(ids, args.max_new_tokens, sampling, args.seed + number, args.logprobs, number)
        pieces.append(Piece(prompt, text, TextStream(tokenizer, args.stop)))
    announce_sliding(pieces, model, args.max_new_tokens)
    writing = write_pieces(writer, pieces, rows)
    if args.json:
        print_records(writing, pieces, tokenizer)
    elif len(pieces) == 1:
        print_as_written(writing, prompts[0])
    else:
        print_texts(writing, pieces)


def announce_sliding(pieces: list[Piece], model: TransformerLM, max_new_tokens: int) -> None:
    longest = max(len(piece.text.prompt) for piece in pieces)
    if longest + max_new_tokens > model.context_length:
        print(
            f"[{longest} + up to {max_new_tokens} tokens do not fit the context: the window slides, the model"
            f" sees the last {model.context_length // 2} to {model.context_length} tokens]",
            file=sys.stderr,
        )


def print_as_written(writing: Iterator[tuple[Piece, str]], prompt: str) -> None:
    print(prompt, end="", flush=True)
    for _, shown in writing:
        print(shown, end="", flush=True)
    print()


def in_order(writing: Iterator[tuple[Piece, str]], pieces: list[Piece]) -> Iterator[Piece]:
    """The pieces, each when it and all before it are over."""
    following = 0
    with tqdm(total=len(pieces), desc="writing", unit=" texts", disable=None, delay=2, file=sys.stderr) as bar:
        for piece, _ in writing:
            bar.update(piece.over)
            while following < len(pieces) and pieces[following].over:
                yield pieces[following]
                following += 1


def print_records(writing: Iterator[tuple[Piece, str]], pieces: list[Piece], tokenizer: Tokenizer) -> None:
    for piece in in_order(writing, pieces):
        print(to_json(piece.record(tokenizer), ensure_ascii=False), flush=True)


def print_texts(writing: Iterator[tuple[Piece, str]], pieces: list[Piece]) -> None:
    """Of several each when it is over, under a line with its number and seed."""
    for piece in in_order(writing, pieces):
        number, seed = piece.text.number + 1, piece.text.seed
        print(f"[{number} of {len(pieces)}, seed {seed}]\n{piece.prompt}{piece.written}\n", flush=True)
