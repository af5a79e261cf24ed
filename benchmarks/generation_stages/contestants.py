"""What a worker of benchmarks/generation.py measures: one contestant, in one precision, with one number of threads.

A contestant makes a function of prompts (batch, tokens), a number of new tokens and a temperature, which returns the
new ids of each prompt: the likeliest ones at temperature 0, and otherwise drawn with top-p TOP_P. All write from the
same model, whose weights are random.
"""

import json
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm.generation.sampling import Sampling
from lm.generation.writer import PRECISIONS, generate_batch
from lm.model.transformer import TransformerLM

BASE = {"vocab_size": 10_000, "d_model": 512, "num_layers": 4, "num_heads": 16, "d_ff": 1344}
SMALL = {"vocab_size": 1000, "d_model": 64, "num_layers": 2, "num_heads": 2, "d_ff": 128}
OURS, HUGGING_FACE, LLAMA_CPP, MEMORY = "ours", "Hugging Face", "llama.cpp", "memory"
OF_LLAMA_CPP = {"fp32": "fp32", "bf16": "fp16", "int8": "q8_0"}  # our GGUF files with as many bits a weight
TOP_P = 0.95
READ_BYTES = 256_000_000  # of which memory is measured; no cache holds them

Writer = Callable[[Tensor, int, float], list[list[int]]]


def work(who: str, precision: str, small: bool) -> None:
    """Answers each case on the standard input by a line of JSON.

    A case is [texts at once, tokens of each prompt, new tokens, temperature, times]; the fastest time counts.
    """
    shape, writers, warm = SMALL if small else BASE, {}, set()
    print(json.dumps({"about": ABOUT[who]() if who in ABOUT else ""}), flush=True)
    for line in sys.stdin:
        batch, prompt_tokens, new_tokens, temperature, times = json.loads(line)
        if who == MEMORY:
            print(json.dumps({"speed": memory_speed(times)}), flush=True)
            continue
        context = max(256, prompt_tokens + new_tokens)
        if context not in writers:
            writers[context] = WRITERS[who](make_model(shape, context), precision)
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randint(shape["vocab_size"], (batch, prompt_tokens), generator=generator)
        if line not in warm:
            writers[context](prompts, min(3, new_tokens), temperature)
            warm.add(line)
        print(json.dumps(measure(writers[context], prompts, new_tokens, temperature, times)), flush=True)


def measure(write: Writer, prompts: Tensor, new_tokens: int, temperature: float, times: int) -> dict[str, Any]:
    """Returns {speed, peak, texts}: tokens a second, MB, ids. Tokens are those written; where only one is, those read.

    The time is from the call to the last token: with reading the prompts and, for ours, laying out the weights.
    """
    seconds, texts = [], []
    for _ in range(times):
        start = time.perf_counter()
        texts = write(prompts, new_tokens, temperature)
        seconds.append(time.perf_counter() - start)
    if any(len(text) != new_tokens for text in texts):
        sys.exit(f"has not written {new_tokens} tokens for each prompt")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    tokens = len(prompts) * new_tokens if new_tokens > 1 else prompts.numel()
    return {"speed": tokens / min(seconds), "peak": peak, "texts": texts}


def make_model(shape: dict[str, Any], context: int) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(context_length=context, **shape)


def memory_speed(times: int) -> float:
    """Returns the bytes a second, the best of so many sums over a large tensor."""
    numbers, seconds = torch.ones(READ_BYTES // 4), []
    for _ in range(times):
        start = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - start)
    return numbers.nbytes / min(seconds)


# --- the contestants -------------------------------------------------------------------------------------------------


def ours(model: TransformerLM, precision: str) -> Writer:
    def write(prompts: Tensor, new_tokens: int, temperature: float) -> list[list[int]]:
        texts: list[list[int]] = [[] for _ in prompts]
        sampling, dtype = Sampling(temperature, top_p=TOP_P), PRECISIONS[precision]
        for number, token_id in generate_batch(model, prompts.tolist(), new_tokens, sampling, dtype=dtype):
            texts[number].append(token_id)
        return texts

    return write


