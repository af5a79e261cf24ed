"""Takes screenshots of what a browser shows of a run, on a desktop and on a phone: the page of `lm serve`, a report,
TensorBoard, and the pages of the site.

  make docs
  python docs/images/screens.py checkpoints/demo --output screens             everything, each page by its name
  python docs/images/screens.py checkpoints/demo --output screens --only serve report site/start

Chromium must be installed; it is driven by its DevTools protocol, without a network. A page that asks for anything from
elsewhere ends the script, and so does an error in a page's own scripts. docs/images/serve.png is serve-desktop.png.
"""

import argparse
import asyncio
import base64
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

ROOT = Path(__file__).parents[2]
SCREENS = {"desktop": (1280, 800, 1), "phone": (390, 844, 2)}  # width and height in CSS pixels, pixels for each
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
STORY = """document.querySelector('[name=seed]').value = 1; document.querySelector('[name=max_tokens]').value = 120;
write().then(() => {
  document.querySelector('#story').focus();
  const right = () => new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true});
  for (let step = 0; step < 37; step++) document.querySelector('#story').dispatchEvent(right());
})"""


class Browser:
    """Chromium's page, by its DevTools protocol; elsewhere: addresses that pages asked for and must not need."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse):
        self.connection, self.number = connection, 0
        self.elsewhere: list[str] = []
        self.errors: list[str] = []

    async def call(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        await self.connection.send_json({"id": self.number, "method": method, "params": parameters})
        while (message := await self.connection.receive_json(timeout=120)).get("id") != self.number:
            self.note(message)
        if "error" in message:
            raise SystemExit(f"{method}: {message['error']['message']}")
        return message["result"]

    def note(self, message: dict[str, Any]) -> None:
        """Notes requests beyond this machine, and errors of scripts."""
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:")):
                self.elsewhere.append(url)
        elif message["method"] == "Runtime.exceptionThrown":
            self.errors.append(message["params"]["exceptionDetails"]["text"])

    async def value(self, expression: str) -> Any:
        """Returns the value of an expression in the page; None while the page changes."""
        return (await self.call("Runtime.evaluate", expression=expression))["result"].get("value")

    async def look(self, url: str, screen: str, path: Path, script: str = "", seconds: float = 1.0) -> None:
        """Opens a page on a screen, runs a script in it, waits, and writes a picture."""
        width, height, scale = SCREENS[screen]
        phone = screen == "phone"
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        await self.call("Page.navigate", url=url)
        while await self.value("document.readyState + location.href.slice(0, 5)") != f"complete{url[:5]}":
            await asyncio.sleep(0.1)
        await asyncio.sleep(seconds)
        if script:
            done = await self.call("Runtime.evaluate", expression=script, awaitPromise=True)
            if "exceptionDetails" in done:
                raise SystemExit(f"{url}: {done['exceptionDetails']}")
            await asyncio.sleep(0.5)
        wide = await self.value("document.documentElement.scrollWidth")
        picture = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))
        overflow = "" if wide <= width else f", {wide} pixels wide"
        print(f"{path}{overflow}", flush=True)


@contextlib.contextmanager
def program(*command: object, address: str | None = None) -> Iterator[None]:
    """Runs a program meanwhile, and waits until its address answers."""
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while address and process.poll() is None:
                with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
                    break
            yield
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def site_pages() -> list[str]:
    """Returns the pages of the site, without those of code but one of each kind."""
    pages = sorted(path.relative_to(ROOT / "site").as_posix() for path in (ROOT / "site").rglob("*.html"))
    shown = {"code/lm.html", "code/lm/model/attention.html"}
    return [page for page in pages if page in shown or not page.startswith(("code/", "404"))]


async def take(run: Path, output: Path, only: list[str]) -> None:
    """Takes all screenshots, or those whose name begins with one of `only`."""
    browser_program = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_program is None:
        raise SystemExit("chromium is not installed; it takes the screenshots")
    serve, board = free_port(), free_port()
    report = output / "report.html"
    subprocess.run([sys.executable, "-m", "lm", "report", run, "--output", report], check=True)
    pages = {"serve": (f"http://127.0.0.1:{serve}/", STORY, 1.0), "report": (report.resolve().as_uri(), "", 1.0)}
    pages["tensorboard"] = (f"http://127.0.0.1:{board}/#custom_scalars", "", 12.0)
    pages |= {f"site/{page.removesuffix('.html')}": ((ROOT / "site" / page).as_uri(), "", 1.0) for page in site_pages()}
    for name, page, query in (("search", "index", "attention"), ("zh/search", "zh/index", "损失")):
        pages[f"site/{name}"] = (f"{(ROOT / 'site' / page).as_uri()}.html?q={quote(query)}", "", 5.0)
    chosen = {name: page for name, page in pages.items() if not only or name.startswith(tuple(only))}
    with contextlib.ExitStack() as running:
        if "serve" in chosen:
            command: tuple[object, ...] = ("lm", "serve", run, "--port", serve, "--device", "cpu")
            running.enter_context(program(sys.executable, "-m", *command, address=f"http://127.0.0.1:{serve}/health"))
        if "tensorboard" in chosen:
            command = ("tensorboard.main", "--logdir", run, "--port", board)
            running.enter_context(program(sys.executable, "-m", *command, address=f"http://127.0.0.1:{board}/"))
        profile = Path(running.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        running.enter_context(program(browser_program, *FLAGS, f"--user-data-dir={profile}", "about:blank"))
        while not (profile / "DevToolsActivePort").exists() or not (profile / "DevToolsActivePort").read_text():
            await asyncio.sleep(0.1)
        port = (profile / "DevToolsActivePort").read_text().split("\n")[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                target = next(page for page in await answer.json() if page["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as connection:
                browser = Browser(connection)
                for domain in ("Network", "Page", "Runtime"):
                    await browser.call(f"{domain}.enable")
                for name, (url, script, seconds) in chosen.items():
                    for screen in SCREENS:
                        path = output / f"{name.replace('/', '-')}-{screen}.png"
                        await browser.look(url, screen, path, script, seconds)
    if browser.elsewhere or browser.errors:
        raise SystemExit(f"asked for: {sorted(set(browser.elsewhere))}; errors: {browser.errors}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--output", type=Path, required=True, help="the folder of the pictures")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="pages whose name begins so")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    asyncio.run(take(args.run, args.output, args.only))


if __name__ == "__main__":
    main()
