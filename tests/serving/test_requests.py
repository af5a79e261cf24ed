"""Proves that the server refuses by name what it cannot do, in OpenAI's form, and takes what is neutral."""

import json
import math
import re
import threading

import pytest

from lm.commands.serve import LOCAL_NAMES, local_names
from lm.generation.sampling import Sampling
from lm.serving.completions import Limits

BAD = [
    ({}, 400, "prompt is missing"),
    ([1], 400, "must be a JSON object"),
    (b"{", 400, "is not valid JSON"),
    (b"\xff", 400, "is not valid JSON"),
    (b"[" * 100_000, 400, "is not valid JSON"),
    ({"prompt": []}, 400, "empty list"),
    ({"prompt": 3}, 400, "prompt must be a string"),
    ({"prompt": ["a", 3]}, 400, "prompt must be a string"),
    ({"prompt": [1, 400]}, 400, "400 is not a token id"),
    ({"prompt": [-1]}, 400, "-1 is not a token id"),
    ({"prompt": "\udc00"}, 400, "lone surrogate"),
    ({"prompt": "a " * 20_000}, 400, "at most 8192"),
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
    ({"prompt": "a", "max_tokens": -1, "echo": True}, 400, "max_tokens is '-1'; it must be a whole number, from 0"),
    ({"prompt": "a", "top_p": -1}, 400, "top_p is '-1'"),
    ({"prompt": "a", "top_p": 1.5}, 400, "top_p is '1.5'"),
    ({"prompt": "a", "top_k": 0}, 400, "top_k is '0'"),
    ({"prompt": "a", "seed": -1}, 400, "seed is '-1'"),
    ({"prompt": "a", "n": 17}, 400, "too many; at most 16"),
    ({"prompt": ["a"] * 17}, 400, "too many"),
    ({"prompt": "a", "logprobs": 11}, 400, "logprobs is '11'"),
    ({"prompt": "a", "stop": ""}, 400, "stop must be"),
    ({"prompt": "a", "stop": list("abcde")}, 400, "or a list of at most 4"),
    ({"prompt": "a", "stop": [3]}, 400, "stop must be"),
    ({"prompt": "a", "stream": "yes"}, 400, "stream is 'yes'"),
    ({"prompt": "a", "stream_options": 3}, 400, "stream_options can be"),
    ({"prompt": "a", "stream_options": {"what": 1}}, 400, "stream_options can be"),
    ({"prompt": "a", "suffix": "b"}, 400, "suffix is not supported"),
    ({"prompt": "a", "best_of": 3}, 400, "best_of is not supported"),
    ({"prompt": "a", "best_of": 1, "n": 2}, 400, "best_of is not supported"),
    ({"prompt": "a", "stream_options": {"include_obfuscation": True}}, 400, "include_obfuscation is not supported"),
    ({"prompt": ["a"] * 200_000}, 400, "200000 prompts times n = 1 are too many"),
    ({"prompt": [5] * 330_000}, 400, "prompt has 330000 tokens; at most 8192 are possible"),
    ({"prompt": "a" * 1_000_000}, 400, "prompt has 1000000 characters; at most 131072 are possible"),
    ({"prompt": "a" * 100_000}, 400, "at most 8192 are possible"),
    ({"prompt": [5, 10**4000]}, 400, "is not a token id"),
    ({"prompt": "a", "n": 10**4000}, 400, "n is '1000"),
    ({"prompt": "a", "\udc00": 1}, 400, "is unknown"),
    ({"prompt": "a", "model": [[[[["x"]]]]]}, 404, "is not served here"),
    (b'{"prompt": "a", "n": ' + b"[" * 900 + b"]" * 900 + b"}", 400, "n is "),
    (b'{"prompt": "a", "seed": 1e999}', 400, "seed is 'inf'"),
    ({"prompt": "a", "presence_penalty": 0.5}, 400, "presence_penalty is not supported"),
    ({"prompt": "a", "logit_bias": {"3": 1}}, 400, "logit_bias is not supported"),
    ({"prompt": "a", "tempreature": 1}, 400, "tempreature is unknown"),
]


