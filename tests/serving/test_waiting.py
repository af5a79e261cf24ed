"""Proves that who leaves, waits too long, fails, or comes when too many wait takes nothing from the others."""

import http.client
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch

from lm.generation.sampling import Sampling


def test_who_leaves_frees_the_row_at_once(slow):
    connection, response = slow.start_stream()
    slow.until(running=1, waiting=0)
    response.close()
    connection.close()
    slow.until(running=0)
    waiting = http.client.HTTPConnection(slow.host, timeout=60)  # not streaming, and still in the queue
    first = slow.start_stream()
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
    first = slow.start_stream()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(slow.post, {"prompt": "The", "max_tokens": 3, "seed": 5})
        slow.until(running=1, waiting=1)
        status, answer, headers = slow.post({"prompt": "a"})
        assert (status, answer["error"]["type"]) == (429, "server_busy")
        assert int(headers["Retry-After"]) > 0
        assert "1 texts wait, and there is no room for 1 more" in answer["error"]["message"]
        status, answer, _ = slow.post({"prompt": ["a", "b", "c"]})  # not even with nobody else there
        message = "3 texts are more than slots + queue (1 + 1); ask for fewer"
        assert (status, answer["error"]["message"]) == (400, message)
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
    events = list(slow.start_stream()[1])
    assert json.loads(events[-2].removeprefix(b"data: "))["error"]["code"] == 504  # and no [DONE]
    slow.until(running=0)


def test_a_body_that_never_comes(slow):
    with closing(http.client.HTTPConnection(slow.host, timeout=60)) as connection:
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
        _, response = server.start_stream()
        waiting = pool.submit(server.post, {"prompt": "Tom"})
        server.until(running=1, waiting=1)
        server.end()
        assert waiting.result()[0] == 503
        assert b"the server is shutting down" in response.read()


def test_a_model_whose_scores_are_no_numbers_says_so_and_the_server_lives(make, saved_run):
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


def test_a_text_that_fails_ends_no_other(make):
    """One token is NaN in this server's model: its readers fail by name, beside healthy texts, which do not have it."""
    server = make(slots=3, queue=60)
    alone = [server.alone(f"Tom {number}", 25, number, Sampling(0)) for number in range(24)]
    read = {token_id for number, ids in enumerate(alone) for token_id in ids + server.tokenizer.encode(f"Tom {number}")}
    missing = next(token_id for token_id in range(300, 0, -1) if token_id not in read)
    server.reader.embeddings = server.reader.embeddings.clone()
    server.reader.embeddings[missing] = math.nan
    server.reader.seconds = 0.005

    def ask(number: int) -> str | None:
        prompt = [missing] if number % 3 == 1 else f"Tom {number}"
        status, answer, _ = server.post({"prompt": prompt, "max_tokens": 25, "seed": number, "top_p": 1e-46})
        if number % 3 != 1:
            return answer["choices"][0]["text"]
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert "the model's logits are not finite" in answer["error"]["message"]
        return None

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(ask, range(24)))
    for number, text in enumerate(found):
        if number % 3 != 1:
            assert text == server.tokenizer.decode(alone[number])
    assert server.until(running=0, waiting=0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_device_that_is_lost_is_told_at_once(make, monkeypatch):
    """Where not even a text can be dropped any more, the thread ends, and nobody waits for it."""
    server = make()

    def lost(*_):
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(server.engine.writer, "step", lost)
    monkeypatch.setattr(server.engine.writer, "drop", lost)
    status, answer, _ = server.post({"prompt": "Tom"})
    assert (status, answer["error"]["message"]) == (500, "the device is lost")
    server.engine.thread.join(10)
    status, text, _ = server.request("GET", "/health")
    assert (status, json.loads(text)["status"]) == (503, "stopped")
    status, answer, _ = server.post({"prompt": "Tom"})
    assert (status, answer["error"]["message"]) == (503, "the server can write no more; restart it")
