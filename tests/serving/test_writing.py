"""Proves that the server writes what `lm generate` writes, to one client and to 32 at once, whole or as a stream, with
OpenAI's own client, and that log-probabilities are the model's own, those of the prompt among them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lm.generation.sampling import Sampling, draw


@pytest.mark.parametrize("prompt", ["Tom saw", "", "日本 ", "The cat saw a red ball. " * 9])
def test_a_text_is_the_one_that_generate_writes(server, prompt):
    ids = server.alone(prompt, 20, 7)
    found = server.client().completions.create(model="tiny", prompt=prompt, max_tokens=20, seed=7)
    (choice,) = found.choices
    assert choice.text == server.tokenizer.decode(ids)
    assert choice.finish_reason == ("length" if len(ids) == 20 else "stop")
    assert found.usage.completion_tokens == len(ids)
    assert found.usage.prompt_tokens == len(server.tokenizer.encode(prompt or "<|endoftext|>"))


def test_settings_reach_the_sampling(server):
    settings = {"temperature": 0.7, "top_p": 0.8}
    more = {"top_k": 9, "min_p": 0.01, "repetition_penalty": 1.4}
    found = server.client().completions.create(
        model="tiny", prompt="Tom", max_tokens=30, seed=3, extra_body=more, **settings
    )
    expected = server.alone("Tom", 30, 3, Sampling(**settings, **more))
    assert found.choices[0].text == server.tokenizer.decode(expected)
    greedy = server.client().completions.create(model="tiny", prompt="Tom", max_tokens=30, temperature=0)
    assert greedy.choices[0].text == server.tokenizer.decode(server.alone("Tom", 30, 0, Sampling(0)))


def test_a_stream_is_the_whole_text_bit_by_bit(server):
    settings = {"model": "tiny", "prompt": "Tom saw", "max_tokens": 30, "seed": 7, "logprobs": 2}
    whole = server.client().completions.create(**settings)
    events = list(server.client().completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    *chunks, last = events
    assert last.usage == whole.usage
    assert len(chunks) == whole.usage.completion_tokens
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        parts = [each for chunk in chunks for each in getattr(chunk.choices[0].logprobs, name)]
        assert parts == getattr(whole.choices[0].logprobs, name)


def test_log_probabilities(server):
    found = server.client().completions.create(model="tiny", prompt="Tom saw", max_tokens=5, seed=7, logprobs=3)
    ids, given = server.tokenizer.encode("Tom saw"), found.choices[0].logprobs
    drawn = server.alone("Tom saw", 5, 7)
    with torch.inference_mode():
        scores = server.model(torch.tensor(ids + drawn))[:, : server.tokenizer.vocab_size].log_softmax(-1)
    for place, token_id in enumerate(drawn):
        row = scores[len(ids) - 1 + place]
        assert given.token_logprobs[place] == pytest.approx(row[token_id].item(), abs=1e-4)
        top = list(given.top_logprobs[place].values())
        assert top[:3] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert given.top_logprobs[place][given.tokens[place]] == given.token_logprobs[place]  # the drawn one, too
        assert len(top) == 3 + (token_id not in row.topk(3).indices)
    assert given.text_offset[0] == 0


ECHO = {"model": "tiny", "seed": 4, "echo": True, "logprobs": 2}


@torch.inference_mode()
@pytest.mark.parametrize("prompt", ["Tom saw", "日本é ", "", [300, 301, 5]])
@pytest.mark.parametrize("max_tokens", [0, 1, 7])
def test_echo_with_log_probabilities_scores_the_prompt(server, prompt, max_tokens):
    """An entry for each token of prompt and text; the first has no score, and the others are the model's."""
    found = server.client().completions.create(prompt=prompt, max_tokens=max_tokens, **ECHO)
    ids = prompt if isinstance(prompt, list) else server.tokenizer.encode(prompt or "<|endoftext|>")
    text = server.tokenizer.decode(prompt) if isinstance(prompt, list) else prompt
    drawn = server.alone(text, max_tokens, 4) if max_tokens else []
    if isinstance(prompt, list):
        assert server.tokenizer.encode(text) == prompt
    (choice,) = found.choices
    assert (choice.finish_reason, len(drawn)) == ("length", max_tokens)
    assert choice.text == text + server.tokenizer.decode(drawn)
    assert found.usage.prompt_tokens == len(ids)
    given = choice.logprobs
    lists = (given.tokens, given.token_logprobs, given.top_logprobs, given.text_offset)
    assert [len(each) for each in lists] == [len(ids) + max_tokens] * 4
    assert (given.token_logprobs[0], given.top_logprobs[0]) == (None, None)
    whole = ids + drawn
    scores = server.model(torch.tensor(whole))[:, : server.tokenizer.vocab_size].log_softmax(-1)
    for place, token_id in enumerate(whole[1:]):
        assert given.token_logprobs[place + 1] == pytest.approx(scores[place, token_id].item(), abs=1e-4)
        expected = scores[place].topk(2).values.tolist()
        top = given.top_logprobs[place + 1]
        assert list(top.values())[:2] == pytest.approx(expected, abs=1e-4)
        assert top[given.tokens[place + 1]] == given.token_logprobs[place + 1]
    begun = offsets(server.tokenizer, ids, 0)
    assert given.text_offset == begun + offsets(server.tokenizer, drawn, len(text))


