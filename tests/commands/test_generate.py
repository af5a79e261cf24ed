"""Proves what `lm generate` makes of files of prompts, stop strings and log-probabilities, that its JSON lines say what
was written, and that the conversation of --interactive is one text."""

import io
import json
import os
import random
import re
import subprocess
import sys

import pytest
import torch
from helpers.models import save_run

from lm.generation.sampling import Sampling
from lm.generation.writer import Writer, generate
from lm.runs.checkpoint import load_model, load_tokenizer
from lm.runs.folder import BEST
from tokenization import Tokenizer

SETTINGS = ("--temperature=1", "--top-p=1")


def records(result) -> list[dict]:
    assert (result.code, "Traceback" in result.err) == (0, False)
    return [json.loads(line) for line in result.out.splitlines()]


def test_json_lines_of_a_file(saved_run, lm, tmp_path):
    """In order, each what it would be alone, whatever the batch and the form of the file."""
    prompts = ["Tom", "The cat saw", ' "quoted" ', "日本", "A little girl"]
    (tmp_path / "a.txt").write_text("\n\n".join(prompts) + "\n", encoding="utf-8")
    lines = [json.dumps({"prompt": prompt, "id": 3}) for prompt in prompts]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    arguments = ("generate", saved_run, "--json", "--max-new-tokens=12", "--seed=5", *SETTINGS)
    found = records(lm(*arguments, "--prompts", tmp_path / "a.txt", "--batch-size=2"))
    assert found == records(lm(*arguments, "--prompts", tmp_path / "a.jsonl", "--batch-size=9"))
    model, tokenizer = load_model(saved_run / BEST), load_tokenizer(saved_run / BEST)
    for number, (record, prompt) in enumerate(zip(found, prompts, strict=True)):
        ids = list(
            generate(
                model,
                tokenizer.encode(prompt),
                12,
                Sampling(1.0, None, 1.0),
                5 + number,
                tokenizer.end_of_text_id,
                tokenizer.vocab_size,
            )
        )
        assert record == {
            "prompt": prompt,
            "text": tokenizer.decode(ids),
            "finish_reason": "length" if len(ids) == 12 else "stop",
            "tokens": len(ids),
            "seed": 5 + number,
        }


def test_stop_strings_end_the_text_before_them(saved_run, lm):
    arguments = (
        "generate",
        saved_run,
        "--json",
        "--max-new-tokens=40",
        *SETTINGS,
        *(f"--prompt=The cat {i}" for i in range(6)),
    )
    free = records(lm(*arguments))
    texts = [record["text"] for record in free]
    rng = random.Random(0)
    stops = [texts[0][7:9], rng.choice(texts[1][1:]), "never there, this"]
    stopped = records(lm(*arguments, *(f"--stop={stop}" for stop in stops)))
    ended = 0
    for record, text in zip(stopped, texts, strict=True):
        ends = [text.find(stop) for stop in stops if stop in text]
        assert record["text"] == (text[: min(ends)] if ends else text)
        assert not ends or record["finish_reason"] == "stop"
        ended += bool(ends)
    assert ended >= 2
    shown = lm("generate", saved_run, "--prompt=The cat 0", "--max-new-tokens=40", *SETTINGS, f"--stop={stops[0]}")
    assert shown.out == f"The cat 0{texts[0][: texts[0].find(stops[0])]}\n"


@torch.inference_mode()
def test_log_probabilities(saved_run, lm):
    arguments = ("generate", saved_run, "--json", "--prompt=The cat", "--max-new-tokens=6", *SETTINGS)
    (record,) = records(lm(*arguments, "--logprobs=2"))
    model, tokenizer = load_model(saved_run / BEST), load_tokenizer(saved_run / BEST)
    ids = tokenizer.encode("The cat")
    drawn = list(generate(model, ids, 6, Sampling(1.0, None, 1.0), 0, tokenizer.end_of_text_id, tokenizer.vocab_size))
    scores = model(torch.tensor(ids + drawn))[:, : tokenizer.vocab_size].log_softmax(-1)[len(ids) - 1 :]
    assert len(record["logprobs"]) == len(drawn) == record["tokens"]
    for each, token_id, expected in zip(record["logprobs"], drawn, scores, strict=False):
        assert each["logprob"] == pytest.approx(expected[token_id].item(), abs=1e-4)
        data = tokenizer.decode_bytes([token_id])
        assert each["token"] == (data.decode() if data.isascii() else "bytes:" + "".join(f"\\x{b:02x}" for b in data))
        assert list(each["top"].values()) == pytest.approx(expected.topk(2).values.tolist(), abs=1e-4)
    (bare,) = records(lm(*arguments, "--logprobs=0"))
    assert [each.keys() for each in bare["logprobs"]] == [{"token", "logprob"}] * len(drawn)


