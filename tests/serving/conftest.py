"""Servers with a tiny model, which all tests of a file share."""

import pytest
from helpers.serving import Running

from lm.runs.checkpoint import load_model, load_tokenizer
from lm.runs.folder import BEST
from lm.serving.completions import Limits


@pytest.fixture(scope="module")
def make(saved_run):
    """make(**settings) -> a running server; all end with the module."""
    model, tokenizer, made = load_model(saved_run / BEST), load_tokenizer(saved_run / BEST), []

    def start(**settings):
        made.append(Running(model, tokenizer, **settings))
        return made[-1]

    yield start
    for server in made:
        server.end()
        server.clients.close()


@pytest.fixture(scope="module")
def server(make):
    return make()


@pytest.fixture
def slow(make):
    """One text at a time, one more may wait, 30 ms a token, 3 seconds a request."""
    server = make(slots=1, queue=1, limits=Limits(seconds=3.0))
    server.reader.seconds = 0.03
    return server
