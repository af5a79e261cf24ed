"""Proves the course's functions against torch's own and against the handout's examples, with weights handed in as the
course's tests do it."""

import inspect
import io
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm import course
from tokenization import InputError

BATCH, SEQ, D, HEADS, D_FF, VOCAB, THETA = 3, 5, 8, 2, 12, 11, 100.0
STORY = "low low low low low lower lower widest widest widest newest newest newest newest newest newest"  # handout, 2


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def block_weights() -> dict[str, Tensor]:
    """Random weights of a block, under the course's names."""
    shapes: dict[str, tuple[int, ...]] = {f"attn.{name}_proj": (D, D) for name in ("q", "k", "v", "output")}
    shapes |= {"ffn.w1": (D_FF, D), "ffn.w2": (D, D_FF), "ffn.w3": (D_FF, D), "ln1": (D,), "ln2": (D,)}
    return {f"{name}.weight": torch.randn(shape) / 2 for name, shape in shapes.items()}


# --- oracles ---------------------------------------------------------------------------------------------------------


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """RoPE by complex numbers: x (..., seq, d_k), positions (seq,)."""
    angles = torch.outer(positions.float(), THETA ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1]))
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def attended(weights: dict[str, Tensor], x: Tensor, positions: Tensor | None) -> Tensor:
    """Causal self-attention by torch's own kernel."""
    features = [F.linear(x, weights[f"attn.{name}_proj.weight"]) for name in "qkv"]
    q, k, v = (each.unflatten(-1, (HEADS, -1)).transpose(-3, -2) for each in features)
    if positions is not None:
        q, k = rotated(q, positions), rotated(k, positions)
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.linear(heads.transpose(-3, -2).flatten(-2), weights["attn.output_proj.weight"])


def gated(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    w1, w2, w3 = (weights[f"ffn.w{number}.weight"] for number in (1, 2, 3))
    return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)


def blocked(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    x = x + attended(weights, F.rms_norm(x, (D,), weights["ln1.weight"], 1e-5), torch.arange(x.shape[-2]))
    return x + gated(weights, F.rms_norm(x, (D,), weights["ln2.weight"], 1e-5))


# --- the Transformer -------------------------------------------------------------------------------------------------


def test_layers():
    x, w, gain, ids = torch.randn(BATCH, SEQ, D), torch.randn(D_FF, D), torch.randn(D), torch.randint(D_FF, (2, 3))
    torch.testing.assert_close(course.linear(D, D_FF, w, x), F.linear(x, w))
    torch.testing.assert_close(course.embedding(D_FF, D, w, ids), F.embedding(ids, w))
    torch.testing.assert_close(course.rmsnorm(D, 1e-2, gain, x), F.rms_norm(x, (D,), gain, 1e-2))
    torch.testing.assert_close(course.silu(x), F.silu(x))
    torch.testing.assert_close(course.softmax(100 * x, dim=1), F.softmax(100 * x, dim=1))
    weights = block_weights()
    own = (weights[f"ffn.w{number}.weight"] for number in (1, 2, 3))
    torch.testing.assert_close(course.swiglu(D, D_FF, *own, x), gated(weights, x))


def test_weights_of_another_shape_are_refused():
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        course.linear(D, D_FF, torch.randn(D, D_FF), torch.randn(SEQ, D))


def test_rope():
    x, positions = torch.randn(BATCH, SEQ, D), torch.tensor([4, 0, 7, 7, 2])
    torch.testing.assert_close(course.rope(D, THETA, 8, x, positions), rotated(x, positions))
    torch.testing.assert_close(course.rope(D, THETA, 8, x, positions.expand(BATCH, SEQ)), rotated(x, positions))


@pytest.mark.parametrize("leading", [(BATCH,), (BATCH, HEADS)])
def test_attention(leading):
    q, k, v = (torch.randn(*leading, seq, width) for seq, width in ((SEQ, D), (7, D), (7, 6)))
    mask = torch.rand(*leading, SEQ, 7) < 0.5
    mask[..., 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(course.scaled_dot_product_attention(Q=q, K=k, V=v, mask=mask), expected)
    torch.testing.assert_close(course.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_multihead_attention():
    weights, x = block_weights(), torch.randn(BATCH, SEQ, D)
    own = [weights[f"attn.{name}_proj.weight"] for name in ("q", "k", "v", "output")]
    torch.testing.assert_close(course.multihead_self_attention(D, HEADS, *own, x), attended(weights, x, None))
    with_rope = course.multihead_self_attention_with_rope
    torch.testing.assert_close(with_rope(D, HEADS, 16, THETA, *own, x), attended(weights, x, torch.arange(SEQ)))
    positions = torch.tensor([1, 3, 4, 9, 15])
    expected = attended(weights, x, positions)
    torch.testing.assert_close(with_rope(D, HEADS, 16, THETA, *own, x, positions[None]), expected)


def test_the_transformer():
    block, x = block_weights(), torch.randn(BATCH, SEQ, D)
    torch.testing.assert_close(course.transformer_block(D, HEADS, D_FF, 16, THETA, block, x), blocked(block, x))
    blocks = [block, block_weights()]
    weights = {f"layers.{number}.{name}": value for number, each in enumerate(blocks) for name, value in each.items()}
    names = {"token_embeddings": (VOCAB, D), "ln_final": (D,), "lm_head": (VOCAB, D)}
    weights |= {f"{name}.weight": torch.randn(shape) for name, shape in names.items()}
    ids = torch.randint(VOCAB, (BATCH, SEQ))
    x = F.embedding(ids, weights["token_embeddings.weight"])
    for each in blocks:
        x = blocked(each, x)
    expected = F.linear(F.rms_norm(x, (D,), weights["ln_final.weight"], 1e-5), weights["lm_head.weight"])
    found = course.transformer_lm(VOCAB, 16, D, len(blocks), HEADS, D_FF, THETA, weights, ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 1000])
def test_cross_entropy(scale):
    logits, targets = scale * torch.randn(BATCH, VOCAB), torch.randint(VOCAB, (BATCH,))
    torch.testing.assert_close(course.cross_entropy(logits, targets), F.cross_entropy(logits, targets))


@pytest.mark.parametrize("max_norm", [0.1, 1000.0])
def test_gradient_clipping(max_norm):
    ours, theirs = ([nn.Parameter(torch.zeros(size)) for size in (3, 4, 5)] for _ in range(2))
    for a, b in zip(ours[:2], theirs[:2], strict=True):  # the third has no gradient
        a.grad = torch.randn(a.shape)
        b.grad = a.grad.clone()
    course.gradient_clipping(ours, max_norm)
    nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close([p.grad for p in ours[:2]], [p.grad for p in theirs[:2]])
    assert ours[2].grad is None


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()


def test_adamw():
    settings = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
    weights = []
    for optimizer in (course.get_adamw_cls(), torch.optim.AdamW):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        train(model, optimizer(model.parameters(), **settings), 20)
        weights.append(model.weight)
    torch.testing.assert_close(*weights)


def test_learning_rate_schedule():
    rates = [course.get_lr_cosine_schedule(it, 1.0, 0.2, 4, 10) for it in range(13)]
    cosine = [0.6 + 0.4 * math.cos(math.pi * share / 6) for share in range(7)]
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, *cosine, 0.2, 0.2])


