"""Accepts a server's connections: limits their number and their time, and answers errors in OpenAI's form.

Requests that reach a route are answered in server.py. This file handles those that do not: requests that are not HTTP,
headers that stop half way, answers that the client does not read.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from lm.serving.answers import Refused, to_json
from lm.serving.completions import Limits
from tokenization import InputError

CONNECTIONS = 512  # open at once; below the 1,024 files that a process may usually open
LINGERING = 2.0  # seconds for which the rest of a refused body is still read


def refusal(refused: Refused) -> web.Response:
    """Makes the HTTP response of an error."""
    headers = {429: {"Retry-After": "5"}, 401: {"WWW-Authenticate": "Bearer"}}.get(refused.status)
    return web.Response(
        body=to_json(refused.body()), status=refused.status, headers=headers, content_type="application/json"
    )


class Connection(web.RequestHandler):
    """A client's connection. seconds: the longest that it may take to read an answer. others: all open connections."""

    def __init__(self, *arguments: Any, seconds: float, others: set["Connection"], **settings: Any):
        super().__init__(*arguments, **settings)
        self.seconds, self.others = seconds, others
        others.add(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.others.discard(self)
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers errors that no handler caught; aiohttp would answer in plain text and log a traceback for each."""
        if status >= 500:
            self.log_exception("%s %s", request.method, request.path, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has already begun")
        if status >= 500:
            refused = Refused("the server has failed; its log has the reason", None, status)
        else:
            refused = Refused(f"this is not an HTTP request: {' '.join((message or '').split())[:200]}", None, status)
        response = refusal(refused)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):
            resp = refusal(Refused(f"{request.method} {request.path}: {resp.reason}", None, resp.status))
        try:
            async with asyncio.timeout(self.seconds):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:  # the client does not read
            if self.transport is not None:
                self.transport.abort()
            return resp, True


class TurnedAway(asyncio.Protocol):
    """A connection beyond the limit: it is answered by 503 and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        body = to_json(Refused("too many connections; try again later", None, 503).body())
        head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
        transport.write(f"{head}Retry-After: 5\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        transport.close()


@asynccontextmanager
async def listening(app: web.Application, host: str, port: int, limits: Limits) -> AsyncIterator[str]:
    """Serves the app while the context is open; yields its address. InputError if the port cannot be had."""
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=5.0)
    await runner.setup()
    loop, manager = asyncio.get_running_loop(), runner.server
    assert manager is not None
    connections: set[Connection] = set()
    answer = manager.request_handler

    async def answer_text(request: web.BaseRequest) -> web.StreamResponse:
        """Refuses headers that are not UTF-8: aiohttp fails where it quotes them, which may be before any route."""
        for name, value in request.headers.items():
            if any("\ud800" <= character <= "\udfff" for character in value):
                return refusal(Refused(f"header {name} is not UTF-8 text"))
        return await answer(request)

    manager.request_handler = answer_text

    def connect() -> asyncio.Protocol:
        if len(connections) >= CONNECTIONS:
            return TurnedAway()
        return Connection(
            manager,
            seconds=limits.seconds,
            others=connections,
            loop=loop,
            keepalive_timeout=limits.arrival,  # from connecting, or the last answer, to the end of the headers
            lingering_time=LINGERING,
            access_log=None,
        )

    try:
        try:
            server = await loop.create_server(connect, host, port, reuse_address=True)
        except OSError as error:
            raise InputError(f"--host {host} --port {port}: {error.strerror}; is another program there?") from None
        address, bound = server.sockets[0].getsockname()[:2]
        try:
            yield f"http://{f'[{address}]' if ':' in address else address}:{bound}"
        finally:
            server.close()
    finally:
        await runner.cleanup()
