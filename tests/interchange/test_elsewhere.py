"""Proves, with the other programs themselves, that an exported model is the same there: lm-eval measures the bits per
byte that `lm test` does, and answers multiple choice alike with the export and through `lm serve`; llama.cpp gives the
same scores and tokens. `make test-elsewhere` installs them and runs this; llama.cpp is compiled for it, which takes
cmake, a C++ compiler and a quarter of an hour."""

import json
import random

import numpy as np
import pytest
import torch
from helpers.serving import Running

from lm.runs.checkpoint import load_model
from lm.runs.folder import BEST, TOKENIZER
from tokenization import Tokenizer

pytestmark = pytest.mark.slow

TASK = """
task: stories
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
"""


@pytest.fixture
def exported(lm, saved_run, tmp_path) -> str:
    """The run as a Hugging Face model."""
    assert lm("export", saved_run, "--output", tmp_path / "hf").code == 0
    return str(tmp_path / "hf")


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """evaluate(model, name, task, rows): lm-eval, which has no network, on a task of these rows."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: make test-elsewhere")
    from lm_eval.tasks import TaskManager

    def run(model, name: str, task: str, rows: list[dict]) -> dict:
        folder = tmp_path / "task"
        folder.mkdir(exist_ok=True)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(task.replace("DATA", str(folder / "rows.jsonl")))
        tasks = TaskManager(include_path=str(folder), include_defaults=False)
        return lm_eval.simple_evaluate(model, tasks=[name], task_manager=tasks, bootstrap_iters=0)

    return run


def reader_of(exported: str):
    """lm-eval's own reader of Hugging Face models."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=exported, device="cpu", dtype="float32", batch_size=4)


def test_lm_eval_measures_the_same(lm, evaluate, saved_run, exported, token_data):
    documents = (token_data / "valid.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    rows = [{"text": document} for document in documents]
    found = evaluate(reader_of(exported), "stories", TASK, rows)
    theirs = found["results"]["stories"]["bits_per_byte,none"]
    tested = lm("test", saved_run, token_data / "valid.bin", "--per-document", "--json")
    ours = json.loads(tested.out.splitlines()[-1])
    assert ours["documents"] == len(documents)
    assert ours["tokens"] > 32 * len(documents)  # longer than the context, so that windows roll
    assert theirs == pytest.approx(ours["bits_per_byte"], rel=1e-5)


CHOICE_TASK = """
task: endings
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{begun}}"
doc_to_choice: "{{endings}}"
doc_to_target: right
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


def test_lm_eval_answers_multiple_choice_alike_through_the_server(evaluate, saved_run, exported):
    """Each choice's score, and whether the model would have written it."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    rng, endings = random.Random(0), [" park.", " garden.", " big tree.", " 日本", " Tom liked it"]
    questions = []
    for number in range(60):
        begun = rng.choice(["Tom saw a red ball in the", "The cat", "日本", "Her friend Lily lost"])
        questions.append({"begun": f"{begun}{number}", "endings": rng.sample(endings, 4), "right": rng.randrange(4)})

    def answer(model):
        found = evaluate(model, "endings", CHOICE_TASK, questions)
        samples = sorted(found["samples"]["endings"], key=lambda sample: sample["doc_id"])
        answers = [reply for sample in samples for (reply,) in sample["resps"]]
        return found["results"]["endings"], [float(score) for score, _ in answers], [bool(best) for _, best in answers]

    theirs = answer(reader_of(exported))
    server = Running(load_model(saved_run / BEST), Tokenizer.load(saved_run / TOKENIZER), slots=4)
    try:
        address = f"{server.address}/v1/completions"
        settings = {"base_url": address, "tokenizer": exported, "max_length": 32, "tokenizer_backend": "huggingface"}
        ours = answer(LocalCompletionsAPI(model="tiny", batch_size=4, **settings))
        as_text = answer(LocalCompletionsAPI(model="tiny", tokenized_requests=False, **settings))
    finally:
        server.end()
    for found in (ours, as_text):
        assert len(found[1]) == 4 * len(questions)
        assert found[1] == pytest.approx(theirs[1], abs=1e-3)
        assert found[2] == theirs[2]
        for metric in ("acc,none", "acc_norm,none"):
            assert found[0][metric] == theirs[0][metric]


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0.01), ("fp16", 0.02), ("q8_0", 0.1)])
def test_llama_cpp_gives_the_same_scores_and_tokens(dtype, tolerance, lm, saved_run, tmp_path, random_text):
    """Its cache of keys and values is float16: 3 digits."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make test-elsewhere")
    model = load_model(saved_run / BEST)
    assert lm("export", saved_run, "--format=gguf", "--dtype", dtype, "--output", tmp_path / "m.gguf").code == 0
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=32, logits_all=True, verbose=False)
    token_ids = torch.randint(320, (32,), generator=torch.Generator().manual_seed(1))
    theirs.eval(token_ids.tolist())
    with torch.inference_mode():
        expected = model(token_ids).numpy()
    found = np.array(theirs.scores[:32])
    assert np.abs(found - expected).max() < tolerance * expected.std()
    assert dtype == "q8_0" or (found.argmax(-1) == expected.argmax(-1)).all()
    ours, rng = Tokenizer.load(saved_run / TOKENIZER), random.Random(0)
    for seed in range(500):
        text = random_text(seed).replace("\0", "") + rng.choice(["", "<|endoftext|>", "Tom saw a red ball"])
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == ours.encode(text)
