"""Proves that temperature, top-k and top-p keep and scale what a brute-force reading of their definitions does; that
generation is repeatable, slides, stops, and never draws an id that the tokenizer lacks; and that neither the cache nor
the other texts of a batch change a text."""

import math
import os
import random
from collections import Counter

import pytest
import torch
import transformers
from torch import nn

from lm.generation.continuation import TextStream
from lm.generation.decoding import CachedReader, PlainReader
from lm.generation.layouts import LAYOUTS, PACKED, PLAIN, can_pack, choose_layout, join, lay_out, time_layouts
from lm.generation.sampling import (
    Sampling,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_token_probabilities,
    penalize_repetition,
)
from lm.generation.sampling import draw as draw_tokens
from lm.generation.texts import Text
from lm.generation.writer import Writer, generate, generate_batch, make_reader, write_texts
from lm.model.transformer import TransformerLM
from tokenization import InputError, Tokenizer


def brute_force(logits: list[float], temperature: float, top_k: int | None, top_p: float) -> list[float]:
    """The definition, for logits without equals: sort, keep, renormalise."""
    order = sorted(range(len(logits)), key=lambda index: -logits[index])[:top_k]
    weights = {index: math.exp((logits[index] - logits[order[0]]) / temperature) for index in order}
    total, kept, reached = sum(weights.values()), {}, 0.0
    for index in order:
        kept[index] = weights[index] / total
        reached += kept[index]
        if reached >= top_p:
            break
    return [kept.get(index, 0.0) / sum(kept.values()) for index in range(len(logits))]


@pytest.mark.parametrize("seed", range(40))
def test_random_distributions(seed):
    rng = random.Random(seed)
    logits = [rng.gauss(0, 3) for _ in range(rng.randint(1, 30))]
    temperature, top_k = rng.uniform(0.2, 3), rng.choice([None, 1, 2, 5, 100])
    top_p = rng.choice([1.0, rng.uniform(0.01, 0.99)])
    probabilities = next_token_probabilities(torch.tensor(logits), Sampling(temperature, top_k, top_p))
    assert probabilities.tolist() == pytest.approx(brute_force(logits, temperature, top_k, top_p), abs=1e-5)


def test_each_row_by_itself():
    logits = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(0.7, 5, 0.6)
    whole = next_token_probabilities(logits, sampling)
    for row, expected in zip(logits.view(-1, 11), whole.view(-1, 11), strict=True):
        torch.testing.assert_close(next_token_probabilities(row, sampling), expected)
    assert next_token_probabilities(logits.bfloat16(), sampling).dtype == torch.float32


def test_top_k_keeps_equals_and_top_p_the_fewest():
    assert keep_top_k(torch.tensor([1.0, 3.0, 2.0, 2.0]), 2).tolist() == [-math.inf, 3, 2, 2]
    logits = torch.tensor([0.125, 0.5, 0.25, 0.125]).log()
    for p, kept in ((0.01, {1}), (0.5, {1}), (0.51, {1, 2}), (0.75, {1, 2}), (0.9999, {0, 1, 2, 3})):
        assert set(keep_top_p(logits, p).isfinite().nonzero().flatten().tolist()) == kept


SHARES = (0.0, 5e-324, 1e-46, 1e-30, 1e-8, 0.5, 1 - 1e-9, 1.0)


