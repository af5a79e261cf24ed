"""The web server: OpenAI's /v1/completions and /v1/models, /health, and a page to write with.

This file has the routes, the time limits of an answer, and the care for clients that leave. Requests are read in
completions.py, answers are made in answers.py, texts are scheduled in engine.py, connections accepted in
connections.py. A server that is bound to this machine answers only to this machine's names, so that a web page from
elsewhere cannot be made to talk to it (DNS rebinding).
"""

import asyncio
import hmac
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from lm.generation.texts import Drawn
from lm.serving.answers import Completions, Refused, to_json
from lm.serving.completions import Limits, Served, read_body, shorten
from lm.serving.connections import listening, refusal
from lm.serving.engine import Busy, Engine, Stopped
from tokenization import InputError, Tokenizer

PAGE = Path(__file__).with_name("page.html")
BODY_BYTES = 1 << 20  # the largest body of a request
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::[0-9]{0,5})?", re.IGNORECASE)  # a name or address, and a port


class Server:
    """The routes of one model.

    names: the names that a request may use for this host; empty allows any. key: what each request must present; None
    asks for none. facts: what is known of the model's training, for /v1/models and the page.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        model: str,
        limits: Limits,
        names: tuple[str, ...],
        key: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ):
        self.engine, self.limits, self.names, self.key, self.facts = engine, limits, names, key, facts or {}
        self.served = Served(model, tokenizer, engine.writer.reader.model.context_length, limits)
        self.address = ""  # known once it listens
        self.aside = ThreadPoolExecutor(1, "aside")  # does what takes long, so that the event loop goes on
        self.app = web.Application(middlewares=[self.guard], client_max_size=BODY_BYTES)
        self.app.router.add_get("/", self.page)
        self.app.router.add_get("/health", self.health)
        self.app.router.add_get("/v1/models", self.models)
        self.app.router.add_get("/v1/models/{name:.+}", self.model)
        self.app.router.add_post("/v1/completions", self.completions)
        for path in ("/v1/chat/completions", "/v1/responses"):
            self.app.router.add_route("*", path, self.chat)

    # --- before a request is answered ---------------------------------------------------------------------------------

    @web.middleware
    async def guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Checks host and key before a request is handled, and answers errors in OpenAI's form."""
        try:
            self.check_host(request.headers.get("Host", ""))
            if request.path != "/":
                self.check_key(request.headers.get("Authorization", ""))
            return await handler(request)
        except Refused as error:
            return refusal(error)
        except web.HTTPException as error:
            return refusal(Refused(f"{request.method} {request.path}: {error.reason}", None, error.status))

    def check_host(self, header: str) -> None:
        """Refuses other names: a page from elsewhere may have had its own name resolved to this machine."""
        if not self.names:
            return
        found = HOST.fullmatch(header)
        if found is None:
            raise Refused(f"Host {shorten(header)} is not a name with a port")
        if (found[1] or found[2]).lower() not in self.names:
            message = f"Host {shorten(header)} is not this machine; open {self.address}, or start with --host"
            raise Refused(message, None, 403)

    def check_key(self, header: str) -> None:
        """Refuses a request without the right key."""
        if self.key is None:
            return
        scheme, _, given = header.partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self.key.encode())
        if scheme.lower() != "bearer" or not right:
            problem = "the key is wrong" if given else "this server requires a key"
            raise Refused(f"{problem}; send it as Authorization: Bearer KEY", None, 401)

    # --- the routes ---------------------------------------------------------------------------------------------------

    async def page(self, _: web.Request) -> web.StreamResponse:
        return web.Response(text=PAGE.read_text(encoding="utf-8"), content_type="text/html")

    async def health(self, _: web.Request) -> web.StreamResponse:
        working = self.engine.thread.is_alive()
        state = {"status": "ok" if working else "stopped", "model": self.served.name} | self.engine.status()
        return answer(state, 200 if working else 503)

    async def models(self, _: web.Request) -> web.StreamResponse:
        return answer({"object": "list", "data": [self.description()]})

    async def model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name != self.served.name:
            raise Refused(f"model {shorten(name)} is not served here; {self.served.name!r} is", "model", 404)
        return answer(self.description())

    def description(self) -> dict[str, Any]:
        model = self.engine.writer.reader.model
        size = {"parameters": model.num_parameters(), "context_length": model.context_length}
        size |= {"max_tokens": self.limits.max_tokens}
        return {"id": self.served.name, "object": "model", "created": 0, "owned_by": "you", **size, **self.facts}

    async def chat(self, request: web.Request) -> web.StreamResponse:
        raise Refused(f"{request.path}: {self.served.name!r} is a base model; use /v1/completions", None, 404)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        content = await self.read(request)
        loop = asyncio.get_running_loop()
        wanted = await loop.run_in_executor(self.aside, read_body, content, self.served)
        async with self.writing(wanted) as tokens:
            if wanted.stream:
                return await self.stream(request, wanted, tokens)
            async for drawn in tokens:
                feed(wanted, drawn)
        whole = await loop.run_in_executor(self.aside, lambda: to_json(wanted.whole()))
        return web.Response(body=whole, content_type="application/json")

    async def read(self, request: web.Request) -> bytes:
        """Reads a request's body; raises Refused if it is not JSON, too slow or broken off."""
        if request.content_type != "application/json":
            raise Refused("the body must be JSON; send it with Content-Type: application/json", None, 415)
        if (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
            raise Refused(f"charset {shorten(request.charset)}: JSON is UTF-8", None, 415)
        try:
            async with asyncio.timeout(min(self.limits.arrival, self.limits.seconds)):
                return await request.read()
        except TimeoutError:
            raise Refused("the body did not arrive in time", None, 408) from None
        except web.RequestPayloadError as error:
            raise Refused(f"the body cannot be read: {shorten(error)}") from None

    @asynccontextmanager
    async def writing(self, wanted: Completions) -> AsyncIterator[AsyncIterator[Drawn]]:
        """Submits a request's texts and yields their tokens as they come; cancels, on exit, what has not ended."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Drawn | Exception]()
        deadline = loop.time() + self.limits.seconds

        def deliver(drawn: Drawn | Exception) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(queue.put_nowait, drawn)

        async def tokens() -> AsyncIterator[Drawn]:
            try:
                while not wanted.over:
                    async with asyncio.timeout_at(deadline):
                        drawn = await queue.get()
                    if isinstance(drawn, Exception):
                        raise drawn
                    yield drawn
                    if wanted.continuations[drawn.text.number].over:
                        self.engine.cancel([drawn.text])
            except TimeoutError:
                seconds = self.limits.seconds
                raise Refused(f"not done within {seconds:g} seconds; ask for fewer tokens", None, 504) from None
            except Stopped:
                raise Refused(self.why_stopped(), None, 503) from None
            except Exception as error:  # whatever happened in the engine
                raise Refused(str(error) or type(error).__name__, None, 500) from None

        try:
            self.engine.submit(wanted.texts, deliver)
        except InputError as error:
            raise Refused(str(error), "n") from None
        except Busy as error:
            raise Refused(str(error), None, 429) from None
        except Stopped:
            raise Refused(self.why_stopped(), None, 503) from None
        try:
            yield tokens()
        finally:
            self.engine.cancel(wanted.texts)

    def why_stopped(self) -> str:
        return "the server is shutting down" if self.engine.closing else "the server can write no more; restart it"

    async def stream(
        self, request: web.Request, wanted: Completions, tokens: AsyncIterator[Drawn]
    ) -> web.StreamResponse:
        """Answers by server-sent events; an error after the first is an event, too."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        end = asyncio.get_running_loop().time() + 2 * self.limits.seconds  # half of it to write, half to be read
        await response.prepare(request)

        async def send(event: bytes) -> None:
            async with asyncio.timeout_at(end):  # the client may not read
                await response.write(b"data: " + event + b"\n\n")
                await asyncio.sleep(0)  # where nothing else waits, no timeout would be noticed

        try:
            async for drawn in tokens:
                if (chunk := feed(wanted, drawn)) is not None:
                    await send(to_json(chunk))
            if wanted.include_usage:
                await send(to_json(wanted.last_chunk()))
            await send(b"[DONE]")
        except Refused as error:
            await send(to_json(error.body()))
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response


def feed(wanted: Completions, drawn: Drawn) -> dict[str, Any] | None:
    """Adds a token to the answer; returns its chunk of a stream, if there is one."""
    try:
        return wanted.feed(drawn)
    except InputError as error:  # a token id that the tokenizer does not have
        raise Refused(str(error), None, 500) from None


def answer(content: Any, status: int = 200) -> web.Response:
    """Makes a JSON response."""
    return web.Response(body=to_json(content), status=status, content_type="application/json")


async def run_server(server: Server, host: str, port: int, ready: Callable[[str, asyncio.Event], None]) -> None:
    """Runs the server; ready gets its address and the event that stops it."""
    stop = asyncio.Event()
    try:
        async with listening(server.app, host, port, server.limits) as server.address:
            ready(server.address, stop)
            await stop.wait()
            server.engine.close()  # waiting requests are answered by 503
    finally:
        server.engine.close()
        server.aside.shutdown(wait=False)
