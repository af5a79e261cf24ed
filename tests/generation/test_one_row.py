"""Proves that the kernel for one row computes what the plain model does, whatever the settings, threads and precision;
that weights in 8 bits multiply as the rounded weights do, and to the last bit as whole numbers; and that int8 is
refused where it cannot be had."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.contracts import cached_is_plain, make
from torch import Tensor

from lm.generation import cached_block, layouts, one_row, program
from lm.generation.decoding import CachedReader, PlainReader
from lm.generation.kernel_product import MOST_ROWS, KernelProduct
from lm.generation.program import Program, obstacle
from lm.generation.quantization import Quantized, dequantize, quantize, quantize_plainly, round_weights
from lm.generation.quantization_kernel import quantize_by_kernel
from lm.generation.sampling import Sampling
from lm.generation.writer import generate
from lm.loading import load
from tokenization import InputError

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle())

SHAPE = {"vocab_size": 61, "context_length": 20, "d_model": 48, "num_layers": 2, "num_heads": 3, "d_ff": 80}
SETTINGS = [{}, {"qk_norm": True, "bigram_rows": 7}, {"position_encoding": "none", "tie_embeddings": True}]
NEAR = {"atol": 5e-4, "rtol": 1e-4}  # of logits of about 2, when each product rounds its vector to 16 bits
SETTINGS += [{"vocab_multiple": 64, "num_heads": 1}, {"value_embeddings": True, "smear": True, "bigram_rows": 7}]


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def lively(**settings):
    """A model whose gains and tables are not those of a new one."""
    return make(SHAPE | settings).eval()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_logits_are_the_plain_models(settings, threads):
    """To 1e-5, from the first token until the window has slid twice."""
    model, ids = lively(**settings), torch.randint(61, (45,)).tolist()
    plain, cached = PlainReader(model), CachedReader(model, 1, torch.float32)
    assert cached.fast
    cached.keys.fill_(math.nan)  # which the memory of a new cache may hold
    cached.values.fill_(math.nan)
    torch.testing.assert_close(cached.read(0, ids[:1]), plain.read(0, ids[:1]), atol=1e-5, rtol=1e-5)
    for token_id in ids[1:]:
        torch.testing.assert_close(cached.step([token_id]), plain.step([token_id]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=str)
def test_the_contract_of_the_cache(settings):
    cached_is_plain(SHAPE | settings)


def test_a_row_that_stays_alone_goes_on():
    """After steps in a batch, beside a text that was in row 0."""
    model, ids = lively(), torch.randint(61, (3, 18)).tolist()
    plain, cached = PlainReader(model), CachedReader(model, 2, torch.float32)
    for reader in (plain, cached):
        reader.read(0, ids[0][:5])
        reader.read(1, ids[1][:9])
        reader.step([1, 2])
        reader.drop(0)
    for token_id in ids[2][:6]:
        torch.testing.assert_close(cached.step([token_id]), plain.step([token_id]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"norm_position": "post"}, {"feed_forward": "silu"}, {"embedding_skips": True}, {"num_heads": 6}, {"d_ff": 70}],
    ids=str,
)
def test_what_the_kernel_does_not_know_is_left_to_torch(settings):
    reader = CachedReader(lively(**settings), 1, torch.float32)
    assert not reader.fast
    cached_is_plain(SHAPE | settings)


def test_nan_stays_nan():
    model = lively()
    model.layers[0].attn.q_proj.weight.data[0, 0] = math.nan
    reader = CachedReader(model, 1, torch.float32)
    reader.read(0, [1])
    assert reader.step([2]).isnan().any()


def test_large_scores_and_gates():
    """Where e^x would overflow, and where attention is all on one token."""
    model, ids = lively(), list(range(12))
    for block in model.layers:
        block.attn.q_proj.weight.data *= 300
        block.ffn.w1.weight.data *= 300
    plain, cached = PlainReader(model), CachedReader(model, 1, torch.float32)
    plain.read(0, ids[:3])
    cached.read(0, ids[:3])
    for token_id in ids[3:]:
        expected = plain.step([token_id])
        torch.testing.assert_close(cached.step([token_id]), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


# --- int8 ------------------------------------------------------------------------------------------------------------


def product_in_8_bits(x: Tensor, weight: Quantized) -> Tensor:
    return KernelProduct(weight.numbers, weight.scales)(x)


def whole_number_product(x: Tensor, weight: Quantized) -> Tensor:
    """The product as the kernel computes it, by torch's whole numbers of 64 bits."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    factors = torch.full_like(largest, 32767) / largest  # not 32767 / largest, which torch rounds twice
    numbers = (x * torch.where(largest < 1e-30, 0, factors)).round().long()
    exact = numbers @ weight.numbers[:, : weight.inputs].long().T
    return exact.float() * weight.scales * (largest / 32767)