@pytest.mark.parametrize("seed", range(100))
def test_no_setting_draws_what_it_should_not(seed):
    """Extreme settings and logits: a draw is a token that the definition keeps, and the likeliest is one of these."""
    rng = random.Random(seed)
    scale = rng.choice([1e-6, 1.0, 30.0, 1e4, 1e30, 3e38])
    values = [rng.uniform(-1, 1) * scale for _ in range(rng.choice([1, 2, 5, 300]))]
    values = [-math.inf if rng.random() < 0.2 else value for value in values]
    values[rng.randrange(len(values))] = rng.choice([0.0, scale])  # one at least can be drawn
    logits = torch.tensor(values).to(rng.choice([torch.float32, torch.bfloat16])).float()
    sampling = Sampling(
        temperature=rng.choice([0, 0.001, 0.7, 1.0, 1e6]),
        top_k=rng.choice([None, 1, 2, 10**9]),
        top_p=rng.choice(SHARES),
        min_p=rng.choice(SHARES),
        repetition_penalty=rng.choice([1e-6, 0.5, 1.0, 1.3, 1e6]),
    )
    text = [rng.randrange(len(values)) for _ in range(3)]
    scored = penalize_repetition(logits, torch.tensor(text), sampling.repetition_penalty).tolist()
    assert all(math.isfinite(after) == math.isfinite(before) for before, after in zip(values, scored, strict=True))
    best, temperature = max(scored), sampling.temperature or 1.0
    likeliest = {i for i, value in enumerate(scored) if torch.tensor((value - best) / temperature).float() == 0}
    allowed = {index for index, value in enumerate(scored) if value > -math.inf}
    if sampling.temperature == 0 or sampling.top_p <= 1e-30 or sampling.min_p == 1 or sampling.top_k == 1:
        allowed = likeliest
    probabilities = next_token_probabilities(torch.tensor(scored), sampling)
    kept = set(probabilities.nonzero().flatten().tolist())
    assert kept <= allowed
    assert kept & likeliest
    assert probabilities.sum() == pytest.approx(1)
    drawn = draw_tokens(
        logits.expand(20, -1), sampling, [text] * 20, [torch.Generator().manual_seed(i) for i in range(20)]
    )
    assert set(drawn) <= kept


def test_greedy():
    logits = torch.tensor([[1.0, 5.0, 4.9], [7.0, -1.0, 0.0]])
    assert next_token_probabilities(logits, Sampling(0)).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert next_token_probabilities(torch.tensor([2.0, 2.0, 1.0]), Sampling(0)).sum() == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": 1e-300}, "temperature 1e-300"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"top_k": 0}, "top_k 0"),
        ({"temperature": 1e300}, "temperature 1e"),
        ({"top_p": -0.1}, "top_p -0.1"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"top_p": math.nan}, "top_p nan"),
        ({"min_p": -0.1}, "min_p -0.1"),
        ({"min_p": 1.1}, "min_p 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0"),
        ({"repetition_penalty": 1e300}, "repetition_penalty 1e"),
    ],
)
def test_values_that_make_no_sense(wrong, message):
    with pytest.raises(InputError, match=message):
        Sampling(**wrong)


class Scripted(nn.Module):
    """Knows one distribution, whatever it reads, and remembers what that was."""

    def __init__(self, probabilities: list[float], context_length: int = 4):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())
        self.context_length, self.vocab_size = context_length, len(probabilities)
        self.windows: list[list[int]] = []

    def forward(self, token_ids):
        self.windows.append(token_ids[0].tolist())
        return self.logits.expand(*token_ids.shape, -1)


def draw(model: Scripted, *arguments, **settings):
    """A scripted model has no layers, so nothing to cache."""
    return generate(model, *arguments, use_cache=False, **settings)


def test_the_frequencies_are_the_probabilities():
    counts = Counter(draw(Scripted([0.1, 0.2, 0.7]), [0], 3000, Sampling(1.0, None, 1.0)))
    assert counts[1] / 3000 == pytest.approx(0.2, abs=0.03)
    assert counts[2] / 3000 == pytest.approx(0.7, abs=0.03)


def test_the_window_slides():
    model = Scripted([0.25] * 4)
    new = list(draw(model, [0, 1], 6, Sampling(1.0, None, 1.0)))
    text = [0, 1, *new]
    assert len(new) == 6  # and half a context of 4 is left when it is full
    assert model.windows == [text[:2], text[:3], text[:4], text[3:5], text[3:6], text[3:7]]
    model.windows.clear()
    list(draw(model, [3, 2, 1, 0, 1, 2], 1, Sampling()))
    assert model.windows == [[1, 2]]


def test_it_stops_before_the_stop_token_and_draws_lazily():
    assert list(draw(Scripted([0.0, 1.0]), [0], 5, Sampling(), stop_id=1)) == []
    model = Scripted([0.5, 0.3, 0.2])
    free = list(draw(model, [0], 50, Sampling(1.0, None, 1.0), seed=4))
    stopped = list(draw(model, [0], 50, Sampling(1.0, None, 1.0), seed=4, stop_id=2))
    assert stopped == free[: free.index(2)]
    model.windows.clear()
    drawing = draw(model, [0], 50, Sampling())
    assert not model.windows
    next(drawing)
    assert len(model.windows) == 1


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_ids_that_the_tokenizer_lacks_are_never_drawn(temperature):
    model = Scripted([0.001, 0.002, 0.3, 0.697])
    drawn = set(draw(model, [0], 200, Sampling(temperature, None, 1.0), vocab_size=2))
    assert drawn == ({1} if temperature == 0 else {0, 1})


