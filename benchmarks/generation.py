"""Writes texts with the handout's base model (22.7M parameters, context 256): this package against Hugging Face's
generate on the same weights, and against itself without a cache, all in one run.

  python benchmarks/generation.py                 the table of docs/generation.md

Each measurement is a process of its own, so that its peak memory is its own, and all take turns, several times, because
a machine is not equally fast all the time; what counts is the median. A process writes a few tokens to warm up, then
the texts three times (without a cache, once), of which the fastest counts: from the call to the last token, so with
reading the prompts and, for ours, laying out the weights. Tokens are always the likeliest. In float32 the ids must be
everybody's before any number is printed.

Everybody is measured with one thread and with two, and the better number counts. A long prompt, of which one token is
written, measures how fast prompts are read. A token at batch 1 needs every weight but the embeddings once, so memory
sets a limit: its speed is measured in the same run, as the sum of a large tensor.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lm.generation.sampling import Sampling
from lm.generation.writer import PRECISIONS, generate_batch
from lm.model.transformer import TransformerLM

VOCAB_SIZE, CONTEXT, D_MODEL, LAYERS, HEADS, D_FF = 10_000, 256, 512, 4, 16, 1344
OURS, WITHOUT_CACHE, HUGGING_FACE, MEMORY = "ours", "ours, no cache", "hugging face", "memory"


class Case(NamedTuple):
    """What is measured: batch prompts are read, and so many tokens written for each."""

    who: str
    precision: str = "fp32"
    batch: int = 1
    prompt_tokens: int = 0
    new_tokens: int = 0


Results = dict[Case, dict[int, list[dict]]]  # by case and number of threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, default=32, help="(default: 32)")
    parser.add_argument("--new-tokens", type=int, default=200, help="for each prompt (default: 200)")
    parser.add_argument("--long-prompt", type=int, default=2000, help="tokens of a prompt only read (default: 2000)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="prompts at once (default: 1 8 32)")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="(default: all)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="the best counts (default: 1 2)")
    parser.add_argument("--rounds", type=int, default=3, help="of all measurements in turn (default: 3)")
    parser.add_argument("--repeat", type=int, default=3, help="times in a process; the fastest counts (default: 3)")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a case and its threads, as JSON: what a process measures
    args = parser.parse_args()
    if args.one:
        *case, threads = json.loads(args.one)
        torch.set_num_threads(threads)
        measure(Case(*case), args.repeat)
        return
    runs: Results = {case: {threads: [] for threads in args.threads} for case in make_cases(args)}
    for _ in range(args.rounds):
        for case, by_threads in runs.items():
            for threads, results in by_threads.items():
                results.append(run_process(case, threads))
    check_agreement(runs)
    report(runs, args)


def make_cases(args: argparse.Namespace) -> list[Case]:
    """Hugging Face has no weights in 8 bits of this kind; without a cache, more than one text takes minutes."""
    cases = [Case(MEMORY)]
    for precision in args.precisions:
        lengths = [(batch, args.prompt_tokens, args.new_tokens) for batch in args.batches]
        for length in [*lengths, (1, args.long_prompt, 1)]:
            whos = (OURS, HUGGING_FACE) if precision != "int8" else (OURS,)
            cases += [Case(who, precision, *length) for who in whos]
    if 1 in args.batches:
        cases += [
            Case(WITHOUT_CACHE, precision, 1, args.prompt_tokens, args.new_tokens)
            for precision in args.precisions
            if precision != "int8"
        ]
    return cases


def run_process(case: Case, threads: int) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], "--one", json.dumps([*case, threads])]
    environment = os.environ | {"TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def check_agreement(runs: Results) -> None:
    """In bfloat16 each rounds in its own way, so the likeliest token may be another."""
    for case, by_threads in runs.items():
        if case.who == MEMORY or case.precision != "fp32":
            continue
        expected = next(iter(runs[case._replace(who=OURS)].values()))[0]["texts"]
        if any(result["texts"] != expected for results in by_threads.values() for result in results):
            sys.exit(f"{case}: writes other texts than {OURS}; nothing is reported")


def report(runs: Results, args: argparse.Namespace) -> None:
    """Prints for each case the number of threads with the highest median, and the limits that the memory sets."""

    def best(case: Case) -> tuple[float, int]:
        medians = {threads: statistics.median(each["speed"] for each in of) for threads, of in runs[case].items()}
        return max((median, threads) for threads, median in medians.items())

    bandwidth, most = best(Case(MEMORY))
    print("prompts x tokens read + written; the better number of threads for each, medians")
    print(f"\n{'':14} precision  {'texts':>14}  threads  tokens/s  (lowest to highest)  ours / it  peak MB")
    for case, by_threads in runs.items():
        if case.who == MEMORY:
            continue
        speed, threads = best(case)
        speeds = [result["speed"] for result in by_threads[threads]]
        ratio = best(case._replace(who=OURS))[0] / speed
        spread = f"{min(speeds):.0f} to {max(speeds):.0f}"
        peak = max(result["peak"] for result in by_threads[threads])
        texts = f"{case.batch} x {case.prompt_tokens} + {case.new_tokens}"
        start = f"{case.who:14} {case.precision:9} {texts:>15} {threads:8}"
        print(f"{start} {speed:9.0f}  {spread:>19} {ratio:10.2f} {peak:8.0f}")
    print(f"\nmemory: {bandwidth / 1e9:.1f} GB/s read by {most} threads")
    weights = make_model(CONTEXT).num_parameters() - VOCAB_SIZE * D_MODEL  # of the embeddings, a token needs one row
    for precision in args.precisions:
        size = weights * PRECISIONS[precision].itemsize
        limit = (
            f"{precision}: {size / 1e6:.1f} MB of weights a token, at most {bandwidth / size:.0f} tokens/s at batch 1"
        )
        ours = Case(OURS, precision, 1, args.prompt_tokens, args.new_tokens)
        print(limit + (f"; reached {best(ours)[0] * size / bandwidth:.0%}" if ours in runs else ""))


# --- what a process measures -----------------------------------------------------------------------------------------


def measure(case: Case, repeat: int) -> None:
    """Prints {speed, peak, texts} as JSON: tokens (or bytes) a second, MB, ids.

    Tokens are those written; where only one is, those read.
    """
    if case.who == MEMORY:
        print(json.dumps({"speed": memory_speed()}))
        return
    context = max(CONTEXT, case.prompt_tokens + case.new_tokens)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(VOCAB_SIZE, (case.batch, case.prompt_tokens), generator=generator)
    write = WRITERS[case.who](make_model(context), PRECISIONS[case.precision])
    write(prompts, min(3, case.new_tokens))
    seconds = []
    for _ in range(1 if case.who == WITHOUT_CACHE else repeat):
        start = time.perf_counter()
        texts = write(prompts, case.new_tokens)
        seconds.append(time.perf_counter() - start)
    if any(len(text) != case.new_tokens for text in texts):
        sys.exit(f"{case.who}: has not written {case.new_tokens} tokens for each prompt")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    tokens = case.batch * (case.new_tokens if case.new_tokens > 1 else case.prompt_tokens)
    print(json.dumps({"speed": tokens / min(seconds), "peak": peak, "texts": texts}))


def make_model(context: int = CONTEXT) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(VOCAB_SIZE, context, D_MODEL, LAYERS, num_heads=HEADS, d_ff=D_FF)


def memory_speed() -> float:
    """Bytes a second, the best of ten sums over a tensor that no cache holds."""
    numbers, seconds = torch.ones(64_000_000), []
    for _ in range(10):
        start = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - start)
    return numbers.nbytes / min(seconds)


Writer = Callable[[Tensor, int], list[list[int]]]  # (prompts (batch, tokens), new tokens) -> the new ids of each


def write_ours(model: TransformerLM, dtype: torch.dtype, use_cache: bool = True) -> Writer:
    def write(prompts: Tensor, new_tokens: int) -> list[list[int]]:
        texts: list[list[int]] = [[] for _ in prompts]
        settings = {"dtype": dtype} if use_cache else {"use_cache": False}
        for number, token_id in generate_batch(model, prompts.tolist(), new_tokens, Sampling(0), **settings):
            texts[number].append(token_id)
        return texts

    return write


def write_without_cache(model: TransformerLM, dtype: torch.dtype) -> Writer:
    return write_ours(model.to(dtype), dtype, use_cache=False)


def write_hugging_face(model: TransformerLM, dtype: torch.dtype) -> Writer:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=D_MODEL,
        intermediate_size=D_FF,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=model.context_length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    theirs = LlamaForCausalLM(config).eval()
    theirs.load_state_dict(dict(llama_weights(model)))
    theirs.to(dtype)
    del model

    def write(prompts: Tensor, new_tokens: int) -> list[list[int]]:
        everything = torch.ones_like(prompts)
        written = theirs.generate(prompts, attention_mask=everything, max_new_tokens=new_tokens, do_sample=False)
        return written[:, prompts.shape[1] :].tolist()

    return write


def llama_weights(model: TransformerLM):
    """Yields (Hugging Face's name, weight); theirs pair feature i of a head with i + d_k / 2, ours 2i with 2i + 1."""
    names = {"token_embeddings": "model.embed_tokens", "layers": "model.layers", "ln_final": "model.norm"}
    names |= {"ln1": "input_layernorm", "ln2": "post_attention_layernorm", "attn": "self_attn", "output_proj": "o_proj"}
    names |= {"ffn": "mlp", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    for name, weight in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            weight = weight.unflatten(0, (HEADS, -1, 2)).transpose(1, 2).flatten(0, 2)
        yield ".".join(names.get(part, part) for part in name.split(".")), weight


WRITERS: dict[str, Callable[[TransformerLM, torch.dtype], Writer]] = {
    OURS: write_ours,
    WITHOUT_CACHE: write_without_cache,
    HUGGING_FACE: write_hugging_face,
}

if __name__ == "__main__":
    main()
