"""Proves that no connection is held open without an end, and that what is no request is answered in OpenAI's form."""

import asyncio
import gzip
import json
import socket
import threading
import time
from unittest import mock

import pytest

import lm.serving.connections
from lm.serving.completions import Limits
from lm.serving.server import Server

POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
STOPPED = [
    b"",
    b"GET /hea",
    GET,
    GET + b"\r\n" + GET,  # one is answered, and the next stops
    POST + b"Content-Length: 100\r\n\r\n",
    POST + b"Content-Length: 100\r\n\r\n{",
    POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
    b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
]


def test_who_stops_half_way_is_closed_in_time(make):
    """In the headers or in the body, without a word or a byte at a time; a text that is being written goes on."""
    server = make(limits=Limits(seconds=20.0, arrival=1.0))
    server.reader.seconds = 0.02
    _, response = server.start_stream()
    clients = [socket.create_connection(server.place, timeout=15) for _ in (*STOPPED, "slow")]
    start = time.monotonic()
    for client, data in zip(clients, STOPPED, strict=False):
        client.sendall(data)

    def trickle():
        for byte in GET * 20:
            time.sleep(0.1)
            try:
                clients[-1].send(bytes([byte]))
            except OSError:
                return

    thread = threading.Thread(target=trickle)
    thread.start()
    for client in clients:
        try:
            while client.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        client.close()
    assert time.monotonic() - start < 8
    thread.join()
    assert response.read().decode().endswith("data: [DONE]\n\n")


MALFORMED = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
    b"hello\r\n\r\n",
    b"GET /health\r\n\r\n",
    b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
    *(GET + name + b": \x80\r\n\r\n" for name in (b"Expect", b"Authorization", b"Content-Type", b"X", b"Origin")),
    b"GET //[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 300 + b"\r\n",
    b"\x00" * 50 + b"\r\n\r\n",
    POST + b"Content-Length: -1\r\n\r\n{}",
    POST + b"Content-Length: 1x\r\n\r\n{}",
    POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: magic\r\n\r\n{}",
    POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    POST + b"Content-Encoding: deflate\r\nContent-Length: 2\r\n\r\n{}",
    POST + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
    POST + b"Content-Encoding: magic\r\nContent-Length: 2\r\n\r\n{}",
    POST + b"Expect: a miracle\r\nContent-Length: 2\r\n\r\n{}",
    POST + b"Content-Length: 0\r\n\r\n",
    POST + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"BREW /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n",
    GET.replace(b"/health", b"/v1/completions") + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
]


@pytest.mark.parametrize("data", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_request(server, data, capfd):
    data = data.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1) if b"Host" in data else data
    head, _, body = server.send(data).partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert 400 <= status < 500
    assert b"Content-Type: application/json" in head
    assert json.loads(body)["error"]["code"] == status
    assert capfd.readouterr().err == ""


def test_packed_bodies(server):
    """One that is small, and one that unpacks to more than a request may have."""
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    for content, status in ((b'{"prompt": "Tom", "max_tokens": 1}', 200), (b" " * 50_000_000, 413)):
        assert server.request("POST", "/v1/completions", gzip.compress(content), **packed)[0] == status


def test_one_connection_too_many(make, monkeypatch):
    monkeypatch.setattr(lm.serving.connections, "CONNECTIONS", 3)
    server = make()
    clients = [socket.create_connection(server.place, timeout=10) for _ in range(3)]
    head, _, body = server.send(b"").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert json.loads(body)["error"]["message"] == "too many connections; try again later"
    clients.pop().close()
    server.until(running=0)
    for client in clients:
        client.close()


def test_an_answer_that_nobody_reads(make):
    """6 MB, more than the system keeps for a connection: it is given up, and with it the connection."""
    server = make(limits=Limits(seconds=2.0, texts=60))
    end = server.tokenizer.end_of_text_id
    body = json.dumps({"prompt": [end] * 8000, "n": 60, "max_tokens": 1, "echo": True, "temperature": 0}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.settimeout(60)
        client.connect(server.place)
        client.sendall(POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(4)
        received = 0
        try:
            while part := client.recv(1 << 16):
                received += len(part)
        except ConnectionResetError:
            pass
    assert received < 60 * 8000 * len("<|endoftext|>")


def test_a_stream_that_is_read_too_slowly(monkeypatch):
    """It is given up, although each event is read in time and tokens are always there to be sent."""

    async def slow(*_):
        await asyncio.sleep(0.01)

    async def endless():
        while True:
            yield None

    monkeypatch.setattr("aiohttp.web.StreamResponse.prepare", slow)
    monkeypatch.setattr("aiohttp.web.StreamResponse.write", slow)
    server, request = mock.Mock(limits=Limits(seconds=0.2)), mock.Mock()
    wanted = mock.Mock(**{"feed.return_value": {}})
    start = time.monotonic()
    asyncio.run(asyncio.wait_for(Server.stream(server, request, wanted, endless()), 20))
    assert time.monotonic() - start < 10
    request.transport.abort.assert_called_once_with()
