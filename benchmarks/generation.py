"""Writes texts with the handout's base model (22.7M parameters): this package against Hugging Face's generate and
against llama.cpp on the same weights, all in one run.

  python benchmarks/generation.py --json generation.json --markdown docs/generation.md
                                            the tables of docs/generation.md, some eight quiet minutes on two cores
  python benchmarks/generation.py --small --rounds 1          the script itself tried out, in seconds
  python benchmarks/generation.py --llama-cpp FOLDER          where `pip install --target FOLDER` has put llama_cpp

Each contestant has a process of its own for each precision and number of threads, which stays and waits; in each round
all measure every case in turn, because a machine is not equally fast all the time. What counts is the median, of the
better number of threads for each. Within a round a case is repeated, and the fastest time counts. In float32, the
ids that Hugging Face finds likeliest must be ours, or nothing is reported.

  drawn          tokens are drawn at temperature 0.8 with top-p 0.95, as by `lm generate`; otherwise the likeliest win
  long prompt    one token is written: how fast a prompt is read
  memory         a token at batch 1 needs every weight but the embeddings once. How fast memory is read, as the sum of a
                 large tensor, is measured in each round, too: that limits the speed
  loss           of a trained run in each precision, by `lm test --precision`
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PRECISIONS = ("fp32", "bf16", "int8")
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from generation_stages.contestants import HUGGING_FACE, LLAMA_CPP, MEMORY, OURS, work  # noqa: E402
from generation_stages.tables import tables  # noqa: E402
from marks import into_document  # noqa: E402

from lm.machine.contention import load_of_others  # noqa: E402
from lm.machine.identity import code_in_words, machine_in_words  # noqa: E402


class Worker(NamedTuple):
    """A process that measures one contestant."""

    who: str
    precision: str
    threads: int
    process: subprocess.Popen[str]

    def ask(self, case: list[float]) -> dict[str, Any]:
        """Returns what it answers to a case, or what it says of itself to an empty one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if case:
            self.process.stdin.write(json.dumps(case) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):  # not what a library prints
                answer: dict[str, Any] = json.loads(line)
                return answer
        sys.exit(f"{self.who}, {self.precision}, {self.threads} threads: ended with {self.process.wait()}")