def hugging_face(model: TransformerLM, precision: str) -> Writer:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = model.settings
    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=settings["d_model"],
        intermediate_size=settings["d_ff"],
        num_hidden_layers=settings["num_layers"],
        num_attention_heads=settings["num_heads"],
        max_position_embeddings=model.context_length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    theirs = LlamaForCausalLM(config).eval()
    theirs.load_state_dict(dict(llama_weights(model)))
    theirs.to(PRECISIONS[precision])

    def write(prompts: Tensor, new_tokens: int, temperature: float) -> list[list[int]]:
        settings: dict[str, Any] = {
            "attention_mask": torch.ones_like(prompts),
            "max_new_tokens": new_tokens,
            "do_sample": False,
        }
        if temperature:
            settings |= {"do_sample": True, "temperature": temperature, "top_p": TOP_P, "top_k": 0}
        written = theirs.generate(prompts, **settings)
        texts: list[list[int]] = written[:, prompts.shape[1] :].tolist()
        return texts

    return write


def llama_weights(model: TransformerLM) -> Iterator[tuple[str, Tensor]]:
    """Yields (Hugging Face's name, weight); theirs pair feature i of a head with i + d_k / 2, ours 2i with 2i + 1."""
    names = {"token_embeddings": "model.embed_tokens", "layers": "model.layers", "ln_final": "model.norm"}
    names |= {"ln1": "input_layernorm", "ln2": "post_attention_layernorm", "attn": "self_attn", "output_proj": "o_proj"}
    names |= {"ffn": "mlp", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    for name, weight in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            weight = weight.unflatten(0, (model.num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        yield ".".join(names.get(part, part) for part in name.split(".")), weight


def llama_cpp(model: TransformerLM, precision: str) -> Writer:
    """Reads our GGUF file with as many bits a weight; one text at a time, its cache in float16."""
    import llama_cpp.llama_cpp as c

    from lm.interchange.gguf import export_gguf
    from tokenization import END_OF_TEXT, Tokenizer
    from tokenization.bpe import learn_merges
    from tokenization.pretokenization import count_pretokens

    tokenizer = Tokenizer(*learn_merges(count_pretokens("one and two and one"), 260, [END_OF_TEXT]), [END_OF_TEXT])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.gguf")
        export_gguf(model, tokenizer, path, OF_LLAMA_CPP[precision])
        settings = c.llama_model_default_params()
        settings.use_mmap = False
        theirs = c.llama_model_load_from_file(str(path).encode(), settings)
    context = c.llama_context_default_params()
    context.n_ctx = context.n_batch = model.context_length
    context.n_threads = context.n_threads_batch = torch.get_num_threads()
    reader = c.llama_init_from_model(theirs, context)

    def read(ids: list[int], sampler: Any) -> int:
        tokens = (c.llama_token * len(ids))(*ids)  # which must live as long as the batch
        if c.llama_decode(reader, c.llama_batch_get_one(tokens, len(ids))):
            sys.exit("llama.cpp could not decode")
        return int(c.llama_sampler_sample(sampler, reader, -1))

    def write(prompts: Tensor, new_tokens: int, temperature: float) -> list[list[int]]:
        (prompt,) = prompts.tolist()
        c.llama_memory_clear(c.llama_get_memory(reader), False)
        sampler = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
        parts = [c.llama_sampler_init_greedy()]
        if temperature:
            parts = [c.llama_sampler_init_temp(temperature), c.llama_sampler_init_top_p(TOP_P, 1)]
            parts.append(c.llama_sampler_init_dist(1))
        for part in parts:
            c.llama_sampler_chain_add(sampler, part)
        text = [read(prompt, sampler)]
        while len(text) < new_tokens:
            text.append(read(text[-1:], sampler))
        c.llama_sampler_free(sampler)
        return [text]

    return write


def about_hugging_face() -> str:
    import transformers

    return f"transformers {transformers.__version__}"


def about_llama_cpp() -> str:
    """Returns its version, and the processor's instructions that it was built for."""
    import llama_cpp
    import llama_cpp.llama_cpp as c

    silent = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(silent, None)
    about_llama_cpp.silent = silent  # type: ignore[attr-defined]  # which must live on
    c.llama_backend_init()
    features = re.findall(r"(\w+) = 1", c.llama_print_system_info().decode())
    return f"llama.cpp of llama-cpp-python {llama_cpp.__version__}, built with {', '.join(features)}"


ABOUT = {HUGGING_FACE: about_hugging_face, LLAMA_CPP: about_llama_cpp}
WRITERS: dict[str, Callable[[TransformerLM, str], Writer]] = {
    OURS: ours,
    HUGGING_FACE: hugging_face,
    LLAMA_CPP: llama_cpp,
}
