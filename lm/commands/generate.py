"""`lm generate`: continues prompts with a trained model and prints text or JSON lines, or takes turns with you."""

import argparse
import contextlib
import sys
from collections.abc import Generator, Iterator

from tqdm import tqdm

from lm.commands import add_device, add_run, new_parser
from lm.generation.continuation import Continuation
from lm.generation.conversation import Conversation
from lm.generation.prompts import read_prompts
from lm.generation.sampling import Sampling
from lm.generation.writer import PRECISIONS
from lm.loading import load
from lm.strict_json import to_json
from tokenization import InputError, Tokenizer
from tokenization.commands import ArgumentParser
from tokenization.systems import keys_ignored

Writing = Iterator[tuple[Continuation, str]]  # each continuation, with the characters that it can now show

HELP = """Generate text with a trained model. A run's folder is all that is needed.

  lm generate checkpoints/demo --prompt "Once upon a time" --temperature 0.7 --top-p 0.9 --seed 3
  lm generate checkpoints/demo --prompt "The cat" --prompt "A dog was sad"      two texts at once
  lm generate checkpoints/demo --prompt "Tom said" --stop . --logprobs 3 --json
                                                    one sentence, with the log-probabilities of its tokens
  lm generate checkpoints/demo --prompts prompts.txt --json > texts.jsonl       a text for each line of a file
  lm generate checkpoints/demo --interactive        type, let the model continue, type on

A JSON line has prompt, text (the completion), finish_reason ("stop": the model or a stop string ended the text;
"length": --max-new-tokens did), tokens (the number drawn, a stop string's among them) and seed. With --logprobs it also
has the text's tokens with their natural log-probabilities: the model's own, before temperature and filters.
"""
HELP_WITHIN = """\
Type the beginning of a text; the model continues it. What you type next is appended, and the model goes on from there.
  (an empty line)     let the model go on
  /new                begin a new text
  /again              replace the model's last continuation by another
  /temperature 0.5    also /top_k (none keeps all) /top_p /min_p /repetition_penalty, /max_new_tokens 100, /seed 3
  /quit               or Ctrl-D; Ctrl-C stops a continuation
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of `lm generate`."""
    parser = new_parser("generate", HELP)
    add_run(parser)
    parser.add_argument("--prompt", action="append", help="text to continue; repeatable (default: Once upon a time)")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help='file of prompts, one per line, or {"prompt": TEXT} in a .jsonl file; - is the standard input',
    )
    parser.add_argument("--interactive", action="store_true", help="take turns with the model; /help there explains it")
    parser.add_argument("--json", action="store_true", help="print JSON lines, in the order of the prompts")
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: log-probabilities, of each token and the N most likely"
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end the text before this string; repeatable"
    )
    add_sampling(parser)
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="the most texts generated at once (default: 16)"
    )
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        default="fp32",
        help="precision of the weights: fp32 keeps them as they are; bf16 rounds them to about 3"
        " digits, and int8, on a CPU only, to 8 bits; one text is written faster with each than with the one before"
        " (default: fp32)",
    )
    add_device(parser)
    return parser


def add_sampling(parser: ArgumentParser) -> None:
    """Adds the settings by which tokens are drawn, and the length of a text."""

    def add(name: str, kind: type, default: object, text: str) -> None:
        words = f"{text} (default: {default or 'keep all'})"
        parser.add_argument(name, type=kind, default=default, metavar="N" if kind is int else "X", help=words)

    add("--max-new-tokens", int, 256, "the most tokens to generate; the model may end the text earlier")
    add("--temperature", float, Sampling.temperature, "below 1 is more predictable; 0 takes the most likely token")
    add("--top-k", int, Sampling.top_k, "keep only the k most likely tokens")
    add("--top-p", float, Sampling.top_p, "keep the fewest most likely tokens whose probabilities reach this sum")
    add("--min-p", float, Sampling.min_p, "drop tokens below this fraction of the most likely one's probability")
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1 makes tokens that the text already has less likely (default: 1)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="the same seed gives the same text; each further prompt uses the next seed (default: 0)",
    )


def check(args: argparse.Namespace) -> None:
    """Raises InputError for arguments out of range, or that do not go together."""
    for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("logprobs", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: at least {least} is needed")
    if not 0 <= args.seed < 1 << 63:
        raise InputError(f"--seed {args.seed}: it must be at least 0 and below 2^63")
    if args.logprobs is not None and not args.json:
        raise InputError(f"--logprobs {args.logprobs}: needs --json, which has a place for them")
    if args.interactive and (args.json or args.prompts or args.prompt):
        raise InputError("--interactive: prompts are typed; leave out --prompt, --prompts and --json")
    if args.prompt and args.prompts:
        raise InputError("--prompt and --prompts: give one of the two; a file can hold any number of prompts")
    for name in ("prompt", "stop"):
        for text in getattr(args, name) or []:
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"--{name}: is not UTF-8 text")


