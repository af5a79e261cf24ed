"""A server in a thread of this process, and clients to ask it: for the tests of `lm serve`."""

import asyncio
import functools
import http.client
import json
import socket
import threading
import time
from contextlib import ExitStack, closing

import torch

from lm.commands.serve import LOCAL_NAMES
from lm.generation.decoding import CachedReader
from lm.generation.sampling import Sampling
from lm.generation.writer import Writer, generate
from lm.serving.completions import Limits
from lm.serving.engine import Engine
from lm.serving.server import Server, run_server


class SlowReader(CachedReader):
    """Waits before each step, so that a test can come in between."""

    seconds = 0.0

    def step(self, token_ids):
        time.sleep(self.seconds)
        return super().step(token_ids)


class Running:
    """A server in a thread, on a port of its own."""

    seed: int | None = None

    def __init__(self, model, tokenizer, slots=4, queue=60, limits=None, key=None, names=LOCAL_NAMES):
        self.model, self.tokenizer = model, tokenizer
        self.reader = SlowReader(model, slots, torch.float32)
        self.engine = Engine(Writer.of_tokens(self.reader, tokenizer), slots, queue)
        server = Server(self.engine, tokenizer, "tiny", limits or Limits(), names, key)
        started = threading.Event()

        def ready(address, stop):
            self.address, self.stop, self.loop = address, stop, asyncio.get_running_loop()
            started.set()

        self.clients = ExitStack()  # closes the streams that tests have left open
        self.thread = threading.Thread(target=lambda: asyncio.run(run_server(server, "127.0.0.1", 0, ready)))
        self.thread.start()
        assert started.wait(20)
        self.host = self.address.removeprefix("http://")
        self.place = ("127.0.0.1", int(self.host.rpartition(":")[2]))

    def end(self):
        if not self.thread.is_alive():
            return
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(20)
        assert not self.thread.is_alive()

    @functools.cache  # noqa: B019  # half a second each
    def client(self, api_key="none"):
        import openai  # here, as collecting the tests would wait for it

        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=api_key, max_retries=0, timeout=60)

    def request(self, method, path, body=None, **headers):
        with closing(http.client.HTTPConnection(self.host, timeout=60)) as connection:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers

    def send(self, data: bytes, seconds: float = 10) -> bytes:
        """Anything at all, and what comes until the server closes the connection."""
        with socket.create_connection(self.place, timeout=seconds) as client:
            client.sendall(data)
            received = b""
            while part := client.recv(1 << 16):
                received += part
        return received

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
        if self.seed is None:
            self.seed = next(seed for seed in range(1000) if len(self.alone("Tom", 150, seed)) == 150)
        return self.seed

    def until(self, **wanted):
        """/health says so, within seconds."""
        for _ in range(200):
            health = json.loads(self.request("GET", "/health")[1])
            if wanted.items() <= health.items():
                return health
            time.sleep(0.02)
        raise AssertionError(f"{health}, and not {wanted}")

    def start_stream(self):
        """A client that has got its first token, and reads no more."""
        connection = self.clients.enter_context(closing(http.client.HTTPConnection(self.host, timeout=60)))
        body = json.dumps({"prompt": "Tom", "max_tokens": 150, "stream": True, "seed": self.long_seed()})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = self.clients.enter_context(closing(connection.getresponse()))
        assert response.readline().startswith(b"data: ")
        return connection, response