def test_ids_without_bytes_are_never_drawn(small):
    """A vocabulary may have holes."""
    vocab = {token_id + (token_id > 256) * 5: token for token_id, token in small.vocab.items()}
    tokenizer = Tokenizer(vocab, small.merges, ["<|endoftext|>"])
    assert tokenizer.vocab_size == len(vocab) + 5
    for sampling in (Sampling(0), Sampling(1.0, None, 1.0)):
        model = Scripted([1e-6] * 257 + [0.19] * 5 + [1e-4] * (len(vocab) - 257))
        text = Text([0], 60, sampling, top=10)
        drawn = list(write_texts(Writer.of_tokens(make_reader(model, 1, use_cache=False), tokenizer), [text], 1))
        assert len(drawn) == 60
        tokenizer.decode(text.ids)
        assert all(each.log_probability > -20 for each in drawn)


def test_the_seed_alone_decides():
    torch.manual_seed(0)
    model = TransformerLM(30, 8, 16, 1, num_heads=2)
    first = list(generate(model, [1, 2], 20, Sampling(), seed=7))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert list(generate(model, [1, 2], 20, Sampling(), seed=7)) == first
    assert torch.equal(torch.get_rng_state(), state)  # training draws nothing else because of it
    assert list(generate(model, [1, 2], 20, Sampling(), seed=8)) != first
    assert all(parameter.grad is None for parameter in model.parameters())


def test_greedy_is_the_argmax_of_the_model_at_each_step():
    torch.manual_seed(0)
    model, text = TransformerLM(30, 8, 16, 1, num_heads=2), [1, 2, 3]
    for token_id in generate(model, [1, 2, 3], 5, Sampling(0)):
        assert token_id == model(torch.tensor([text]))[0, -1].argmax()
        text.append(token_id)
    assert len(text) == 8


@pytest.mark.parametrize("settings", [{}, {"norm_position": "post"}, {"position_encoding": "none"}, {"num_heads": 1}])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
def test_the_cache_changes_nothing(settings, length):
    """Neither before the context is full nor when the window slides, whatever the length of the prompt."""
    torch.manual_seed(length)
    model = TransformerLM(
        **{"vocab_size": 50, "context_length": 8, "d_model": 16, "num_layers": 2, "num_heads": 2} | settings
    )
    prompt = torch.randint(50, (length,)).tolist()
    for sampling in (Sampling(0), Sampling(1.0, repetition_penalty=1.3)):
        cached = list(generate(model, prompt, 24, sampling))
        assert cached == list(generate(model, prompt, 24, sampling, use_cache=False))
        assert sampling.temperature == 0 or len(set(cached)) > 10


def test_cached_logits_are_those_of_the_whole_text():
    torch.manual_seed(0)
    model = TransformerLM(50, 16, 16, 2, num_heads=2)
    texts = torch.randint(50, (3, 16)).tolist()
    reader, lengths = CachedReader(model, 3, torch.float32), [5, 1, 8]
    with torch.inference_mode():
        for row, length in enumerate(lengths):
            torch.testing.assert_close(
                reader.read(row, texts[row][:length]), model(torch.tensor(texts[row][:length]))[-1]
            )
        for step in range(8):
            logits = reader.step([text[length + step] for text, length in zip(texts, lengths, strict=True)])
            for text, length, row in zip(texts, lengths, logits, strict=True):
                torch.testing.assert_close(row, model(torch.tensor(text[: length + step + 1]))[-1])


