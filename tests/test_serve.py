"""Proves that the server writes what `lm generate` writes, to one client and to 32 at once, whole or as a stream, with
OpenAI's own client; that it refuses by name what it cannot do; and that who leaves, waits too long, or comes when too
many wait takes nothing from the others."""

import asyncio
import http.client
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from test_export import save_run

from lm.checkpoint import BEST, load_model, load_tokenizer
from lm.completions import Limits
from lm.decoding import CachedReader
from lm.generation import Writer, generate
from lm.sampling import Sampling
from lm.serve import LOCAL_NAMES, Server, local_names, run_server
from lm.serving import Engine


class SlowReader(CachedReader):
    """Waits before each step, so that a test can come in between."""

    seconds = 0.0

    def step(self, token_ids):
        time.sleep(self.seconds)
        return super().step(token_ids)


class Running:
    """A server in a thread, on a port of its own."""

    def __init__(self, model, tokenizer, slots=4, queue=60, limits=None):
        self.model, self.tokenizer = model, tokenizer
        self.reader = SlowReader(model, slots, torch.float32)
        self.engine = Engine(Writer(self.reader, tokenizer.end_of_text_id, tokenizer.vocab_size), slots, queue)
        server = Server(self.engine, tokenizer, "tiny", limits or Limits(), LOCAL_NAMES)
        started = threading.Event()

        def ready(address, stop):
            self.address, self.stop, self.loop = address, stop, asyncio.get_running_loop()
            started.set()

        self.thread = threading.Thread(target=lambda: asyncio.run(run_server(server, "127.0.0.1", 0, ready)))
        self.thread.start()
        assert started.wait(20)
        self.host = self.address.removeprefix("http://")

    def end(self):
        if not self.thread.is_alive():
            return
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(20)
        assert not self.thread.is_alive()

    def client(self):
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=60)

    def request(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode(), response.headers

    def post(self, body, **headers):
        content = body if isinstance(body, (bytes, str)) else json.dumps(body)
        headers = {"Content-Type": "application/json"} | headers
        status, text, answered = self.request("POST", "/v1/completions", content, **headers)
        return status, json.loads(text), answered

    def alone(self, prompt, max_tokens, seed, sampling=None):
        sampling = sampling or Sampling(1.0, None, 1.0)
        ids = self.tokenizer.encode(prompt or "<|endoftext|>")
        end = self.tokenizer.end_of_text_id
        return list(generate(self.model, ids, max_tokens, sampling, seed, end, self.tokenizer.vocab_size))

    def long_seed(self) -> int:
        """Of a text that the model does not end within 150 tokens."""
        return next(seed for seed in range(1000) if len(self.alone("Tom", 150, seed)) == 150)

    def until(self, **wanted):
        """/health says so, within seconds."""
        for _ in range(200):
            health = json.loads(self.request("GET", "/health")[1])
            if wanted.items() <= health.items():
                return health
            time.sleep(0.02)
        raise AssertionError(f"{health}, and not {wanted}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, token_data):
    folder = tmp_path_factory.mktemp("serve") / "run"
    save_run(folder, token_data)
    return folder


@pytest.fixture(scope="module")
def make(folder):
    """make(**settings) -> a running server; all end with the module."""
    model, tokenizer, made = load_model(folder / BEST), load_tokenizer(folder / BEST), []

    def start(**settings):
        made.append(Running(model, tokenizer, **settings))
        return made[-1]

    yield start
    for server in made:
        server.end()


@pytest.fixture(scope="module")
def server(make):
    return make()


@pytest.fixture
def slow(make):
    """One text at a time, one more may wait, 30 ms a token, 3 seconds a request."""
    server = make(slots=1, queue=1, limits=Limits(seconds=3.0))
    server.reader.seconds = 0.03
    return server


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["Tom saw", "", "日本 ", "The cat saw a red ball. " * 9])
def test_a_text_is_the_one_that_generate_writes(server, prompt):
    ids = server.alone(prompt, 20, 7)
    found = server.client().completions.create(model="tiny", prompt=prompt, max_tokens=20, seed=7)
    (choice,) = found.choices
    assert choice.text == server.tokenizer.decode(ids)
    assert choice.finish_reason == ("length" if len(ids) == 20 else "stop")
    assert found.usage.completion_tokens == len(ids)
    assert found.usage.prompt_tokens == len(server.tokenizer.encode(prompt or "<|endoftext|>"))


def test_settings_reach_the_sampling(server):
    settings = {"temperature": 0.7, "top_p": 0.8}
    more = {"top_k": 9, "min_p": 0.01, "repetition_penalty": 1.4}
    found = server.client().completions.create(
        model="tiny", prompt="Tom", max_tokens=30, seed=3, extra_body=more, **settings
    )
    expected = server.alone("Tom", 30, 3, Sampling(**settings, **more))
    assert found.choices[0].text == server.tokenizer.decode(expected)
    greedy = server.client().completions.create(model="tiny", prompt="Tom", max_tokens=30, temperature=0)
    assert greedy.choices[0].text == server.tokenizer.decode(server.alone("Tom", 30, 0, Sampling(0)))


def test_a_stream_is_the_whole_text_bit_by_bit(server):
    settings = {"model": "tiny", "prompt": "Tom saw", "max_tokens": 30, "seed": 7, "logprobs": 2}
    whole = server.client().completions.create(**settings)
    events = list(server.client().completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    *chunks, last = events
    assert last.usage == whole.usage
    assert len(chunks) == whole.usage.completion_tokens
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        parts = [each for chunk in chunks for each in getattr(chunk.choices[0].logprobs, name)]
        assert parts == getattr(whole.choices[0].logprobs, name)


def test_log_probabilities(server):
    found = server.client().completions.create(model="tiny", prompt="Tom saw", max_tokens=5, seed=7, logprobs=3)
    ids, given = server.tokenizer.encode("Tom saw"), found.choices[0].logprobs
    drawn = server.alone("Tom saw", 5, 7)
    with torch.inference_mode():
        scores = server.model(torch.tensor(ids + drawn))[:, : server.tokenizer.vocab_size].log_softmax(-1)
    for place, token_id in enumerate(drawn):
        row = scores[len(ids) - 1 + place]
        assert given.token_logprobs[place] == pytest.approx(row[token_id].item(), abs=1e-4)
        assert list(given.top_logprobs[place].values()) == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    assert given.text_offset[0] == 0


def test_several_prompts_and_copies_stops_and_echo(server):
    prompts = ["Tom", server.tokenizer.encode("The cat")]
    for prompt in (prompts, ["Tom", "The cat"]):
        if prompt is prompts:
            status, answer, _ = server.post({"prompt": [prompts[1], prompts[1]], "max_tokens": 9, "seed": 4})
            texts = [server.tokenizer.decode(server.alone("The cat", 9, seed)) for seed in (4, 5)]
            assert [choice["text"] for choice in answer["choices"]] == texts
            continue
        status, answer, _ = server.post({"prompt": prompt, "n": 2, "max_tokens": 9, "seed": 4, "echo": True})
        assert status == 200
        expected = [
            each + server.tokenizer.decode(server.alone(each, 9, 4 + 2 * number + copy))
            for number, each in enumerate(prompt)
            for copy in range(2)
        ]
        assert [choice["text"] for choice in answer["choices"]] == expected
        assert answer["usage"]["prompt_tokens"] == sum(len(server.tokenizer.encode(each)) for each in prompt)
    text = server.tokenizer.decode(server.alone("Tom", 40, 4))
    stop = text[11:13]
    _, answer, _ = server.post({"prompt": "Tom", "max_tokens": 40, "seed": 4, "stop": ["never!", stop]})
    assert answer["choices"][0]["text"] == text[: text.find(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert server.until(running=0)


def test_32_clients_at_once_and_none_lost(server):
    """Half of them stream; 4 rows for 32 texts."""

    def ask(number: int) -> tuple[str, str]:
        settings = {"model": "tiny", "prompt": f"Tom {number}", "max_tokens": 12 + number % 9, "seed": number}
        found = server.client().completions.create(**settings, stream=bool(number % 2))
        text = "".join(chunk.choices[0].text for chunk in found) if number % 2 else found.choices[0].text
        return text, server.tokenizer.decode(server.alone(settings["prompt"], settings["max_tokens"], number))

    with ThreadPoolExecutor(32) as pool:
        pairs = list(pool.map(ask, range(32)))
    assert len(pairs) == 32
    for found, expected in pairs:
        assert found == expected
    assert server.until(running=0, waiting=0)


# --- what is refused --------------------------------------------------------------------------------------------------

BAD = [
    ({}, 400, "prompt is missing"),
    ([1], 400, "must be a JSON object"),
    (b"{", 400, "is not JSON"),
    (b"\xff", 400, "is not JSON"),
    (b"[" * 100_000, 400, "is not JSON"),
    ({"prompt": []}, 400, "empty list"),
    ({"prompt": 3}, 400, "prompt must be a string"),
    ({"prompt": ["a", 3]}, 400, "prompt must be a string"),
    ({"prompt": [1, 400]}, 400, "400 is no token id"),
    ({"prompt": [-1]}, 400, "-1 is no token id"),
    ({"prompt": "\udc00"}, 400, "lone surrogate"),
    ({"prompt": "a " * 20_000}, 400, "8192 at most"),
    ({"prompt": "a" * 2_000_000}, 413, "Too Large"),
    ({"prompt": "a", "model": "gpt-4"}, 404, "model 'gpt-4' is not served here; 'tiny' is"),
    ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens is '0'; it must be a whole number, from 1 to 2048"),
    ({"prompt": "a", "max_tokens": 10**9}, 400, "from 1 to 2048"),
    ({"prompt": "a", "max_tokens": 2.5}, 400, "max_tokens is '2.5'"),
    ({"prompt": "a", "max_tokens": True}, 400, "max_tokens is 'True'"),
    ({"prompt": "a", "temperature": -1}, 400, "temperature is '-1'"),
    ({"prompt": "a", "temperature": 1e-44}, 400, "temperature 1e-44"),
    ({"prompt": "a", "temperature": math.nan}, 400, "temperature is 'nan'"),
    ({"prompt": "a", "temperature": 10**400}, 400, "temperature is '1000"),
    ({"prompt": "a", "temperature": "hot"}, 400, "temperature is 'hot'; it must be a number"),
    ({"prompt": "a", "top_p": 0}, 400, "top_p 0.0"),
    ({"prompt": "a", "top_p": 1.5}, 400, "top_p is '1.5'"),
    ({"prompt": "a", "top_k": 0}, 400, "top_k is '0'"),
    ({"prompt": "a", "seed": -1}, 400, "seed is '-1'"),
    ({"prompt": "a", "n": 17}, 400, "too many texts; 16 at most"),
    ({"prompt": ["a"] * 17}, 400, "too many texts"),
    ({"prompt": "a", "logprobs": 11}, 400, "logprobs is '11'"),
    ({"prompt": "a", "stop": ""}, 400, "stop must be"),
    ({"prompt": "a", "stop": list("abcde")}, 400, "or 4 at most"),
    ({"prompt": "a", "stop": [3]}, 400, "stop must be"),
    ({"prompt": "a", "stream": "yes"}, 400, "stream is 'yes'"),
    ({"prompt": "a", "stream_options": 3}, 400, "stream_options can be"),
    ({"prompt": "a", "stream_options": {"what": 1}}, 400, "stream_options can be"),
    ({"prompt": "a", "suffix": "b"}, 400, "suffix cannot be honoured"),
    ({"prompt": "a", "best_of": 3}, 400, "best_of cannot"),
    ({"prompt": "a", "presence_penalty": 0.5}, 400, "presence_penalty cannot"),
    ({"prompt": "a", "logit_bias": {"3": 1}}, 400, "logit_bias cannot"),
    ({"prompt": "a", "tempreature": 1}, 400, "tempreature is not known here"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_requests(server, body, status, words):
    found, answer, _ = server.post(body)
    assert found == status
    assert set(answer) == {"error"}
    assert words in answer["error"]["message"]
    assert answer["error"]["code"] == status


def test_bad_addresses_names_and_kinds(server):
    body = json.dumps({"prompt": "a"})
    for method, path, headers, status in [
        ("GET", "/nothing", {}, 404),
        ("GET", "/v1/completions", {}, 405),
        ("POST", "/v1/completions", {"Content-Type": "text/plain"}, 415),  # what a form of another page can send
        ("GET", "/health", {"Host": "evil.example"}, 403),  # a name that was turned to this machine
        ("POST", "/v1/completions", {"Content-Type": "application/json", "Host": "evil.example:8000"}, 403),
    ]:
        found, text, _ = server.request(method, path, body if method == "POST" else None, **headers)
        assert (found, json.loads(text)["error"]["code"]) == (status, status)
    assert server.request("GET", "/health", Host="localhost:80")[0] == 200
    assert json.loads(server.request("GET", "/v1/models")[1])["data"][0]["id"] == "tiny"
    status, page, headers = server.request("GET", "/")
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "text/html")
    assert not re.findall(r"(?:src|href)=|https?://", page)  # nothing comes from elsewhere
    assert local_names("127.0.0.1") == ("127.0.0.1", *LOCAL_NAMES)
    assert local_names("0.0.0.0") == local_names("::") == ()


# --- waiting and leaving ----------------------------------------------------------------------------------------------


def start_stream(server):
    """A client that has got its first token, and reads no more."""
    connection = http.client.HTTPConnection(server.host, timeout=60)
    body = json.dumps({"prompt": "Tom", "max_tokens": 150, "stream": True, "seed": server.long_seed()})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    return connection, response


def test_who_leaves_frees_the_row_at_once(slow):
    connection, response = start_stream(slow)
    slow.until(running=1, waiting=0)
    response.close()
    connection.close()
    slow.until(running=0)
    waiting = http.client.HTTPConnection(slow.host, timeout=60)  # not streaming, and still in the queue
    first = start_stream(slow)
    body = json.dumps({"prompt": "Tom", "max_tokens": 150})
    waiting.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    slow.until(running=1, waiting=1)
    waiting.close()
    slow.until(running=1, waiting=0)
    first[1].close()
    first[0].close()
    slow.until(running=0, waiting=0)
    _, answer, _ = slow.post({"prompt": "Tom", "max_tokens": 5, "seed": 2})
    assert answer["choices"][0]["text"] == slow.tokenizer.decode(slow.alone("Tom", 5, 2))


def test_too_many_are_told_to_come_again(slow):
    first = start_stream(slow)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(slow.post, {"prompt": "The", "max_tokens": 3, "seed": 5})
        slow.until(running=1, waiting=1)
        status, answer, headers = slow.post({"prompt": "a"})
        assert (status, answer["error"]["type"]) == (429, "server_busy")
        assert int(headers["Retry-After"]) > 0
        assert slow.post({"prompt": ["a", "b", "c"]})[0] == 429
        first[1].close()
        first[0].close()
        assert second.result()[0] == 200  # who had a place has been served
    slow.until(running=0, waiting=0)


def test_a_request_takes_no_longer_than_it_may(slow):
    seed, start = slow.long_seed(), time.time()
    status, answer, _ = slow.post({"prompt": "Tom", "max_tokens": 150, "seed": seed})
    assert (status, time.time() - start < 8) == (504, True)
    assert "not done within 3 seconds" in answer["error"]["message"]
    slow.until(running=0)
    events = list(start_stream(slow)[1])
    assert json.loads(events[-2].removeprefix(b"data: "))["error"]["code"] == 504  # and no [DONE]
    slow.until(running=0)


def test_a_body_that_never_comes(slow):
    connection = http.client.HTTPConnection(slow.host, timeout=60)
    connection.putrequest("POST", "/v1/completions")
    for name, value in (("Content-Type", "application/json"), ("Content-Length", "100")):
        connection.putheader(name, value)
    connection.endheaders(b'{"prompt')
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (408, 408)


def test_the_end_of_the_server_is_told(make):
    server = make(slots=1, queue=3)
    server.reader.seconds = 0.03
    with ThreadPoolExecutor(1) as pool:
        _, response = start_stream(server)
        waiting = pool.submit(server.post, {"prompt": "Tom"})
        server.until(running=1, waiting=1)
        server.end()
        assert waiting.result()[0] == 503
        assert b"the server ends" in response.read()


def test_a_model_whose_scores_are_no_numbers_says_so_and_the_server_lives(make, folder):
    server = make()
    server.reader.model.ln_final.weight.data, kept = (
        torch.full_like(server.reader.model.ln_final.weight, math.nan),
        server.reader.model.ln_final.weight.data,
    )
    try:
        status, answer, _ = server.post({"prompt": "Tom"})
        assert (status, "diverged" in answer["error"]["message"]) == (500, True)
    finally:
        server.reader.model.ln_final.weight.data = kept
    assert server.post({"prompt": "Tom"})[0] == 200


# --- the command ------------------------------------------------------------------------------------------------------


def test_wrong_wishes(lm, folder, server):
    for arguments, words in {
        ("none",): "no such checkpoint",
        (folder, "--port=70000"): "--port 70000",
        (folder, "--slots=0"): "--slots 0",
        (folder, "--timeout=0"): "--timeout 0",
        (folder, f"--port={server.host.rpartition(':')[2]}"): "is another program there?",
        (folder, "--host=no.such.host.invalid"): "--host no.such.host.invalid",
    }.items():
        result = lm("serve", *arguments)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert words in result.err


def test_the_command_serves_until_it_is_told_to_end(folder):
    command = [sys.executable, "-m", "lm", "serve", str(folder), "--port=0"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    line = process.stderr.readline()
    host = re.search(r"served at http://(\S+);", line)[1]
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read())["model"] == "run"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert process.stderr.read() == ""


@pytest.mark.slow
def test_the_page_in_chromium(server, tmp_path):
    """A story is written, and its tokens say how likely they were."""
    browser = shutil.which("chromium") or pytest.skip("chromium is not installed")
    port_file = tmp_path / "profile/DevToolsActivePort"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--window-size=1000,800"]
    process = subprocess.Popen(
        [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", server.address], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            if port_file.exists() and port_file.read_text().count("\n"):
                break
            time.sleep(0.1)
        port = int(port_file.read_text().split("\n")[0])
        asyncio.run(look_at_the_page(port, server, os.environ.get("SCREENSHOT")))
    finally:
        process.kill()
        process.wait()


async def look_at_the_page(port: int, server: Running, screenshot: str | None) -> None:
    import base64

    import aiohttp

    async with aiohttp.ClientSession() as session:
        pages = []
        while not pages:
            async with session.get(f"http://127.0.0.1:{port}/json") as response:
                pages = [page for page in await response.json() if page["type"] == "page"]
        async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:

            async def call(method, **params):
                await socket.send_json({"id": 1, "method": method, "params": params})
                while (answer := await socket.receive_json(timeout=60)).get("id") != 1:
                    pass
                return answer["result"]

            async def evaluate(expression):
                answer = await call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
                assert "exceptionDetails" not in answer, answer
                return answer["result"].get("value")

            for _ in range(300):
                if await evaluate("document.title") == "tiny":
                    break
                await asyncio.sleep(0.1)
            fields = "f => document.querySelector(`[name=${f[0]}]`).value = f[1]"
            await evaluate(f"[['seed', 3], ['max_tokens', 40], ['temperature', 1], ['top_p', 1]].forEach({fields})")
            await evaluate("document.querySelector('#prompt').value = 'Tom saw'; write()")
            expected = "Tom saw" + server.tokenizer.decode(server.alone("Tom saw", 40, 3))
            assert await evaluate("document.querySelector('#story').textContent") == expected
            assert (await evaluate("document.querySelector('#figures').textContent")).startswith("40 tokens, ")
            fifth = "document.querySelectorAll('.token')[5].getBoundingClientRect()"
            place = await evaluate(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({fifth})")
            await call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
            tip = await evaluate("document.querySelector('#tip').innerText")
            assert tip.count("%") >= 5
            await evaluate("document.querySelector('[name=temperature]').value = -1; write()")
            assert "temperature is '-1'" in await evaluate("document.querySelector('#error').textContent")
            if screenshot:
                picture = await call("Page.captureScreenshot", format="png")
                with open(screenshot, "wb") as file:
                    file.write(base64.b64decode(picture["data"]))
