"""`lm serve`: serves a model over HTTP on this machine, or beyond it with a key."""

import asyncio
import os
import re
import sys
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address

from lm.commands import add_device, add_run, new_parser
from lm.generation.writer import PRECISIONS
from lm.loading import load
from lm.machine.signals import heeded
from lm.runs.manifest import training_facts
from lm.serving.completions import Limits
from lm.serving.engine import Engine
from lm.serving.server import Server, run_server
from tokenization import InputError
from tokenization.commands import ArgumentParser
from tokenization.systems import call_on_signals

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
KEY_VARIABLE = "LM_API_KEY"

HELP = """Serve a trained model over HTTP.

  lm serve checkpoints/demo                        then open http://127.0.0.1:8000
  curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" \\
       -d '{"prompt": "Once upon a time", "max_tokens": 100, "temperature": 0.7}'

/v1/completions is OpenAI's API, streams included; it also takes top_k, min_p and repetition_penalty. /health says how
many texts are being generated and how many wait. With a --host beyond this machine, everyone who can reach the port can
use the model, unless there is a key: LM_API_KEY in the environment, or --api-key KEY, which process lists show.
Requests then need the header Authorization: Bearer KEY, and the page asks for the key.
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of `lm serve`."""
    parser = new_parser("serve", HELP)
    add_run(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="the port; 0 picks a free one (default: 8000)"
    )
    for name, default, text in (
        ("slots", 8, "the most texts generated at once"),
        ("queue", 64, "the most texts that may wait; further ones are refused with status 429"),
        ("max-tokens", Limits.max_tokens, "the most tokens of a completion"),
        ("timeout", int(Limits.seconds), "the most seconds that a request may take, its wait included"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"the key that requests must have (default: {KEY_VARIABLE}, or none)"
    )
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        default="fp32",
        help="precision of the weights; int8 works on a CPU only (default: fp32)",
    )
    add_device(parser)
    return parser


def run(argv: list[str]) -> None:
    """Serves until it is stopped by a signal."""
    args = make_parser().parse_args(argv)
    for name, least in (("slots", 1), ("queue", 0), ("max_tokens", 1), ("timeout", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least {least} is needed")
    if not 0 <= args.port < 1 << 16:
        raise InputError(f"--port {args.port}: ports are from 0 to 65535")
    names, key = local_names(args.host), read_key(args.api_key)
    trained = load(args.run, args.device, args.precision)
    engine = Engine(trained.writer(args.slots), args.slots, args.queue)
    limits = replace(Limits(), max_tokens=args.max_tokens, seconds=float(args.timeout))
    name, facts = trained.checkpoint.resolve().parent.name, training_facts(trained.checkpoint)
    server = Server(engine, trained.tokenizer, name, limits, names, key, facts)

    def ready(address: str, stop: asyncio.Event) -> None:
        call_on_signals(asyncio.get_running_loop(), heeded(), stop.set)
        print(f"{trained.checkpoint} is served at {address}; Ctrl-C stops it", file=sys.stderr, flush=True)
        if not names and key is None:
            print(
                f"[everyone who reaches {address} can use the model; {KEY_VARIABLE} or --api-key sets a key]",
                file=sys.stderr,
                flush=True,
            )

    asyncio.run(run_server(server, args.host, args.port, ready))


def local_names(host: str) -> tuple[str, ...]:
    """Returns the names that a request may use for a host that only this machine reaches; () for any other."""
    with suppress(ValueError):
        return (host, *LOCAL_NAMES) if ip_address(host).is_loopback else ()
    return (host, *LOCAL_NAMES) if host == "localhost" else ()


def read_key(given: str | None) -> str | None:
    """Returns the key of --api-key or the environment; InputError for a bad key, which no message shows."""
    source, key = (KEY_VARIABLE, os.environ.get(KEY_VARIABLE)) if given is None else ("--api-key", given)
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise InputError(f"{source}: a key consists of printable ASCII characters, without spaces")
    return key