SHAPES = [{}, {"norm_position": "post", "feed_forward": "silu"}, {"norm_position": "none", "vocab_multiple": 64}]
SHAPES += [{"tie_embeddings": True, "qk_norm": True}]
SAMPLINGS = [Sampling(0), Sampling(1.0, None, 1.0), Sampling(0.9, 20, 0.9, 0.01, repetition_penalty=1.3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "free", "restrained"])
def test_a_batch_writes_what_each_prompt_writes_alone(shape, sampling):
    """Prompts from one token to several contexts, texts that slide each at its own time, and that end at different
    ones; with and without a cache."""
    torch.manual_seed(1)
    model = TransformerLM(
        **{"vocab_size": 50, "context_length": 8, "d_model": 16, "num_layers": 2, "num_heads": 2} | shape
    )
    prompts = [torch.randint(40, (length,)).tolist() for length in (3, 1, 8, 30, 5, 9, 2)]
    alone = [list(generate(model, prompt, 16, sampling, seed=5 + i)) for i, prompt in enumerate(prompts)]
    # One that stops some texts early, each at another step, and leaves others as they are.
    stop_id = max(range(50), key=lambda token_id: len({text.index(token_id) for text in alone if token_id in text}))
    for stop in (None, stop_id):
        expected = [text[: text.index(stop)] if stop in text else text for text in alone]
        for use_cache in (True, False):
            texts: list[list[int]] = [[] for _ in prompts]
            for number, token_id in generate_batch(model, prompts, 16, sampling, 5, stop, use_cache=use_cache):
                texts[number].append(token_id)
            assert texts == expected
    assert len(set(map(len, expected))) > 1


def test_a_batch_is_drawn_in_step_and_lazily():
    model = Scripted([0.5, 0.5])
    drawing = generate_batch(model, [[0], [1], [0]], 2, Sampling(1.0), use_cache=False)
    assert not model.windows
    assert [number for number, _ in drawing] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt"),
        ([[1], []], "prompt 1 has no tokens"),
        ([[1, 50]], "prompt 0 has the id 50; there are ids from 0 to 49"),
        ([[-1, 3]], "prompt 0 has the id -1"),
    ],
)
def test_prompts_that_make_no_sense(prompts, message):
    model = TransformerLM(50, 8, 16, 1, num_heads=2)
    with pytest.raises(InputError, match=message):
        list(generate_batch(model, prompts, 3, Sampling()))


