"""Proves that no request makes the server fail, hang, or harm another client's text, by asking it anything at all.

Requests are drawn by hypothesis: bodies that are valid but for a setting or two, any JSON, HTTP with odd methods, paths
and headers, and bytes that are no HTTP. Meanwhile another client asks for seeded texts, which must be what they are
without all that. The short form runs with the other tests, 10,000 cases with `pytest -m slow`.
"""

import http.client
import json
import socket
import threading
import time
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import pytest
from helpers.models import save_run
from helpers.serving import Running

from lm.runs.checkpoint import load_tokenizer
from lm.runs.folder import BEST
from lm.serving.completions import NUMBERS, OTHERS, WITHOUT, Limits

MAX_TOKENS = 12
ARRIVAL = 1.0  # seconds in which a request must arrive
ODD = [
    0,
    -0.0,
    1e-46,
    1e308,
    -1,
    2**53,
    2**63,
    10**40,
    True,
    "",
    "\udc00",
    "\x00",
    "日本",
    [],
    {},
    [[]],
    None,
    "a" * 5000,
]
FIELDS = """Host Content-Type Content-Length Content-Encoding Transfer-Encoding Expect Connection Upgrade Accept
Authorization Range If-None-Match Origin Cookie X"""
CONTENTS = """localhost localhost:99999 [::1] example.com application/json application/json;charset=x 5 -1 gzip deflate
br zstd chunked identity 100-continue close keep-alive upgrade h2c"""
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(ODD)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
token_ids = st.lists(st.integers(0, 319), min_size=1, max_size=40)
prompts = st.one_of(
    st.text(max_size=60),
    token_ids,
    st.lists(st.text(max_size=9), min_size=1, max_size=3),
    st.lists(token_ids, max_size=2),
)
bodies = st.fixed_dictionaries(
    {"prompt": prompts},
    optional={
        "max_tokens": st.integers(0, MAX_TOKENS),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "top_k": st.integers(1, 400),
        "min_p": st.floats(0, 1),
        "repetition_penalty": st.floats(0.01, 100),
        "n": st.integers(1, 4),
        "seed": st.integers(0, 2**40),
        "logprobs": st.integers(0, 10),
        "stop": st.text(min_size=1, max_size=3) | st.lists(st.text(min_size=1, max_size=2), max_size=4),
        "stream": st.booleans(),
        "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
        "echo": st.booleans(),
        "user": st.text(max_size=9),
        "model": st.just("tiny"),
        "suffix": st.sampled_from(["", None]),
    },
)
names = st.sampled_from([*NUMBERS, *WITHOUT, *OTHERS]) | st.text(max_size=5)
changes = st.just({}) | st.dictionaries(names, values, max_size=2)
paths = st.sampled_from(
    ["/", "/health", "/v1/models", "/v1/models/tiny", "/v1/completions", "/v1/chat/completions", "*"]
)
fields = st.sampled_from(FIELDS.split())
contents = st.text(st.characters(max_codepoint=255), max_size=12) | st.sampled_from(CONTENTS.split())
methods = st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"])


@st.composite
def requests(draw):
    """A kind, and the bytes of an HTTP request with a body."""
    kind = draw(st.sampled_from(["json"] * 6 + ["any json", "any body", "http", "http", "bytes"]))
    if kind == "bytes":
        return kind, draw(st.binary(max_size=60)) + draw(st.sampled_from([b"\r\n\r\n", b"\r\n\r\n", b"\r\n\r\n", b""]))
    method, path, headers = "POST", "/v1/completions", [("Host", "localhost"), ("Content-Type", "application/json")]
    if kind == "any body":
        body = draw(st.binary(max_size=80))
    else:
        content = draw(values) if kind == "any json" else draw(bodies) | draw(changes)
        body = json.dumps(content).encode()
    if kind == "http":
        method, path = draw(methods), draw(paths | st.text(max_size=9).map("/{}".format))
        headers = draw(st.permutations(headers))[: draw(st.integers(0, 2))]
        headers += draw(st.lists(st.tuples(fields, contents), max_size=3))
        body = draw(st.sampled_from([body, b""]))
    length = [] if any(name == "Content-Length" for name, _ in headers) else [("Content-Length", str(len(body)))]
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers + length), "", ""]
    return kind, "\r\n".join(lines).encode("latin-1", "replace") + body