def offsets(tokenizer, ids, start):
    """The character, counted from start, that each token's first byte belongs to: the last of the text up to there."""
    data = tokenizer.decode_bytes(ids)
    begins = [len(tokenizer.decode_bytes(ids[:place])) for place in range(len(ids))]
    return [start + len(data[: begin + 1].decode(errors="replace")) - 1 for begin in begins]


def test_a_prompt_is_scored_as_well_where_the_text_ends_at_once(server):
    """Who cuts off the one token that was asked for, as lm-eval does, must find one."""
    ids, end = server.tokenizer.encode("Tom saw"), server.tokenizer.end_of_text_id
    logits = server.model(torch.tensor([ids]))[:, -1, : server.tokenizer.vocab_size].detach()
    drawn = (draw(logits, Sampling(1.0, None, 1.0), [ids], [torch.Generator().manual_seed(i)]) for i in range(10_000))
    seed = next(seed for seed, (token_id,) in enumerate(drawn) if token_id == end)
    _, answer, _ = server.post({"prompt": "Tom saw", "max_tokens": 1, **ECHO, "seed": seed})
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Tom saw", "stop")
    assert choice["logprobs"]["tokens"][-1] == "<|endoftext|>"
    assert [len(each) for each in choice["logprobs"].values()] == [len(ids) + 1] * 4


def test_the_end_of_a_text_and_stop_strings_in_log_probabilities(server):
    """The end is listed, as it has been drawn; what a stop string has cut off is not. A stream lists the same."""
    seed = next(seed for seed in range(1000) if len(server.alone("Tom", 40, seed)) < 40)
    ids = server.alone("Tom", 40, seed)
    settings = {"prompt": "Tom", "max_tokens": 40, "seed": seed, "logprobs": 1}
    _, answer, _ = server.post(settings)
    (choice,) = answer["choices"]
    assert choice["logprobs"]["tokens"][-1] == "<|endoftext|>"
    assert choice["logprobs"]["text_offset"][-1] == len(choice["text"])
    assert len(choice["logprobs"]["tokens"]) == len(ids) + 1 == answer["usage"]["completion_tokens"] + 1
    long = server.alone("Tom", 40, server.long_seed())
    text = server.tokenizer.decode(long)
    for stop in (text[11:14], text[0], text[20:22]):
        settings = {"prompt": "Tom", "max_tokens": 40, "seed": server.long_seed(), "logprobs": 1, "stop": stop}
        _, answer, _ = server.post(settings)
        (choice,) = answer["choices"]
        listed, cut = choice["logprobs"], text.find(stop)
        assert choice["text"] == text[:cut]
        assert all(offset < cut for offset in listed["text_offset"])
        beyond = server.tokenizer.decode(long[: len(listed["tokens"])])
        assert len(beyond) >= cut  # all of the text is listed
        chunks = list(server.client().completions.create(model="tiny", stream=True, **settings))
        for name in listed:
            assert [each for chunk in chunks for each in getattr(chunk.choices[0].logprobs, name)] == listed[name]
        assert "".join(chunk.choices[0].text for chunk in chunks) == choice["text"]