def run(argv: list[str]) -> None:
    """Generates and prints."""
    args = make_parser().parse_args(argv)
    check(args)
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty)
    prompts = read_prompts(args.prompts) if args.prompts else args.prompt or ["Once upon a time"]
    trained = load(args.run, args.device, args.precision)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    if args.interactive:
        settings = sampling, args.seed, args.max_new_tokens, args.stop
        converse(Conversation(trained.writer(rows=1), trained.tokenizer, *settings))
        return
    continuations = trained.begin(prompts, args.max_new_tokens, sampling, args.seed, args.stop, args.logprobs)
    writing = trained.write(continuations, min(args.batch_size, len(prompts)))  # which may refuse the model
    if args.json:
        print_records(writing, continuations, trained.tokenizer)
    elif len(continuations) == 1:
        print_as_written(writing, prompts[0])
    else:
        print_texts(writing, continuations)
    announce_sliding(continuations, trained.model.context_length)


def announce_sliding(continuations: list[Continuation], context_length: int) -> None:
    """Says on stderr, once the texts are written, that the model has not seen the whole of a prompt or of a text."""
    longest = max(len(continuation.text.prompt) for continuation in continuations)
    grown = max(len(continuation.text.ids) for continuation in continuations)
    half = max(1, context_length // 2)
    if longest > context_length:
        print(
            f"[the prompt has {longest} tokens, and the model sees {context_length} at once: only its last {half} were"
            " read]",
            file=sys.stderr,
        )
    elif grown > context_length + 1:  # the last token drawn is not read
        print(
            f"[the text has {grown} tokens, and the model sees {context_length} at once: the end was written from the"
            f" last {half} to {context_length}]",
            file=sys.stderr,
        )


def print_as_written(writing: Writing, prompt: str) -> None:
    """Prints one text as it is generated."""
    print(prompt, end="", flush=True)
    for _, shown in writing:
        print(shown, end="", flush=True)
    print()


def in_order(writing: Writing, continuations: list[Continuation]) -> Iterator[Continuation]:
    """Yields the continuations in order, each when it and all before it have ended."""
    following = 0
    with tqdm(total=len(continuations), desc="writing", unit=" texts", disable=None, delay=2, file=sys.stderr) as bar:
        for continuation, _ in writing:
            bar.update(continuation.over)
            while following < len(continuations) and continuations[following].over:
                yield continuations[following]
                following += 1


def print_records(writing: Writing, continuations: list[Continuation], tokenizer: Tokenizer) -> None:
    """Prints a JSON line for each continuation."""
    for continuation in in_order(writing, continuations):
        print(to_json(continuation.record(tokenizer), ensure_ascii=False), flush=True)


def print_texts(writing: Writing, continuations: list[Continuation]) -> None:
    """Prints each of several texts when it has ended, under a line with its number and seed."""
    for continuation in in_order(writing, continuations):
        number, seed = continuation.text.number + 1, continuation.text.seed
        print(f"[{number} of {len(continuations)}, seed {seed}]")
        print(f"{continuation.prompt}{continuation.written}\n", flush=True)


def converse(conversation: Conversation) -> None:
    """Answers each line of the standard input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrows and history, where Python has them
    with contextlib.suppress(AttributeError):  # a line that is not UTF-8 is refused, and ends nothing
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    if terminal := sys.stdin.isatty():
        print("Type the beginning of a text, or /help.")
    while True:
        try:
            if not answer(conversation, input("> " if terminal else "")):
                return
        except InputError as error:
            print(error, file=sys.stderr)
        except EOFError:
            return
        except KeyboardInterrupt:
            print()  # while the user types


def answer(conversation: Conversation, line: str) -> bool:
    """Obeys a command, or continues the text; returns False at the end of the conversation."""
    command, *values = line.split() if line.startswith("/") else [""]
    if command in ("/quit", "/exit"):
        return False
    if command == "/help":
        print(HELP_WITHIN, end="")
    elif command == "/new":
        conversation.forget()
    elif command == "/again":
        print(conversation.take_back(), end="")
        print_until_stopped(conversation.go_on())
    elif command:
        conversation.set(command[1:], values)
    else:
        print_until_stopped(conversation.go_on(line))
    return True


def print_until_stopped(writing: Generator[str, None, None]) -> None:
    """Prints a continuation as it is generated; Ctrl-C stops it."""
    try:
        with contextlib.closing(writing), contextlib.suppress(KeyboardInterrupt), keys_ignored():
            for written in writing:
                print(written, end="", flush=True)
    finally:
        print()