def ask(server: Running, data: bytes) -> tuple[int, str, bytes] | None:
    """Status, kind and content of the answer; None where the connection was closed without one."""
    with socket.create_connection(server.place, timeout=30) as client:
        try:
            client.sendall(data)
            response = http.client.HTTPResponse(client, method=data.split(b" ", 1)[0].decode("latin-1"))
            response.begin()
            return response.status, response.getheader("Content-Type", ""), response.read()
        except (http.client.BadStatusLine, ConnectionError):
            return None


def parse(content: bytes):
    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(content, parse_constant=refuse)


def check(data: bytes, status: int, kind: str, content: bytes) -> None:
    assert status < 500, content
    if data.startswith(b"HEAD"):
        return
    if status >= 400:
        error = parse(content)["error"]
        assert kind.startswith("application/json")
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["code"], error["type"], bool(error["message"])) == (status, "invalid_request_error", True)
    elif kind.startswith("text/event-stream"):
        *events, last, nothing = content.split(b"\n\n")
        assert (last, nothing) == (b"data: [DONE]", b"")
        for event in events:
            assert "error" not in parse(event.removeprefix(b"data: "))
    elif kind.startswith("application/json"):
        for choice in parse(content).get("choices", []):
            assert choice["finish_reason"] in ("stop", "length")
            if choice["logprobs"] is not None:
                assert len(set(map(len, choice["logprobs"].values()))) == 1
    else:
        assert kind.startswith("text/html")


class Neighbour:
    """Another client, which asks for one seeded text after the other, two at least, until it is told to leave."""

    def __init__(self, server: Running):
        self.server, self.texts, self.wrong, self.leaving = server, 0, [], threading.Event()
        self.expected = [server.tokenizer.decode(server.alone("Tom saw", MAX_TOKENS, seed)) for seed in range(20)]
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self) -> None:
        while self.texts < 2 or not self.leaving.is_set():
            seed, start = self.texts % 20, time.monotonic()
            try:
                status, answer, _ = self.server.post({"prompt": "Tom saw", "max_tokens": MAX_TOKENS, "seed": seed})
            except ConnectionError:
                if time.monotonic() - start < ARRIVAL:
                    raise
                continue  # on a busy machine this client itself may be too slow, and is closed
            if status != 200 or answer["choices"][0]["text"] != self.expected[seed]:
                self.wrong.append(answer)
            self.texts += 1
            time.sleep(0.01)


@pytest.mark.parametrize("cases", [50, pytest.param(10_000, marks=pytest.mark.slow)])
def test_requests_of_every_kind(cases, token_data, tmp_path):
    model, seen, start = save_run(tmp_path, token_data), Counter(), time.monotonic()
    limits = Limits(max_tokens=MAX_TOKENS, seconds=20.0, arrival=ARRIVAL)
    server = Running(model, load_tokenizer(tmp_path / BEST), limits=limits)
    neighbour = Neighbour(server)

    @hypothesis.settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=cases < 1000,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(requests())
    def run(request):
        kind, data = request
        answer = ask(server, data)
        seen[kind, answer and answer[0]] += 1
        if answer is None:
            assert kind in ("bytes", "http")
        else:
            check(data, *answer)

    try:
        run()
    finally:
        neighbour.leaving.set()
        neighbour.thread.join()
        server.end()
    assert neighbour.wrong == []
    assert neighbour.texts > cases / 50
    answered = Counter(status for (_, status), number in seen.items() for _ in range(number))
    assert answered[200] > cases / 5
    assert answered[400] > cases / 10
    print(
        f"{sum(seen.values())} requests, {time.monotonic() - start:.0f} s, answers {dict(answered)},"
        f" {neighbour.texts} texts of another client"
    )