def main() -> None:
    args = make_parser().parse_args()
    if args.work:
        who, precision = json.loads(args.work)
        work(who, precision, args.small)
        return
    if args.llama_cpp:
        sys.path.insert(0, str(args.llama_cpp.resolve()))
    results: dict[str, Any] = {"when": time.strftime("%Y-%m-%d %H:%M"), "code": code_in_words(), "rows": []}
    with ExitStack() as stack, load_of_others() as load:
        workers = start_workers(args, stack)
        results["versions"] = sorted({about for worker in workers if (about := worker.ask([])["about"])})
        measure(workers, args, results["rows"])
    results |= {"other_programs": load.cores, "weights": weights(args.small), "small": args.small}
    results |= {"machine": machine(), "losses": losses(args), "cases": cases(args)}
    check_agreement(results["rows"])
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    made = tables(results)
    if args.markdown:
        document = args.markdown.read_text(encoding="utf-8") if args.markdown.exists() else ""
        args.markdown.write_text(into_document(made, document, "generation.py"), encoding="utf-8")
    print(made)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of all measurements in turn (default: 3)")
    parser.add_argument("--times", type=int, default=1, help="each case in a round; the fastest counts (default: 1)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="the better counts (default: 1 2)")
    parser.add_argument("--llama-cpp", type=Path, help="a folder with the package llama_cpp, if it is not installed")
    parser.add_argument("--run", type=Path, default=ROOT / "checkpoints/demo", help="of the losses (default: the demo)")
    parser.add_argument("--text", type=Path, default=ROOT / "data/demo/valid.bin", help="(default: the demo's)")
    parser.add_argument("--json", type=Path, help="a file for all that was measured")
    parser.add_argument("--markdown", type=Path, help="a document whose tables are replaced")
    parser.add_argument("--small", action="store_true", help="a tiny model and short texts")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # [who, precision]: what a worker measures
    return parser


def cases(args: argparse.Namespace) -> list[list[float]]:
    """Returns [texts at once, tokens of each prompt, new tokens, temperature].

    The smallest comes first, so that peaks of memory count.
    """
    if args.small:
        return [[1, 8, 10, 0], [1, 8, 10, 0.8], [2, 8, 10, 0], [1, 40, 1, 0]]
    return [[1, 32, 200, 0], [1, 32, 200, 0.8], [8, 32, 200, 0], [32, 32, 100, 0], [1, 2000, 1, 0]]


def start_workers(args: argparse.Namespace, stack: ExitStack) -> list[Worker]:
    """Starts a process for each contestant that is installed, precision and number of threads."""
    found = [(MEMORY, "")]
    for who, module in ((OURS, "lm"), (HUGGING_FACE, "transformers"), (LLAMA_CPP, "llama_cpp")):
        if importlib.util.find_spec(module):
            found += [(who, precision) for precision in PRECISIONS if (who, precision) != (HUGGING_FACE, "int8")]
        else:
            print(f"{who}: is not installed, and so is not measured", file=sys.stderr)
    workers = []
    for who, precision in found:
        for threads in args.threads:
            command = [sys.executable, __file__, f"--work={json.dumps([who, precision])}", *["--small"] * args.small]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"}
            environment["PYTHONPATH"] = os.pathsep.join(map(str, sys.path))
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            workers.append(Worker(who, precision, threads, process))
    return workers


def measure(workers: list[Worker], args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Adds a row for each worker, case and round."""
    for number in range(args.rounds):
        for case in cases(args):
            for worker in workers:
                if worker.who == LLAMA_CPP and case[0] > 1:
                    continue  # its binding would have to schedule texts itself
                print(f"\r\033[Kround {number + 1} of {args.rounds}: {worker.who}, {worker.precision}, {case}", end="",
                      file=sys.stderr, flush=True)  # fmt: skip
                answer = worker.ask([*case, args.times])
                about = {"who": worker.who, "precision": worker.precision, "threads": worker.threads}
                rows.append(about | {"case": case, "round": number} | answer)
    print("\r\033[K", end="", file=sys.stderr)


def check_agreement(rows: list[dict[str, Any]]) -> None:
    """Ends the program unless all find the same tokens likeliest in float32; in bfloat16, each rounds in its own way.

    llama.cpp keeps keys and values in float16, so its rows only get the share of the tokens that are ours.
    """
    expected = {str(row["case"]): row["texts"] for row in rows if (row["who"], row["precision"]) == (OURS, "fp32")}
    for row in rows:
        texts = row.pop("texts", None)
        if texts is None or row["precision"] != "fp32" or row["case"][3]:  # drawn
            continue
        both = zip(texts, expected[str(row["case"])], strict=True)
        row["same"] = statistics.mean(a == b for pair in both for a, b in zip(*pair, strict=True))
        if row["same"] < 1 and row["who"] != LLAMA_CPP:
            sys.exit(f"{row['who']}, {row['case']}: writes other texts than {OURS}; nothing is reported")


def weights(small: bool) -> int:
    """Returns how many weights a token needs: all but the embeddings, of which it needs one row."""
    from generation_stages.contestants import BASE, SMALL, make_model

    model = make_model(SMALL if small else BASE, 256)
    return model.num_parameters() - model.token_embeddings.weight.numel()


def machine() -> str:
    import torch

    return f"{machine_in_words(torch.device('cpu'))}, torch {torch.__version__}"


def losses(args: argparse.Namespace) -> dict[str, float]:
    """Returns a trained run's loss in each precision, in nats a token; nothing where there is no such run."""
    if args.small or not (args.run.exists() and args.text.exists()):
        return {}
    found = {}
    run, text = args.run.resolve(), args.text.resolve()
    for precision in PRECISIONS:
        command = [sys.executable, "-m", "lm", "test", run, text, f"--precision={precision}", "--json"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True)
        found[precision] = json.loads(done.stdout.splitlines()[-1])["loss"]
    return found


if __name__ == "__main__":
    main()