@pytest.mark.parametrize("inputs", [16, 24, 80, 144, 576, 1104])
@pytest.mark.parametrize("rows", [1, 2, 7, MOST_ROWS[torch.int8]])
def test_a_product_in_8_bits_is_exact_in_whole_numbers(rows, inputs):
    generator = torch.Generator().manual_seed(rows)
    weight = quantize(torch.randn(13, inputs, generator=generator) * torch.arange(13)[:, None])
    x = torch.randn(rows, 1, inputs, generator=generator)
    product = product_in_8_bits(x, weight)
    assert torch.equal(product, whole_number_product(x, weight))
    rounded = dequantize(weight)
    most = x.abs().amax(dim=-1, keepdim=True) * rounded.abs().sum(dim=1)  # times half of 1 / 32767: how far x was moved
    assert ((product - x @ rounded.T).abs() <= most * (0.51 / 32767) + 1e-4).all()


def test_products_of_the_largest_numbers_do_not_overflow():
    weight = quantize(torch.ones(2, 20_000) * torch.tensor([[1.0], [-1.0]]))
    for x in (torch.full((1, 20_000), 3.0), torch.full((1, 20_000), -3.0)):
        assert torch.equal(product_in_8_bits(x, weight), whole_number_product(x, weight))
        torch.testing.assert_close(product_in_8_bits(x, weight), x @ dequantize(weight).T)


@pytest.mark.parametrize("number", [0.0, 1e-38, 1e-31, 1e-29, 1e38])
def test_vectors_of_any_size_are_multiplied(number):
    weight, x = quantize(torch.eye(16)), torch.arange(16.0)[None] * (number / 16)
    torch.testing.assert_close(product_in_8_bits(x, weight), x, atol=1e-30, rtol=1e-3)


@pytest.mark.parametrize("number", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(0, 48, 5))
def test_what_is_not_finite_stays_so(number, place):
    weight, x = quantize(torch.ones(3, 48)), torch.ones(2, 48)
    x[0, place] = number
    product = product_in_8_bits(x, weight)
    assert not product[0].isfinite().any()
    torch.testing.assert_close(product[1], torch.full((3,), 48.0))