def test_a_stream_echoes_the_prompt_with_its_scores(server):
    settings = {"prompt": "Tom saw", "max_tokens": 6, **ECHO}
    whole = server.client().completions.create(**settings).choices[0]
    chunks = [chunk.choices[0] for chunk in server.client().completions.create(**settings, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [each for chunk in chunks for each in getattr(chunk.logprobs, name)] == getattr(whole.logprobs, name)


def test_a_prompt_longer_than_the_context_is_said_to_be(server):
    prompt = "The cat saw a red ball. " * 9
    length = len(server.tokenizer.encode(prompt))
    _, answer, _ = server.post({"prompt": ["Tom", prompt], "max_tokens": 2, "seed": 7})
    assert (
        answer["notice"] == f"the prompt has {length} tokens, and the model sees 32 at once: only the last 16 were read"
    )
    assert "notice" not in server.post({"prompt": "Tom", "max_tokens": 2})[1]
    status, answer, _ = server.post({"prompt": prompt, "echo": True, "logprobs": 0})
    assert (status, "at most 32, the model's context_length" in answer["error"]["message"]) == (400, True)


def test_several_prompts_and_copies_stops_and_echo(server):
    prompts = ["Tom", server.tokenizer.encode("The cat")]
    for prompt in (prompts, ["Tom", "The cat"]):
        if prompt is prompts:
            status, answer, _ = server.post({"prompt": [prompts[1], prompts[1]], "max_tokens": 9, "seed": 4})
            texts = [server.tokenizer.decode(server.alone("The cat", 9, seed)) for seed in (4, 5)]
            assert [choice["text"] for choice in answer["choices"]] == texts
            continue
        status, answer, _ = server.post({"prompt": prompt, "n": 2, "max_tokens": 9, "seed": 4, "echo": True})
        assert status == 200
        expected = [
            each + server.tokenizer.decode(server.alone(each, 9, 4 + 2 * number + copy))
            for number, each in enumerate(prompt)
            for copy in range(2)
        ]
        assert [choice["text"] for choice in answer["choices"]] == expected
        assert answer["usage"]["prompt_tokens"] == sum(len(server.tokenizer.encode(each)) for each in prompt)
    text = server.tokenizer.decode(server.alone("Tom", 40, 4))
    stop = text[11:13]
    _, answer, _ = server.post({"prompt": "Tom", "max_tokens": 40, "seed": 4, "stop": ["never!", stop]})
    assert answer["choices"][0]["text"] == text[: text.find(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert server.until(running=0)


def test_32_clients_at_once_and_none_lost(server):
    """Half of them stream; 4 rows for 32 texts."""

    def ask(number: int) -> tuple[str, str]:
        settings = {"model": "tiny", "prompt": f"Tom {number}", "max_tokens": 12 + number % 9, "seed": number}
        found = server.client().completions.create(**settings, stream=bool(number % 2))
        text = "".join(chunk.choices[0].text for chunk in found) if number % 2 else found.choices[0].text
        return text, server.tokenizer.decode(server.alone(settings["prompt"], settings["max_tokens"], number))

    with ThreadPoolExecutor(32) as pool:
        pairs = list(pool.map(ask, range(32)))
    assert len(pairs) == 32
    for found, expected in pairs:
        assert found == expected
    assert server.until(running=0, waiting=0)


def test_a_choice_that_a_stop_string_has_ended_is_over(server):
    """Each ends once, is billed for its own tokens, and leaves its slot to others."""
    seeds = [seed for seed in range(200) if len(server.alone("Tom", 40, seed)) == 40][:1]
    seeds = [seeds[0] - 1, *seeds] if seeds[0] else [0, 1]
    text = server.tokenizer.decode(server.alone("Tom", 40, seeds[0]))
    settings = {"model": "tiny", "prompt": "Tom", "max_tokens": 40, "stop": text[2]}
    alone = [server.post({**settings, "seed": seed})[1] for seed in seeds]
    together = {**settings, "seed": seeds[0], "n": 2}
    _, answer, _ = server.post(together)
    assert [choice["text"] for choice in answer["choices"]] == [each["choices"][0]["text"] for each in alone]
    tokens = sum(each["usage"]["completion_tokens"] for each in alone)
    assert answer["usage"]["completion_tokens"] == tokens
    chunks = list(server.client().completions.create(**together, stream=True, stream_options={"include_usage": True}))
    ends = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(ends) == [0, 1]
    assert chunks[-1].usage.completion_tokens == tokens
    assert server.until(running=0)
