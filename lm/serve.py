"""`lm serve`: a model as a web server: OpenAI's /v1/completions, /health, and a page to write with.

What a request may ask for is in completions.py, and who writes when in serving.py; here are HTTP, time limits, and
clients that leave. Bound to 127.0.0.1, it answers only to the names of this machine, so that no page from elsewhere
can be made to talk to it.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from aiohttp import web

from lm.checkpoint import find_checkpoint, load_model, load_tokenizer
from lm.completions import Completions, Limits, Refused, read_request
from lm.devices import add_device, find_device
from lm.generation import PRECISIONS, Drawn, Writer, make_reader
from lm.machine import use_granted_cores
from lm.serving import Busy, Engine, Stopped
from tokenization import InputError, Tokenizer
from tokenization.errors import ArgumentParser

PAGE = Path(__file__).with_name("serve.html")
BODY_BYTES = 1 << 20  # of a request, at most
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

HELP = """Serve a trained model on this machine.

  lm serve checkpoints/demo                        then open http://127.0.0.1:8000 and write with it
  curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" \\
       -d '{"prompt": "Once upon a time", "max_tokens": 100, "temperature": 0.7}'

/v1/completions is OpenAI's, streams included; beside its settings there are top_k, min_p and repetition_penalty.
/health says how many texts are being written and how many wait. Nobody is asked for a password: with a --host other
than this machine, everyone who reaches the port can write.
"""


class Server:
    def __init__(self, engine: Engine, tokenizer: Tokenizer, model: str, limits: Limits, names: tuple[str, ...]):
        """names: that a request may call this host by; none allows any."""
        self.engine, self.tokenizer, self.model, self.limits, self.names = engine, tokenizer, model, limits, names
        self.app = web.Application(middlewares=[self.guard], client_max_size=BODY_BYTES)
        self.app.router.add_get("/", self.page)
        self.app.router.add_get("/health", self.health)
        self.app.router.add_get("/v1/models", self.models)
        self.app.router.add_post("/v1/completions", self.completions)

    @web.middleware
    async def guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Errors in OpenAI's form."""
        try:
            host = request.url.host
            if self.names and host not in self.names:
                raise Refused(
                    f"Host {host} is not this machine; open http://{self.names[0]}, or start with --host", None, 403
                )
            return await handler(request)
        except Refused as error:
            refused = error
        except web.HTTPException as error:
            refused = Refused(f"{request.method} {request.path}: {error.reason}", None, error.status)
        headers = {"Retry-After": "5"} if refused.status == 429 else {}
        return web.json_response(refused.body(), status=refused.status, headers=headers)

    async def page(self, _: web.Request) -> web.StreamResponse:
        return web.Response(text=PAGE.read_text(encoding="utf-8"), content_type="text/html")

    async def health(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok", "model": self.model} | self.engine.status())

    async def models(self, _: web.Request) -> web.StreamResponse:
        model = {"id": self.model, "object": "model", "created": 0, "owned_by": "you"}
        return web.json_response({"object": "list", "data": [model]})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            raise Refused("the body must be JSON; say so by Content-Type: application/json", None, 415)
        try:
            async with asyncio.timeout(self.limits.seconds):
                body = await request.json()
        except TimeoutError:
            raise Refused("the body has not come in time", None, 408) from None
        except (ValueError, RecursionError):
            raise Refused("the body is not JSON") from None
        wanted = read_request(body, self.model, self.tokenizer, self.limits)
        async with self.writing(wanted) as tokens:
            return await (self.stream(request, wanted, tokens) if wanted.stream else self.whole(wanted, tokens))

    @asynccontextmanager
    async def writing(self, wanted: Completions) -> AsyncIterator[AsyncIterator[Drawn]]:
        """The tokens as they come, until all texts are over. Whoever leaves before gives the rows back."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Drawn | Exception]()
        deadline = loop.time() + self.limits.seconds

        def deliver(drawn: Drawn | Exception) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(queue.put_nowait, drawn)

        async def tokens() -> AsyncIterator[Drawn]:
            try:
                while not wanted.over:
                    async with asyncio.timeout_at(deadline):
                        drawn = await queue.get()
                    if isinstance(drawn, Exception):
                        raise drawn
                    yield drawn
            except TimeoutError:
                seconds = self.limits.seconds
                raise Refused(f"not done within {seconds:g} seconds; ask for fewer tokens", None, 504) from None
            except Stopped:
                raise Refused("the server ends", None, 503) from None
            except Exception as error:  # whatever has befallen the engine
                raise Refused(str(error) or type(error).__name__, None, 500) from None

        try:
            self.engine.submit(wanted.texts, deliver)
        except Busy:
            raise Refused(f"{self.engine.queue} texts wait already; try again later", None, 429) from None
        except Stopped:
            raise Refused("the server ends", None, 503) from None
        try:
            yield tokens()
        finally:
            self.engine.cancel(wanted.texts)

    async def whole(self, wanted: Completions, tokens: AsyncIterator[Drawn]) -> web.StreamResponse:
        async for drawn in tokens:
            self.take(wanted, drawn)
        return web.json_response(wanted.whole())

    def take(self, wanted: Completions, drawn: Drawn) -> dict[str, Any] | None:
        """What there is to send of a token."""
        piece, shown = wanted.take(drawn)
        if piece.over and not drawn.last:  # a stop string has ended it
            self.engine.cancel([piece.text])
        if not (shown or piece.over or piece.text.top is not None):
            return None
        return wanted.chunk(piece, shown, drawn)

    async def stream(
        self, request: web.Request, wanted: Completions, tokens: AsyncIterator[Drawn]
    ) -> web.StreamResponse:
        """Server-sent events; an error after the first is an event, too."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)

        async def send(content: Any) -> None:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            async with asyncio.timeout(self.limits.seconds):  # a client that reads nothing
                await response.write(f"data: {text}\n\n".encode())

        try:
            for piece in wanted.pieces if wanted.echo else ():
                await send(wanted.chunk(piece, piece.prompt, None))
            async for drawn in tokens:
                if (chunk := self.take(wanted, drawn)) is not None:
                    await send(chunk)
            if wanted.include_usage:
                await send(wanted.head() | {"choices": [], "usage": wanted.usage()})
            await send("[DONE]")
        except Refused as error:
            await send(error.body())
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response


async def run_server(server: Server, host: str, port: int, ready: Callable[[str, asyncio.Event], None]) -> None:
    """Until the event that ready gets, with the address, is set."""
    runner = web.AppRunner(server.app, handler_cancellation=True, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    stop = asyncio.Event()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise InputError(f"--host {host} --port {port}: {error.strerror}; is another program there?") from None
        address, bound = runner.addresses[0][:2]
        ready(f"http://{f'[{address}]' if ':' in address else address}:{bound}", stop)
        await stop.wait()
        server.engine.close()  # whoever waits is told, and answers are sent
    finally:
        await runner.cleanup()
        server.engine.close()


# --- the command -----------------------------------------------------------------------------------------------------


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="lm serve", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder, of which best.ckpt is taken, or a checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    for name, default, text in (
        ("slots", 8, "texts that are written at once"),
        ("queue", 64, "texts that wait, at most; more are answered by 429"),
        ("max-tokens", Limits.max_tokens, "tokens that a request may ask for"),
        ("timeout", int(Limits.seconds), "seconds that a request may take, with its wait"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32", help="of the weights (default: fp32)")
    add_device(parser)
    return parser


def run_serve(argv: list[str]) -> None:
    args = make_parser().parse_args(argv)
    for name, least in (("slots", 1), ("queue", 0), ("max_tokens", 1), ("timeout", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least {least} is needed")
    if not 0 <= args.port < 1 << 16:
        raise InputError(f"--port {args.port}: ports are from 0 to 65535")
    device = find_device(args.device)
    use_granted_cores()
    checkpoint = find_checkpoint(args.run)
    model, tokenizer = load_model(checkpoint).to(device), load_tokenizer(checkpoint)
    reader = make_reader(model, args.slots, PRECISIONS[args.precision])
    engine = Engine(Writer(reader, tokenizer.end_of_text_id, tokenizer.vocab_size), args.slots, args.queue)
    limits = replace(Limits(), max_tokens=args.max_tokens, seconds=float(args.timeout))
    server = Server(engine, tokenizer, checkpoint.resolve().parent.name, limits, local_names(args.host))

    def ready(address: str, stop: asyncio.Event) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, stop.set)
        print(f"{checkpoint} is served at {address}; Ctrl-C ends it", file=sys.stderr, flush=True)

    asyncio.run(run_server(server, args.host, args.port, ready))


def local_names(host: str) -> tuple[str, ...]:
    """What a request may call this host, where only this machine is to reach it."""
    with suppress(ValueError):
        return (host, *LOCAL_NAMES) if ip_address(host).is_loopback else ()
    return (host, *LOCAL_NAMES) if host == "localhost" else ()