def test_many_rows_are_rounded_as_few_are():
    weight, x = quantize(torch.randn(13, 80)), torch.randn(MOST_ROWS[torch.int8] + 1, 80)
    x[3] = 0
    torch.testing.assert_close(product_in_8_bits(x, weight), whole_number_product(x, weight))
    x[4, 7] = math.nan
    x[5, 7] = math.inf
    assert product_in_8_bits(x, weight).isfinite().all(dim=1).logical_not().nonzero().flatten().tolist() == [4, 5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_two_threads_multiply_as_one_does(dtype, threads):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(37, 80, generator=generator), torch.randn(5, 80, generator=generator)
    if dtype == torch.int8:
        assert torch.equal(product_in_8_bits(x, quantize(weight)), whole_number_product(x, quantize(weight)))
    else:
        product = KernelProduct(weight.to(dtype))(x)
        torch.testing.assert_close(product, x @ weight.to(dtype).float().T)


def test_a_weight_that_is_not_finite_is_not_hidden():
    weight = torch.ones(3, 16)
    weight[1, 5] = math.nan
    assert product_in_8_bits(torch.ones(1, 16), quantize(weight)).isnan().tolist() == [[False, True, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_heads_may_be_wider_than_the_context(dtype):
    """The kernel's scratch then holds normalized queries that are longer than the scores."""
    model = lively(d_model=512, num_heads=1, d_ff=16, context_length=16, qk_norm=True)
    cached = CachedReader(model, 1, dtype)
    scratch = cached.one_row.program
    scratch.scratch.fill_(math.pi)
    round_weights(model, dtype)
    plain, ids = PlainReader(model), torch.randint(61, (12,)).tolist()
    plain.read(0, ids[:2])
    cached.read(0, ids[:2])
    for token_id in ids[2:]:
        torch.testing.assert_close(cached.step([token_id]), plain.step([token_id]), atol=2e-3, rtol=1e-3)
    assert (scratch.scratch[:, -16:] == math.pi).all()  # beyond what it needs


def test_weights_are_rounded_to_the_nearest():
    weight = torch.randn(9, 40, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    rounded = dequantize(quantize(weight))
    assert ((rounded - weight).abs() <= weight.abs().amax(dim=1, keepdim=True) / 127 * 0.5001).all()
    assert not rounded[3].any()
    torch.testing.assert_close(dequantize(quantize(rounded)), rounded)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-41, 1e-43, 1e-45, 1e37])
def test_weights_are_rounded_by_the_kernel_as_without_it(scale, threads):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(700, 48, generator=generator) * scale * torch.arange(700)[:, None].clamp_max(1)
    for each in (weight, weight[:5], weight.repeat(1, 2)[:, 7:55], weight[1:].T.contiguous().view(699, 48)):
        numbers, scales = quantize_by_kernel(each.contiguous())
        expected = quantize_plainly(each)
        assert numbers.dtype == torch.int8
        assert torch.equal(numbers, expected.numbers)
        assert torch.equal(scales, expected.scales)
        assert torch.equal(quantize(each).numbers, expected.numbers)
    joined = quantize(weight[:100], weight[100:150])
    assert torch.equal(joined.numbers, quantize_plainly(weight[:150]).numbers)
    assert torch.equal(joined.scales, quantize_plainly(weight[:150]).scales)
    weight[3, 40], weight[4, 0] = math.nan, -math.inf
    assert quantize(weight).scales.isfinite().logical_not().nonzero().flatten().tolist() == [3, 4]


@pytest.mark.parametrize("settings", [*SETTINGS, {"norm_position": "post"}, {"d_ff": 70}], ids=str)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_int8_reads_as_the_rounded_model_does(settings, batch_size):
    model, ids = lively(**settings), torch.randint(61, (30,)).tolist()
    cached = CachedReader(model, batch_size, torch.int8)
    before = model.token_embeddings.weight.clone()
    round_weights(model, torch.int8)
    assert torch.equal(model.token_embeddings.weight, before)
    plain = PlainReader(model)
    for row in range(batch_size):
        torch.testing.assert_close(cached.read(row, ids[:6]), plain.read(row, ids[:6]), **NEAR)
    for token_id in ids[6:]:
        new = [token_id] * batch_size
        torch.testing.assert_close(cached.step(new), plain.step(new), **NEAR)


def test_a_seed_writes_the_same_text_in_int8():
    model = lively()
    first, second = (list(generate(model, [1, 2], 30, Sampling(), seed=5, dtype=torch.int8)) for _ in range(2))
    assert first == second
    assert len(first) == 30


def test_rounding_costs_little():
    """The loss on what a small model has learned: a repeated sequence."""
    model, ids = lively(), torch.arange(60) % 17
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(ids[:-1].unfold(0, 20, 5), ids[1:].unfold(0, 20, 5)).backward()
        optimizer.step()
    with torch.no_grad():
        exact = model(ids[:20], ids[1:21]).item()
        round_weights(model, torch.int8)
        rounded = model(ids[:20], ids[1:21]).item()
    assert exact < 0.5
    assert rounded - exact < 0.002


def test_int8_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr("lm.generation.quantization.obstacle", lambda: "llvmlite is not installed")
    with pytest.raises(InputError, match=r"^precision int8: llvmlite is not installed; take fp32 or bf16$"):
        load(tmp_path, "cpu", "int8")
    with pytest.raises(InputError, match=r"^precision int8 on meta: only the CPU has it"):
        CachedReader(lively().to("meta"), 1, torch.int8)


def test_without_the_kernel_torch_reads(monkeypatch):
    for module in (one_row, cached_block, layouts):
        monkeypatch.setattr(module, "obstacle", lambda: "llvmlite is not installed")
    model, ids = lively(), torch.randint(61, (12,)).tolist()
    reader = CachedReader(model, 1, torch.float32)
    assert not reader.fast
    assert reader.ln_final is model.ln_final
    torch.testing.assert_close(reader.read(0, ids), model(torch.tensor([ids]))[0, -1], atol=1e-5, rtol=1e-5)


def test_a_kernel_that_cannot_be_had_is_explained(monkeypatch):
    errors = [ModuleNotFoundError(name="llvmlite"), RuntimeError("no\n target")]

    def fail(kernel):
        raise errors.pop(0)

    monkeypatch.setattr("tokenization.native.compiling.load", fail)
    assert program.obstacle.__wrapped__() == "llvmlite is not installed"
    assert program.obstacle.__wrapped__() == "its kernels cannot be compiled: no target"


def test_silu_is_accurate():
    from lm.generation import kernels

    numbers = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e30, 1e30])])[:4000]
    x, y = torch.cat([numbers, torch.ones(4000)]), torch.zeros(1)
    job = {kernels.KIND: kernels.PRODUCT, kernels.X: x, kernels.Y: y, kernels.BEFORE: kernels.GATE, kernels.ROWS: 1}
    weights = torch.zeros(4000, 4000)
    weights.fill_diagonal_(1.0)
    job |= {kernels.WEIGHTS: weights, kernels.SIZE: 4, kernels.INPUTS: 4000, kernels.OUTPUTS: 4000}
    job[kernels.Y] = y = torch.zeros(4000)
    Program([job]).run()
    torch.testing.assert_close(y, F.silu(numbers), rtol=1e-6, atol=1e-30)