NEUTRAL = [
    {"best_of": 1},
    {"n": 2, "best_of": 2},
    {"suffix": ""},
    {"logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0},
    {"top_p": 0, "temperature": 1},
    {"top_p": 1e-46},
    {"min_p": 1e-46, "temperature": 0.001},
    {"stream_options": {"include_obfuscation": False}},
    {"user": "me", "model": "tiny"},
    dict.fromkeys(["suffix", "best_of", "logit_bias", "stop", "stream_options", "user", "n", "echo", "top_p", "seed"]),
]


@pytest.mark.parametrize("settings", NEUTRAL, ids=str)
def test_neutral_values_are_taken(server, settings):
    status, answer, _ = server.post({"prompt": "Tom saw", "max_tokens": 4} | settings)
    assert (status, answer["choices"][0]["finish_reason"]) in ((200, "length"), (200, "stop"))


def test_top_p_of_0_is_the_likeliest(server):
    greedy = server.tokenizer.decode(server.alone("Tom", 20, 0, Sampling(0)))
    for settings in ({"top_p": 0}, {"top_p": 1e-46}, {"top_k": 1}, {"min_p": 1}, {"temperature": 0}):
        _, answer, _ = server.post({"prompt": "Tom", "max_tokens": 20, "temperature": 1} | settings)
        assert answer["choices"][0]["text"] == greedy


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
        ("POST", "/v1/completions", {"Content-Type": "application/json; charset=nonsense"}, 415),
        ("POST", "/v1/completions", {"Content-Type": "application/json; charset=utf-16"}, 415),
        ("POST", "/v1/completions", {"Content-Type": "application/json", "Content-Encoding": "gzip"}, 400),
        ("POST", "/v1/completions", {"Content-Type": "application/json", "Expect": "a miracle"}, 417),
        ("POST", "/v1/chat/completions", {"Content-Type": "application/json"}, 404),
        ("GET", "/v1/models/other", {}, 404),
        *(
            ("GET", "/health", {"Host": host}, 400)
            for host in ("", "localhost:99999x", "localhost:-1", "[::1", "a:b:c")
        ),
        ("GET", "/health", {"Host": "localhost:999999999"}, 400),
    ]:
        found, text, _ = server.request(method, path, body if method == "POST" else None, **headers)
        assert (found, json.loads(text)["error"]["code"]) == (status, status)
    assert server.request("GET", "/health", Host="localhost:80")[0] == 200
    assert server.request("GET", "/health", Host="LocalHost")[0] == 200
    assert server.request("GET", "/health", Host="[::1]:8000")[0] == 200
    assert json.loads(server.request("GET", "/v1/models")[1])["data"][0]["id"] == "tiny"
    described = json.loads(server.request("GET", "/v1/models/tiny")[1])
    size = {"parameters": server.model.num_parameters(), "context_length": server.model.context_length}
    size |= {"max_tokens": Limits().max_tokens}
    assert described == {"id": "tiny", "object": "model", "created": 0, "owned_by": "you", **size}
    assert server.client().models.retrieve("tiny").id == "tiny"
    charset = {"Content-Type": "application/json; charset=UTF-8"}
    assert server.request("POST", "/v1/completions", '{"prompt": "a", "max_tokens": 1}', **charset)[0] == 200
    status, page, headers = server.request("GET", "/")
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "text/html")
    icon = re.compile(r"""<link rel="icon" href="data:image/svg\+xml,<svg xmlns='http://www.w3.org/2000/svg' [^"]+">""")
    assert not re.findall(r"(?:src|href)=|https?://|url\(", icon.sub("", page, count=1))  # nothing comes from elsewhere
    assert len(icon.findall(page)) == 1
    assert local_names("127.0.0.1") == ("127.0.0.1", *LOCAL_NAMES)
    assert local_names("0.0.0.0") == local_names("::") == ()


def test_messages_that_help(server):
    import openai  # here, as collecting the tests would wait for it

    with pytest.raises(openai.NotFoundError, match="a base model; use /v1/completions"):
        server.client().chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hello"}])
    answer = json.loads(server.request("GET", "/health", Host="example.com")[1])
    assert f"open {server.address}, or" in answer["error"]["message"]


def test_prompts_are_counted_before_they_are_encoded_and_encoded_aside(server, monkeypatch):
    """The event loop's thread encodes nothing, and what is refused for its number is not encoded at all."""
    threads, encode = [], server.tokenizer.encode

    def watch(text):
        threads.append(threading.current_thread().name)
        return encode(text)

    monkeypatch.setattr(server.tokenizer, "encode", watch)
    for prompts in (["a"] * 200_000, [[1]] * 200_000, "a" * 900_000):
        assert server.post({"prompt": prompts})[0] == 400
    assert threads == []
    assert server.post({"prompt": ["Tom", "A cat"], "max_tokens": 1})[0] == 200
    assert len(threads) == 2
    assert all(name.startswith("aside") for name in threads)
    words = "word " * 20_000
    assert server.post({"prompt": words})[0] == 400
    assert 2 < len(threads) < 2 + len(words) / 4000  # and no further than it takes to know


def test_a_key(make):
    """Everything but the page, which can be given the key, needs it."""
    import openai  # here, as collecting the tests would wait for it

    server = make(key="s3cret", names=())
    body = json.dumps({"prompt": "Tom", "max_tokens": 1})
    for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/health"), ("GET", "/nothing")):
        for given in (
            {},
            {"Authorization": "Bearer s3cre"},
            {"Authorization": "s3cret"},
            {"Authorization": "Basic s3cret"},
        ):
            status, text, headers = server.request(method, path, body if method == "POST" else None, **given)
            assert (status, json.loads(text)["error"]["code"], headers["WWW-Authenticate"]) == (401, 401, "Bearer")
            assert "s3cret" not in text
    right = {"Authorization": "Bearer s3cret", "Content-Type": "application/json", "Host": "any.example"}
    assert server.request("POST", "/v1/completions", body, **right)[0] == 200
    assert server.request("GET", "/nothing", **right)[0] == 404
    status, page, _ = server.request("GET", "/")
    assert (status, "s3cret" in page) == (200, False)
    with pytest.raises(openai.AuthenticationError, match="the key is wrong"):
        server.client().models.list()
    assert server.client(api_key="s3cret").models.list().data[0].id == "tiny"
