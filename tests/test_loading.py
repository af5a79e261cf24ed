"""Proves that lm.load gives the model that the commands use: the same words for a seed, and the same scores; and that
what it refuses costs one line."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from helpers.models import save_run
from torch.nn import functional as F

from lm.generation.conversation import Conversation
from lm.generation.sampling import Sampling
from lm.generation.writer import PRECISIONS, generate
from lm.loading import SamplingSettings, TrainedModel, load
from lm.runs.checkpoint import load_model
from lm.runs.folder import BEST, TOKENIZER
from tokenization import InputError, Tokenizer

STORY = "Tom saw a red ball in the park.<|endoftext|>The cat lost some cake."


@pytest.fixture(scope="module")
def trained(saved_run) -> TrainedModel:
    return load(saved_run, device="cpu")


def test_a_folder_stands_for_its_best_checkpoint(saved_run, trained):
    again = load(saved_run / BEST)
    assert again.checkpoint == trained.checkpoint == saved_run / BEST
    assert trained.tokenizer.digest == Tokenizer.load(saved_run / TOKENIZER).digest
    assert all(
        map(torch.equal, trained.model.state_dict().values(), load_model(saved_run / BEST).state_dict().values())
    )
    assert again.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_its_repr_says_what_it_is(saved_run, trained):
    parameters = sum(weight.numel() for weight in load_model(saved_run / BEST).parameters())
    assert repr(trained) == (
        f"<TrainedModel {saved_run / BEST}: step 3, {parameters:,} parameters, vocab_size 320, context_length 32,"
        " fp32 on cpu>"
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_writes_what_the_command_prints(saved_run, lm, precision):
    drawn = {"temperature": 0.9, "top_k": 40, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 3}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in drawn.items()]
    arguments = (
        "generate",
        saved_run,
        "--device=cpu",
        "--prompt=The cat",
        "--max-new-tokens=40",
        f"--precision={precision}",
    )
    text = load(saved_run, "cpu", precision).generate("The cat", max_new_tokens=40, **drawn)
    assert text.startswith("The cat")
    assert lm(*arguments, *options).out == f"{text}\n"


def test_several_prompts_are_the_commands_json_lines(saved_run, trained, lm):
    """Prompt by prompt, each with the next seed; more of them than are written at once, and one that is empty."""
    prompts = ["Tom", "The cat saw", "", "日本", "A little girl"]
    options = [f"--prompt={prompt}" for prompt in prompts]
    result = lm("generate", saved_run, "--device=cpu", "--json", "--max-new-tokens=12", "--seed=5", *options)
    expected = [json.loads(line)["text"] for line in result.out.splitlines()]
    assert trained.generate(prompts, 12, seed=5, echo=False, batch_size=2) == expected
    assert trained.generate(prompts, 12, seed=5) == [p + text for p, text in zip(prompts, expected, strict=True)]
    assert trained.generate([]) == []


def test_its_words_are_those_of_generate(trained):
    """Which draws ids from a model without a tokenizer."""
    tokenizer, ids = trained.tokenizer, trained.tokenizer.encode("Once upon a time")
    drawn = generate(trained.model, ids, 20, Sampling(), 7, tokenizer.end_of_text_id, tokenizer.vocab_size)
    assert trained.generate("Once upon a time", 20, seed=7, echo=False) == tokenizer.decode(drawn)


@pytest.mark.parametrize("echo", [True, False])
def test_a_stream_is_the_text_as_it_comes(trained, echo):
    settings = {"max_new_tokens": 30, "temperature": 1.0, "seed": 1, "echo": echo}
    shown = list(trained.stream("The cat", **settings))
    assert "".join(shown) == trained.generate("The cat", **settings)
    assert len(shown) > 10
    assert all(shown)


def test_a_stop_string_ends_a_text_before_it(trained):
    settings = {"max_new_tokens": 40, "temperature": 1.0, "echo": False}
    text = trained.generate("Tom", **settings)
    stop = text[8:10]
    assert trained.generate("Tom", stop=stop, **settings) == text[: text.index(stop)]
    assert trained.generate(["Tom"], stop=["never, there", stop], **settings) == [text[: text.index(stop)]]


def test_sampling_is_declared_to_editors_as_it_is():
    fields = {field.name: field.type for field in dataclasses.fields(Sampling)}
    assert SamplingSettings.__annotations__ == fields


def test_a_score_is_the_mean_over_its_documents(saved_run, trained, lm, tmp_path):
    tokenizer, nats = trained.tokenizer, []
    with torch.no_grad():
        for document in STORY.split("<|endoftext|>"):
            ids = torch.tensor([tokenizer.end_of_text_id, *tokenizer.encode(document)])
            assert len(ids) <= 32  # one window
            nats += F.cross_entropy(load_model(saved_run / BEST)(ids[:-1]), ids[1:], reduction="none").tolist()
    found, size = trained.score(STORY), len(STORY.encode()) - len("<|endoftext|>")
    assert found == {
        "loss": pytest.approx(np.mean(nats), rel=1e-5),
        "perplexity": pytest.approx(math.exp(np.mean(nats)), rel=1e-5),
        "bits_per_byte": pytest.approx(sum(nats) / math.log(2) / size, rel=1e-5),
        "tokens": len(nats),
        "bytes": size,
    }
    (tmp_path / "story.txt").write_text(STORY)
    tokenizer.encode_files([tmp_path / "story.txt"], tmp_path / "story.bin", num_processes=1)
    result = lm("test", saved_run, tmp_path / "story.bin", "--per-document", "--json", "--device=cpu")
    assert json.loads(result.out.splitlines()[-1])["loss"] == pytest.approx(found["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompts": 5}, "prompts are 5"),
        ({"prompts": ["a", 5]}, "prompt 1 is 5; it must be a string"),
        ({"prompts": "\ud800"}, "lone surrogate U\\+D800"),
        ({"max_new_tokens": 0}, "max_new_tokens 0: it must be at least 1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens 1.5: it must be a whole number"),
        ({"max_new_tokens": "3"}, "max_new_tokens '3': it must be a whole number"),
        ({"batch_size": 0}, "batch_size 0: it must be at least 1"),
        ({"batch_size": None}, "batch_size None: it must be a whole number"),
        ({"seed": -1}, "seed -1: it must be at least 0"),
        ({"seed": True}, "seed True: it must be a whole number"),
        ({"temperature": -1.0}, "temperature -1.0: it must be 0"),
        ({"temperature": "1"}, "temperature '1': it must be a number"),
        ({"temperature": None}, "temperature None: it must be a number"),
        ({"top_k": 2.5}, r"top_k 2\.5: it must be a whole number, or None"),
        ({"top_p": True}, "top_p True: it must be a number"),
        ({"stop": ""}, "an empty stop string"),
        ({"stop": None}, "stop None: it must be a string, or a list of strings"),
        ({"stop": b"a"}, "stop b'a': it must be a string"),
        ({"stop": [1]}, r"stop \[1\]: it must be a string"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(trained, settings, words):
    with pytest.raises(InputError, match=words):
        trained.generate(**{"prompts": "Tom"} | settings)


def test_a_stream_refuses_at_once(trained):
    with pytest.raises(InputError, match="top_p 2"):
        trained.stream("Tom", top_p=2)
    with pytest.raises(TypeError, match="'temprature'"):
        trained.generate("Tom", temprature=1.0)


def test_what_cannot_be_loaded_is_refused(saved_run, tmp_path, token_data):
    for arguments, words in (
        ((tmp_path / "nowhere",), "nowhere: no such checkpoint; train with `lm fit`"),
        ((saved_run, "gpu"), "device 'gpu': it can be auto, cpu, cuda, mps"),
        ((saved_run, "cpu", "fp16"), "precision 'fp16': it can be fp32, bf16, int8"),
    ):
        with pytest.raises(InputError, match=words):
            load(*arguments)
    save_run(tmp_path / "run", token_data)
    (tmp_path / "run" / BEST).write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"best\.ckpt: is not a checkpoint of `lm fit`"):
        load(tmp_path / "run")


def test_a_text_without_a_token_has_no_score(trained):
    for text in ("", "<|endoftext|>"):
        with pytest.raises(InputError, match="has no token to predict"):
            trained.score(text)
    for wrong in (None, b"abc"):
        with pytest.raises(InputError, match=f"the text is {wrong}; it must be a string"):
            trained.score(wrong)


def test_a_tokenizer_without_an_end_of_text_begins_no_document(saved_run, trained):
    tokenizer = Tokenizer(trained.tokenizer.vocab, trained.tokenizer.merges)
    with pytest.raises(InputError, match=r"best\.ckpt: its tokenizer has no <\|endoftext\|>"):
        dataclasses.replace(trained, tokenizer=tokenizer).score(STORY)


def test_without_an_end_of_text_an_empty_prompt_is_refused(trained):
    """Its letters would be read as a text, which the model has never seen."""
    tokenizer = Tokenizer(trained.tokenizer.vocab, trained.tokenizer.merges)
    other = dataclasses.replace(trained, tokenizer=tokenizer)
    words = r"the prompt is empty, and the tokenizer has no <\|endoftext\|>"
    with pytest.raises(InputError, match=words):
        other.generate(["Tom", ""], 1)
    conversation = Conversation(other.writer(1), tokenizer, Sampling(), 0, 1, ())
    with pytest.raises(InputError, match=words):
        conversation.go_on()
    with pytest.raises(InputError, match="surrogate"):  # of a terminal whose bytes are no UTF-8
        conversation.go_on("caf\udce9")
    assert conversation.text == ""  # it can go on with other words
    assert other.generate("Tom", 1, temperature=0) == trained.generate("Tom", 1, temperature=0)


@pytest.mark.parametrize("number", [-1, 1.5])
def test_a_text_is_never_endless(trained, number):
    with pytest.raises(InputError, match=f"max_new_tokens {number}"):
        next(generate(trained.model, [1], number, Sampling()))


def test_numbers_of_other_kinds_and_the_last_seed(trained):
    """The text after that of the last seed has a seed of its own."""
    last = (1 << 63) - 1
    texts = trained.generate(["Tom", "Tom"], np.int64(3), seed=last, temperature=np.float32(0.8))
    assert texts[0] == trained.generate("Tom", 3, seed=np.int64(last), temperature=np.float32(0.8))
    with pytest.raises(InputError, match="seed 9223372036854775808: it must be at least 0 and below 2\\^63"):
        trained.generate("Tom", seed=last + 1)
