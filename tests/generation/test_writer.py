"""Proves that generation is repeatable, slides, stops, and never draws an id that the tokenizer lacks; and that neither
the cache nor the other texts of a batch change a text."""

import math
import random
from collections import Counter

import pytest
import torch
from torch import nn

from lm.generation.decoding import CachedReader
from lm.generation.sampling import (
    Sampling,
)
from lm.generation.texts import Text
from lm.generation.writer import Writer, generate, generate_batch, make_reader, write_texts
from lm.model.transformer import TransformerLM
from tokenization import InputError, Tokenizer


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
        cached = list(generate(model, prompt, 16, sampling))
        assert cached == list(generate(model, prompt, 16, sampling, use_cache=False))
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
    alone = [list(generate(model, prompt, 12, sampling, seed=5 + i)) for i, prompt in enumerate(prompts)]
    # One that stops some texts early, each at another step, and leaves others as they are.
    stop_id = max(range(50), key=lambda token_id: len({text.index(token_id) for text in alone if token_id in text}))
    for stop in (None, stop_id):
        expected = [text[: text.index(stop)] if stop in text else text for text in alone]
        for use_cache in (True, False):
            texts: list[list[int]] = [[] for _ in prompts]
            for number, token_id in generate_batch(model, prompts, 12, sampling, 5, stop, use_cache=use_cache):
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
