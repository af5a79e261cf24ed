"""`lm serve` with one client and with many at once: tokens a second, over HTTP, streams.

  python benchmarks/serving.py checkpoints/demo      the table of docs/serving.md

The server is a process as a user would start it; a client asks for one text after another, 100 tokens each from the
same few beginnings, until all have had as many. Every answer is counted: a text that is lost or short ends it.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

TOKENS, TEXTS = 100, 4  # of a text; texts of a client
BEGINNINGS = ("Once upon a time", "The little dog", "Tom and Lily", "One day")


def ask(host: str, seed: int) -> int:
    """The tokens of one text as they stream in, counted by the server's own usage."""
    connection = HTTPConnection(host, timeout=600)
    body = {"prompt": BEGINNINGS[seed % len(BEGINNINGS)], "max_tokens": TOKENS, "seed": seed, "stream": True}
    body["stream_options"] = {"include_usage": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    lines = connection.getresponse().read().decode().split("\n\n")
    if lines[-2] != "data: [DONE]":
        sys.exit(f"a text was lost: {lines[-3:]}")
    return int(json.loads(lines[-3].removeprefix("data: "))["usage"]["completion_tokens"])


def measure(host: str, clients: int) -> tuple[float, float]:
    """Tokens a second of all clients together; seconds of the slowest text."""

    def be_a_client(number: int) -> list[tuple[int, float]]:
        found = []
        for text in range(TEXTS):
            start = time.time()
            found.append((ask(host, 1000 * number + text), time.time() - start))
        return found

    start = time.time()
    with ThreadPoolExecutor(clients) as pool:
        texts = [text for found in pool.map(be_a_client, range(clients)) for text in found]
    assert len(texts) == clients * TEXTS
    return sum(tokens for tokens, _ in texts) / (time.time() - start), max(seconds for _, seconds in texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--slots", type=int, default=8)
    args = parser.parse_args()
    command = [sys.executable, "-m", "lm", "serve", args.run, "--port=0", f"--slots={args.slots}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            host = server.stderr.readline().split("http://")[1].split(";")[0]
            ask(host, 0)
            print("| clients at once | tokens/s, together | times one client | slowest text, s |\n|---|---|---|---|")
            single = 0.0
            for clients in (1, 2, 4, 8, 16, 32):
                rate, slowest = measure(host, clients)
                single = single or rate
                print(f"| {clients} | {rate:,.0f} | {rate / single:.2f} | {slowest:.1f} |", flush=True)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