def test_get_batch(tmp_path):
    """From memory and from a memory map; each place that has a window of targets comes up, and no other."""
    np.save(tmp_path / "tokens.npy", np.arange(50, 70, dtype=np.uint16))
    tokens = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    seen: Counter[int] = Counter()
    for dataset in (np.asarray(tokens), tokens):
        inputs, targets = course.get_batch(dataset, batch_size=400, context_length=12, device="cpu")
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(12))
        assert torch.equal(targets, inputs + 1)
        seen.update(inputs[:, 0].tolist())
    assert seen.keys() == set(range(50, 58))
    assert all(abs(count - 100) < 50 for count in seen.values())  # of 800 draws among 8; 5 standard deviations
    assert course.get_batch(tokens[:13], 2, 12, "cpu")[1].tolist() == [list(range(51, 63))] * 2
    with pytest.raises(InputError, match="12 tokens are too few for windows of 12"):
        course.get_batch(tokens[:12], 2, 12, "cpu")
    with pytest.raises((RuntimeError, AssertionError)):
        course.get_batch(tokens, 2, 12, "cuda:99")


@pytest.mark.parametrize("target", [str, lambda path: path, lambda path: io.BytesIO()], ids=["name", "path", "file"])
def test_checkpoints(target, tmp_path):
    """Whoever goes on from one goes on as if nothing had happened."""
    models = [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(2)]
    optimizers = [course.get_adamw_cls()(model.parameters(), lr=1e-2) for model in models]
    train(models[0], optimizers[0], 5)
    out = target(tmp_path / "folder" / "checkpoint.pt")
    course.save_checkpoint(models[0], optimizers[0], 5, out)
    if isinstance(out, io.BytesIO):
        out.seek(0)
    assert course.load_checkpoint(out, models[1], optimizers[1]) == 5
    for model, optimizer in zip(models, optimizers, strict=True):
        torch.manual_seed(1)
        train(model, optimizer, 3)
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def test_the_tokenizer_of_the_handouts_examples(tmp_path):
    (tmp_path / "story.txt").write_text(STORY.replace(" ", "<|x|>"))  # the example's words are cut at spaces
    vocab, merges = course.train_bpe(tmp_path / "story.txt", 257 + 6, ["<|x|>"])
    assert [b" ".join(pair).decode() for pair in merges] == ["s t", "e st", "o w", "l ow", "w est", "n e"]
    assert len(vocab) == 257 + 6
    tokenizer = course.get_tokenizer(vocab, merges, ["<|x|>"])
    assert [vocab[token] for token in tokenizer.encode("newest<|x|>")] == [b"ne", b"west", b"<|x|>"]
    vocab = dict(enumerate([b" ", b"a", b"c", b"e", b"h", b"t", b"th", b" c", b" a", b"the", b" at"]))
    merges = [(b"t", b"h"), (b" ", b"c"), (b" ", b"a"), (b"th", b"e"), (b" a", b"t")]
    tokenizer = course.get_tokenizer(vocab, merges)
    assert tokenizer.encode("the cat ate") == [9, 7, 1, 5, 10, 3]
    assert tokenizer.decode(tokenizer.encode_iterable(iter(["the c", "at ate"]))) == "the cat ate"


ADAPTERS = """
    linear embedding swiglu scaled_dot_product_attention multihead_self_attention multihead_self_attention_with_rope
    rope transformer_block transformer_lm rmsnorm silu get_batch softmax cross_entropy gradient_clipping get_adamw_cls
    get_lr_cosine_schedule save_checkpoint load_checkpoint get_tokenizer train_bpe
"""  # those of tests/adapters.py in stanford-cs336/assignment1-basics, version 1.0.2, without "run_"


def test_every_adapter_has_a_function_that_names_its_problem():
    functions = [f for name, f in vars(course).items() if inspect.isfunction(f) and f.__module__ == course.__name__]
    public = {f.__name__: f for f in functions if f is not course.compute and not f.__name__.startswith("_")}
    assert public.keys() == set(ADAPTERS.split())
    for function in public.values():
        assert function.__doc__.startswith(("Problem ", "Part of "))
