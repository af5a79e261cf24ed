"""Proves what the command `lm serve` says and refuses, and that its page writes."""

import asyncio
import http.client
import inspect
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from html.parser import HTMLParser

import pytest
import torch
from helpers.models import save_run
from helpers.serving import Running

from lm.commands.serve import read_key
from lm.generation.sampling import Sampling
from lm.runs.checkpoint import save_checkpoint
from lm.runs.folder import BEST
from lm.serving.server import PAGE


def test_wrong_wishes(lm, saved_run, server):
    for arguments, words in {
        ("none",): "no such checkpoint",
        (saved_run, "--port=70000"): "--port 70000",
        (saved_run, "--slots=0"): "--slots 0",
        (saved_run, "--timeout=0"): "--timeout 0",
        (saved_run, "--api-key="): "--api-key: a key consists of printable ASCII characters",
        (saved_run, "--api-key=a b"): "--api-key: a key consists of",
        (saved_run, f"--port={server.host.rpartition(':')[2]}"): "is another program there?",
        (saved_run, "--host=no.such.host.invalid"): "--host no.such.host.invalid",
    }.items():
        result = lm("serve", *arguments)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert words in result.err


def test_keys(lm, saved_run, monkeypatch):
    monkeypatch.delenv("LM_API_KEY", raising=False)
    assert read_key(None) is None
    monkeypatch.setenv("LM_API_KEY", "of-the-environment")
    assert (read_key(None), read_key("given")) == ("of-the-environment", "given")
    monkeypatch.setenv("LM_API_KEY", "")
    result = lm("serve", saved_run)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "LM_API_KEY: a key consists of" in result.err


def test_weights_that_are_no_numbers(lm, token_data, tmp_path):
    save_run(tmp_path / "run", token_data)
    checkpoint = torch.load(tmp_path / "run" / BEST, weights_only=True)
    checkpoint["state_dict"]["model.layers.0.ffn.w1.weight"][3, 5] = math.nan
    save_checkpoint(checkpoint, tmp_path / "run" / BEST)
    result = lm("serve", tmp_path / "run")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "best.ckpt: is from a run that has diverged" in result.err
    assert "layers.0.ffn.w1.weight is not finite" in result.err


def test_the_command_serves_until_it_is_told_to_end(saved_run):
    """Beyond this machine, and says so where everybody could write."""
    command = [sys.executable, "-m", "lm", "serve", str(saved_run), "--port=0", "--host=0.0.0.0"]
    environment = {name: value for name, value in os.environ.items() if name != "LM_API_KEY"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        line = process.stderr.readline()
        port = re.search(r"served at http://0\.0\.0\.0:(\d+);", line)[1]
        warning = process.stderr.readline()
        assert warning.startswith(f"[everyone who reaches http://0.0.0.0:{port} can use the model; LM_API_KEY")
        with closing(http.client.HTTPConnection(f"127.0.0.1:{port}", timeout=20)) as connection:
            connection.request("GET", "/health")
            assert json.loads(connection.getresponse().read())["model"] == "run"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


class Page(HTMLParser):
    """The elements of the page, each with its attributes and those that it stands within."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict, list[str]]] = []
        self.script = ""

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), list(self.open)))
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.script += data if self.open and self.open[-1] == "script" else ""


def test_the_page_is_one_safe_file():
    """What the script asks for is there, what a model writes never becomes HTML, and every control has a name."""
    page = Page()
    page.feed(PAGE.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("(\w+)"\)', page.script)) <= set(ids)
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert way not in page.script
    fields = [
        attributes["name"] for _, attributes, within in page.elements if "details" in within and "name" in attributes
    ]
    assert {"max_tokens", "seed", *inspect.signature(Sampling).parameters} == set(fields)
    for tag, attributes, within in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        if tag in ("input", "textarea"):
            assert "label" in within, attributes
        if attributes.get("type") == "number":  # a browser sends no form with a value between two steps
            whole = attributes["name"] in ("top_k", "max_tokens", "seed")
            assert attributes["step"] == ("1" if whole else "any"), attributes
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}, ["html"]) in page.elements


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