def test_wrong_wishes(saved_run, lm, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bytes.txt").write_bytes(b"abc\xff")
    (tmp_path / "wrong.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    (tmp_path / "lone.jsonl").write_text('{"prompt": "\\udc00"}\n')
    for arguments, words in {
        ("--prompts", tmp_path / "none.txt"): "none.txt: No such file",
        ("--prompts", tmp_path / "empty.txt"): "has no prompt",
        ("--prompts", tmp_path / "bytes.txt"): "byte 3 is not UTF-8",
        ("--prompts", tmp_path / "wrong.jsonl"): "wrong.jsonl, line 2",
        ("--prompts", tmp_path / "lone.jsonl"): "lone.jsonl, line 1",
        ("--prompts", tmp_path / "wrong.jsonl", "--prompt=a"): "--prompt and --prompts",
        ("--logprobs=3",): "needs --json",
        ("--logprobs=-1", "--json"): "--logprobs -1",
        ("--batch-size=0",): "--batch-size 0",
        ("--stop=",): "an empty stop string",
        ("--interactive", "--json"): "--interactive: prompts are typed",
    }.items():
        result = lm("generate", saved_run, *arguments)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert words in result.err


def test_a_strangers_pattern_that_backtracks_for_ever_is_stopped(lm, tmp_path, token_data, monkeypatch):
    monkeypatch.setattr("tokenization.pretokenization.PATTERN_SECONDS", 0.05)
    ours = Tokenizer.load(token_data / "tok")
    Tokenizer(ours.vocab, ours.merges, ours.special_tokens, "(a|aa)+$").save(tmp_path / "tok")
    save_run(tmp_path / "run", tmp_path)
    result = lm("generate", tmp_path / "run" / BEST, "--prompt", "a" * 60 + "!")
    assert result.code == 2
    assert re.fullmatch(r"lm generate: the split pattern .* backtracks in the text .*\n", result.err)


def converse(lm, saved_run, monkeypatch, *lines: str, more=()) -> tuple[str, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    result = lm("generate", saved_run, "--interactive", "--max-new-tokens=5", *SETTINGS, *more)
    assert result.code == 0
    return result.out, result.err


def test_a_conversation_is_one_text(saved_run, lm, monkeypatch):
    """What is typed and what is written, one after the other; /again takes the last of it back."""
    out, err = converse(lm, saved_run, monkeypatch, "Tom saw", " and then", "/again", "", "/new", "A", "/quit", "never")
    assert err == ""
    model, tokenizer = load_model(saved_run / BEST), load_tokenizer(saved_run / BEST)

    def answer(text: str, seed: int) -> str:
        settings = {"stop_id": tokenizer.end_of_text_id, "vocab_size": tokenizer.vocab_size}
        return tokenizer.decode(generate(model, tokenizer.encode(text), 5, Sampling(1.0, None, 1.0), seed, **settings))

    first = answer("Tom saw", 0)
    begun = f"Tom saw{first} and then"
    second, third = answer(begun, 1), answer(begun, 2)
    assert second != third
    fourth = answer(begun + third, 3)
    assert out == "".join(f"{line}\n" for line in (first, second, begun + third, fourth, answer("A", 4)))


def test_what_is_typed_while_the_model_writes_is_no_part_of_the_story(saved_run, lm, monkeypatch):
    """In a terminal it is neither shown nor read; what is typed when it is asked for is."""
    lines = ["Tom saw", " and then", "/quit"]
    expected, _ = converse(lm, saved_run, monkeypatch, *lines)
    keyboard, terminal = pytest.importorskip("pty").openpty()
    asked, step, meanwhile, shown = iter(lines), Writer.step, iter(["not this\n", "nor this"]), ""

    def type_when_asked(prompt):
        nonlocal shown
        os.write(keyboard, f"{next(asked)}\n".encode())
        shown += os.read(keyboard, 10_000).decode()
        print(prompt, end="")
        return sys.stdin.readline().removesuffix("\n")

    def type_meanwhile(writer):
        os.write(keyboard, next(meanwhile, "").encode())
        return step(writer)

    monkeypatch.setattr("builtins.input", type_when_asked)
    monkeypatch.setattr(Writer, "step", type_meanwhile)
    with open(terminal, encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        result = lm("generate", saved_run, "--interactive", "--max-new-tokens=5", *SETTINGS)
    os.close(keyboard)
    assert result.code == 0
    assert result.out.replace("> ", "").partition("\n")[2] == expected  # below the greeting
    assert shown == "".join(f"{line}\r\n" for line in lines)


def test_settings_in_a_conversation(saved_run, lm, monkeypatch):
    greedy, _ = converse(lm, saved_run, monkeypatch, "Tom saw", more=("--temperature=0",))
    settings = ("/temperature 0", "/max_new_tokens 5", "/seed 9", "/top_k 1", "/top_k none")
    out, err = converse(lm, saved_run, monkeypatch, *settings, "Tom saw")
    assert (out, err) == (greedy, "")
    wrong = ["/temperature -1", "/top_k 1_0", "/seed -2", "/max_new_tokens 0", "/colour blue", "/seed", "/top_p 2"]
    out, err = converse(lm, saved_run, monkeypatch, "/temperature 0", *wrong, "Tom saw")
    assert out == greedy
    assert [line.split()[0].strip(":") for line in err.splitlines()] == [
        "temperature",
        *("/top_k", "/seed", "/max_new_tokens", "/colour", "/seed", "top_p"),
    ]
    out, _ = converse(lm, saved_run, monkeypatch, "/help")
    assert "/again" in out


def test_prompts_from_the_standard_input(saved_run, fork_server):
    command = [
        fork_server.python,
        "-m",
        "lm",
        "generate",
        str(saved_run),
        "--prompts=-",
        "--json",
        "--max-new-tokens=3",
    ]
    done = subprocess.run(command, input="Tom\nA dog\n", capture_output=True, text=True)
    assert done.returncode == 0
    assert [json.loads(line)["prompt"] for line in done.stdout.splitlines()] == ["Tom", "A dog"]