def test_bfloat16_is_float32_to_two_digits():
    """Every weight and activation has 8 bits of mantissa: 3 parts in 1000, a few dozen times in a row."""
    torch.manual_seed(0)
    model, token_ids = TransformerLM(1000, 64, 128, 4, num_heads=4), torch.randint(1000, (50,)).tolist()
    readers = [CachedReader(model, 1, dtype) for dtype in (torch.float32, torch.bfloat16)]
    exact, rounded = [
        torch.stack([reader.read(0, token_ids[:20]), *(reader.step([i])[0] for i in token_ids[20:])])
        for reader in readers
    ]
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).abs() / exact.std()
    assert error.mean() < 0.01
    assert error.amax() < 0.06
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    drawn = [list(generate(model, token_ids, 30, Sampling(), dtype=torch.bfloat16)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    with pytest.raises(ValueError, match=r"without a cache the model is read as it is"):
        list(generate(model, [1], 3, Sampling(), dtype=torch.bfloat16, use_cache=False))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_weights_in_each_layout_multiply_as_before(layout, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(rows, 24, generator=generator) for rows in (40, 7)]
    x = torch.randn(3, 5, 24, generator=generator)
    if layout == PACKED and not can_pack(x, dtype):
        pytest.skip("not on this processor")
    expected = torch.cat([x @ weight.T for weight in weights], dim=-1)
    error = lay_out(join(weights, dtype), layout)(x.to(dtype)).float() - expected
    assert error.abs().amax() < tolerance * expected.abs().amax()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reader_reads_as_the_model_does_in_each_layout(layout, monkeypatch):
    """Against the plain reader, for a prompt, one row and several."""
    torch.manual_seed(0)
    model, token_ids = TransformerLM(300, 16, 64, 2, num_heads=2), torch.randint(300, (2, 30)).tolist()
    monkeypatch.setattr("lm.generation.decoding.choose_layout", lambda *_: layout)
    plain, cached = PlainReader(model), CachedReader(model, 2, torch.float32)
    for row in range(2):
        torch.testing.assert_close(cached.read(row, token_ids[row][:7]), plain.read(row, token_ids[row][:7]))
    for new in zip(*(ids[7:] for ids in token_ids), strict=True):
        torch.testing.assert_close(cached.step(new), plain.step(new), atol=1e-4, rtol=1e-4)


@pytest.fixture
def timed(tmp_path, monkeypatch):
    """timed(packed, plain): the seconds that each layout is to take from now on. Choices are kept in tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("lm.generation.layouts.can_pack", lambda *_: True)
    calls = []

    def set_times(packed: float, plain: float) -> list:
        monkeypatch.setattr(
            "lm.generation.layouts.time_layouts",
            lambda *arguments: calls.append(arguments) or {PACKED: packed, PLAIN: plain},
        )
        return calls

    return set_times


LARGE = [[torch.zeros(700, 900), torch.zeros(500, 900)]]


def test_a_layout_is_chosen_once(timed, tmp_path):
    """By the shape, the dtype, the rows up to a power of two, and the threads; then it stays, whatever it is later."""
    calls = timed(packed=2.0, plain=1.0)
    assert choose_layout(LARGE, torch.float32, 1) == PLAIN
    timed(packed=1.0, plain=2.0)
    assert choose_layout(LARGE, torch.float32, 1) == PLAIN
    assert len(calls) == 1
    assert choose_layout(LARGE, torch.bfloat16, 1) == PACKED
    assert [choose_layout(LARGE, torch.float32, rows) for rows in (2, 3, 4, 5, 8, 64, 100)] == [PACKED] * 7
    assert [rows for *_, rows in calls] == [1, 1, 2, 4, 8, 64]
    assert choose_layout([*LARGE, *LARGE], torch.float32, 1) == PACKED
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert choose_layout(LARGE, torch.float32, 1) == PACKED
    finally:
        torch.set_num_threads(threads)
    (path,) = tmp_path.glob("*/*")
    for content in ("{", path.read_text().replace(PLAIN, "as you like").replace(PACKED, "7")):
        path.write_text(content)
        calls.clear()
        assert choose_layout(LARGE, torch.float32, 1) == PACKED
        assert choose_layout(LARGE, torch.float32, 1) == PACKED
        assert len(calls) == 1


def test_a_layout_that_cannot_be_kept_is_always_the_same(timed, monkeypatch):
    timed(packed=2.0, plain=1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert choose_layout(LARGE, torch.float32, 1) == PACKED
    monkeypatch.undo()
    assert choose_layout([[torch.zeros(3, 2)]], torch.float32, 1) == PACKED  # too small to be worth it
    assert choose_layout([[torch.zeros(3, 2, device="meta")]], torch.float32, 1) == PLAIN


def test_a_tie_keeps_the_packed_order(timed):
    for plain, chosen, width in ((1.0, PACKED, 901), (0.96, PACKED, 902), (0.9, PLAIN, 903)):
        timed(packed=1.0, plain=plain)
        assert choose_layout([[torch.zeros(1300, width)]], torch.float32, 1) == chosen


def test_layouts_are_timed():
    seconds = time_layouts([[torch.ones(64, 32)], [torch.ones(8, 64), torch.ones(8, 64)]], torch.float32, 2)
    assert list(seconds) == list(LAYOUTS)
    assert all(0 < value < 1 for value in seconds.values())


def test_top_p_of_many_tokens():
    """Where the likeliest 256 reach p, and where they do not."""
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 5.0):
        logits = torch.randn(2, 3000, generator=generator) * scale
        for row, kept in zip(logits, keep_top_p(logits, 0.9), strict=True):
            ordered, order = row.double().softmax(-1).sort(descending=True)
            expected = order[: int((ordered.cumsum(0) < 0.9).sum()) + 1]
            assert set(kept.isfinite().nonzero().flatten().tolist()) == set(expected.tolist())
            assert torch.equal(kept[expected], row[expected])


def test_min_p_and_repetition_penalty_are_those_of_transformers():
    logits = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 3
    seen = torch.tensor([3, 7, 7, 11])
    for p in (0.02, 0.3, 1.0):
        torch.testing.assert_close(keep_min_p(logits, p), transformers.MinPLogitsWarper(p)(seen[None], logits[None])[0])
    for penalty in (1.5, 0.5):
        theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)(seen[None], logits[None].clone())[0]
        torch.testing.assert_close(penalize_repetition(logits, seen, penalty), theirs)
    plain = next_token_probabilities(logits, Sampling(1.0, None, 1.0, repetition_penalty=2.0))
    torch.testing.assert_close(plain, torch.softmax(logits, -1))  # no text, no penalty


def test_a_model_that_has_diverged_is_said_to_have():
    for value in (math.nan, math.inf):
        model = Scripted([0.5, 0.5])
        model.logits.data[0] = value
        with pytest.raises(InputError, match="not finite; its training has diverged"):
            list(draw(model, [0], 5, Sampling()))


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_text_that_fails_does_so_alone(use_cache):
    """Token 49 is NaN: who reads it fails, and neither those beside it nor those that take its row do."""
    torch.manual_seed(2)
    model = TransformerLM(50, 8, 16, 2, num_heads=2)
    prompts = [[1, 2, 3], [4, 49, 5], [6], [49], [7, 8]]
    healthy = [number for number, prompt in enumerate(prompts) if 49 not in prompt]
    sampling = Sampling(1.0, None, 1.0)
    alone = {i: list(generate(model, prompts[i], 12, sampling, seed=i)) for i in healthy}
    assert not any(49 in text for text in alone.values())
    model.token_embeddings.weight.data[49] = math.nan
    for rows in (1, 2, 5):
        texts = [Text(prompt, 12, sampling, seed=i, number=i) for i, prompt in enumerate(prompts)]
        writer = Writer(make_reader(model, rows, use_cache=use_cache))
        with pytest.raises(InputError, match="not finite; its training has diverged"):  # at the end
            list(write_texts(writer, texts, rows))
        assert [text.finish for text in texts] == ["length", "error", "length", "error", "length"]
        assert {i: texts[i].ids[len(prompts[i]) :] for i in healthy} == alone
    scored = Text([1, 49], 3, sampling, top=2, score_prompt=True)
    writer = Writer(make_reader(model, 2, use_cache=use_cache))
    writer.add(text := Text(prompts[0], 12, sampling, seed=0))
    for wrong in (scored, Text([1] * 9, 3, sampling, top=2, score_prompt=True)):
        with pytest.raises(InputError):
            writer.add(wrong)
    while not text.finish:
        writer.step()
    assert text.ids[3:] == alone[0]


@torch.inference_mode()
@pytest.mark.parametrize("use_cache", [True, False])
def test_the_prompts_scores_are_the_models_own(use_cache):
    torch.manual_seed(2)
    model = TransformerLM(50, 8, 16, 2, num_heads=2)
    writer = Writer(make_reader(model, 2, use_cache=use_cache), vocab_size=40)
    writer.add(Text([3], 9, Sampling()))
    for ids in ([1, 2, 3, 30, 5, 6, 7, 8], [9]):
        text = Text(ids, 0, Sampling(), top=3, score_prompt=True)
        writer.add(text)
        assert [drawn.token_id for drawn in writer.step()][1:] == [None]  # nothing was wanted
        assert (text.finish, text.ids) == ("length", ids)
        expected = model(torch.tensor([ids]))[0, :, :40].log_softmax(-1)
        first, *scored = text.scored
        assert (first.token_id, first.log_probability) == (ids[0], None)
        for each, token_id, row in zip(scored, ids[1:], expected, strict=False):
            assert (each.token_id, each.log_probability) == (token_id, pytest.approx(row[token_id].item(), abs=1e-5))
            assert [value for _, value in each.likeliest] == pytest.approx(row.topk(3).values.tolist(), abs=1e-5)
        assert len(scored) == len(ids) - 1


def test_texts_that_come_and_go_change_no_other():
    """Some join when others are half done, some are dropped in the middle; each with a sampling of its own."""
    torch.manual_seed(2)
    model, rng = TransformerLM(50, 8, 16, 2, num_heads=2), random.Random(0)
    texts = []
    for number in range(12):
        prompt = [rng.randrange(50) for _ in range(rng.randint(1, 12))]
        texts.append(Text(prompt, rng.randint(1, 20), SAMPLINGS[number % 3], seed=number, number=number))
    alone = [list(generate(model, text.prompt, text.max_new_tokens, text.sampling, text.seed)) for text in texts]
    writer, waiting, dropped = Writer(make_reader(model, 12)), list(texts), set()
    while waiting or writer.texts:
        while waiting and (not writer.texts or rng.random() < 0.4):
            writer.add(waiting.pop(0))
        writer.step()
        if len(writer.texts) > 2 and rng.random() < 0.1:
            text = rng.choice(writer.texts)
            writer.drop(text)
            dropped.add(text.number)
    assert 0 < len(dropped) < 6
    for text, expected in zip(texts, alone, strict=True):
        new = text.ids[len(text.prompt) :]
        assert new == expected[: len(new)]
        assert (len(new) == text.max_new_tokens) == (text.number not in dropped) == (text.finish == "length")


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_more_texts_than_rows(rows):
    torch.manual_seed(2)
    model = TransformerLM(50, 8, 16, 1, num_heads=2)
    texts = [Text([number], 3 + number, Sampling(1.0), seed=number, number=number) for number in range(7)]
    writer, most = Writer(make_reader(model, rows)), 0
    for drawn in write_texts(writer, texts, rows):
        most = max(most, len(writer.texts))
        assert drawn.text.ids[-1] == drawn.token_id
    assert most <= rows
    for text in texts:
        assert text.ids[1:] == list(generate(model, text.prompt, text.max_new_tokens, Sampling(1.0), seed=text.seed))


@torch.inference_mode()
def test_log_probabilities_are_the_models_own():
    torch.manual_seed(2)
    model = TransformerLM(50, 8, 16, 2, num_heads=2)
    text = Text([1, 2, 3], 5, Sampling(0.3, 4), seed=1, top=3)
    for position, drawn in enumerate(write_texts(Writer(make_reader(model, 1), vocab_size=40), [text], 1), start=3):
        expected = model(torch.tensor([text.ids[:position]]))[0, -1, :40].log_softmax(-1)
        assert drawn.log_probability == pytest.approx(expected[drawn.token_id].item(), abs=1e-5)
        best, ids = expected.topk(3)
        assert [token_id for token_id, _ in drawn.likeliest] == ids.tolist()
        assert [value for _, value in drawn.likeliest] == pytest.approx(best.tolist(), abs=1e-5)
    assert position == 7


class Alphabet:
    """A tokenizer of bytes."""

    def decode_bytes(self, token_ids):
        return bytes(token_ids)


@pytest.mark.parametrize("seed", range(30))
def test_streams_stop_where_the_whole_text_would(seed):
    """Against a search in the whole text; what is shown is never taken back, and held no longer than it must be."""
    rng = random.Random(seed)
    data = "".join(rng.choice("aabbc日é") for _ in range(40)).encode()
    stops = ["".join(rng.choice("aabbc日") for _ in range(rng.randint(2, 4))) for _ in range(rng.randint(0, 2))]
    stream, shown, text = TextStream(Alphabet(), stops), "", data.decode()
    for end, byte in enumerate(data, start=1):
        shown += stream.feed(byte)
        so_far = data[:end].decode(errors="ignore")
        if stream.stopped:
            break
        held = so_far.removeprefix(shown)
        assert so_far == shown + held
        assert held == "" or any(stop.startswith(held) for stop in stops)
    shown += stream.close()
    ends = [text.find(stop) for stop in stops if stop in text]
    assert stream.stopped == bool(ends)
    assert shown == text[: min(ends)] if ends else shown == text


@pytest.mark.parametrize("seed", range(20))
def test_where_tokens_begin(seed):
    """Tokens of any bytes, some of no character, some of parts of one or of several: against each byte's character."""
    rng = random.Random(seed)
    text = "".join(rng.choice("aé日😀\ufffd") for _ in range(30))
    owners = [index for index, character in enumerate(text) for _ in character.encode()]
    data, tokens = text.encode(), {}
    stream, starts = TextStream(Dictionary(tokens)), []
    while data:
        length = rng.randint(1, 5)
        tokens[len(tokens)], data = data[:length], data[length:]
        starts.append(sum(map(len, tokens.values())) - len(tokens[len(tokens) - 1]))
    shown = "".join(stream.feed(token_id) for token_id in tokens)
    assert shown + stream.close() == text
    assert stream.offsets == [owners[start] for start in starts]
    broken = TextStream(Dictionary({0: b"\xe6", 1: b"\x97", 2: b"a\xff", 3: b"\xff\xe6", 4: b"b"}))
    assert "".join(map(broken.feed, range(5))) == "\ufffda\ufffd\ufffd\ufffdb"
    assert broken.offsets == [0, 0, 1, 3, 5]


class Dictionary:
    """A tokenizer of these tokens."""

    def __init__(self, tokens: dict[int, bytes]):
        self.tokens = tokens

    def decode_bytes(self, token_ids):
        return b"".join(self.tokens[token_id] for token_id in token_ids)


def test_a_text_that_ends_within_a_character():
    stream = TextStream(Alphabet())
    assert [stream.feed(byte) for byte in "é日".encode()[:4]] == ["", "é", "", ""]
    assert stream.close() == "\ufffd"
    with pytest.raises(InputError, match="empty stop string"):
        TextStream(Alphabet(), ["a", ""])
