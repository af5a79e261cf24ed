"""Proves that what is exported is the same model: transformers' Llama on its logits and its greedy text, the tokenizer
on thousands of strings, and a GGUF file read back number by number; and that what is no Llama is refused."""

import json
import os
import random
import re
import shutil
from pathlib import Path
from unittest import mock

import gguf
import numpy as np
import pytest
import torch
import transformers
from helpers.foreign_models import LARGEST
from helpers.models import VARIANTS, save_run
from safetensors.torch import load_file

from lm.commands.export import FORMATS
from lm.generation.sampling import Sampling
from lm.generation.writer import generate
from lm.interchange.gguf import add_tokenizer
from lm.interchange.llama import half_split
from lm.interchange.model_card import CARD
from lm.runs.checkpoint import load_checkpoint, load_model, save_checkpoint
from lm.runs.folder import BEST, TOKENIZER
from tokenization import InputError, Tokenizer
from tokenization.pretokenization import PATTERNS


@pytest.fixture(scope="module", params=VARIANTS)
def exported(request, lm, token_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    model = save_run(folder / "run", token_data, **VARIANTS[request.param])
    done = lm("export", folder / "run", "--output", folder / "hf")
    assert (done.code, done.err) == (0, "")
    return model, folder


@torch.inference_mode()
def test_transformers_sees_the_same_model(exported):
    model, folder = exported
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder / "hf", local_files_only=True)
    token_ids = torch.randint(320, (3, 32), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(theirs(token_ids).logits, model(token_ids), rtol=1e-5, atol=1e-5)
    padding = 2 * (model.token_embeddings.weight.shape[0] - 320) * 64  # rows that no token has
    assert theirs.num_parameters() == model.num_parameters() - padding
    prompt = token_ids[0, :5].tolist()
    ours = list(generate(model, prompt, 20, Sampling(temperature=0)))
    settings = {"eos_token_id": None, "do_sample": False, "max_new_tokens": 20}
    written = theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, 5, dtype=torch.long), **settings)
    assert written[0, 5:].tolist() == ours


def test_the_rows_must_change_places(exported):
    """The comparison above can fail: without it, the logits are others."""
    model, folder = exported
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder / "hf", local_files_only=True)
    for layer, ours in zip(theirs.model.layers, model.layers, strict=True):
        layer.self_attn.q_proj.weight.data = ours.attn.q_proj.weight.data
    token_ids = torch.arange(32)[None]
    with torch.inference_mode():
        assert (theirs(token_ids).logits[..., :320] - model(token_ids)).abs().max() > 0.01
    rows = half_split(torch.arange(8.0)[:, None].expand(8, 8), 2)[:, 0]
    assert rows.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_tokenizer_is_the_same(exported, token_data, random_text):
    """Each variant of the model exports the same tokenizer, and is tried on texts of its own."""
    _, folder = exported
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "hf", local_files_only=True)
    ours, rng = Tokenizer.load(token_data / "tok"), random.Random(folder.name)
    for _ in range(1000):
        text = random_text(rng.randrange(1 << 32)) + rng.choice(["", "<|endoftext|>", "Tom saw a red ball"])
        token_ids = ours.encode(text)
        assert theirs.encode(text) == token_ids
        assert theirs.decode(token_ids) == ours.decode(token_ids)
    assert theirs.eos_token_id == ours.end_of_text_id


def test_gguf_without_an_end_of_text_ends_at_no_word(token_data):
    """llama.cpp takes token 11 where no other is named; a row without a token is never written."""
    whole = Tokenizer.load(token_data / "tok")
    tokenizer = Tokenizer(whole.vocab, whole.merges)
    with pytest.raises(InputError, match=r"has no <\|endoftext\|>, and llama.cpp would end every text at token 11"):
        add_tokenizer(mock.Mock(), tokenizer, tokenizer.vocab_size)
    writer = mock.Mock()
    add_tokenizer(writer, tokenizer, tokenizer.vocab_size + 2)
    writer.add_eos_token_id.assert_called_once_with(tokenizer.vocab_size)
    writer.add_bos_token_id.assert_called_once_with(tokenizer.vocab_size)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0), ("fp16", 1e-3), ("q8_0", 2e-2)])
def test_gguf_read_back(exported, lm, dtype, tolerance, tmp_path):
    """llama.cpp turns neighbouring features, as we do: its rows are ours."""
    model, folder = exported
    done = lm("export", folder / "run", "--format=gguf", "--dtype", dtype, "--output", tmp_path / "m.gguf")
    assert (done.code, done.err) == (0, "")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["llama.context_length"] == 32
    assert ("general.quantization_version" in fields) == (dtype == "q8_0")
    assert (fields["llama.block_count"], fields["llama.attention.head_count"]) == (2, 4)
    assert fields["llama.rope.freq_base"] == 500
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == model.vocab_size
    ours = Tokenizer.load(folder / "run" / TOKENIZER)
    assert tokens[ours.end_of_text_id] == "<|endoftext|>"
    assert fields["tokenizer.ggml.token_type"][ours.end_of_text_id] == gguf.TokenType.CONTROL
    assert len(fields["tokenizer.ggml.merges"]) == len(ours.merges)
    tensors = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    tied = model.token_embeddings.weight is model.lm_head.weight
    assert len(tensors) == len(model.state_dict()) - tied
    expected = {
        "token_embd": model.token_embeddings.weight,
        "blk.1.attn_q": model.layers[1].attn.q_proj.weight,
        "blk.0.ffn_gate": model.layers[0].ffn.w1.weight,
        "blk.0.ffn_up": model.layers[0].ffn.w3.weight,
        "blk.1.ffn_norm": model.layers[1].ln2.weight,
    }
    for name, parameter in expected.items():
        weight = parameter.detach().numpy()
        weight = weight[:320] if name == "token_embd" else weight
        assert tensors[f"{name}.weight"].shape == weight.shape
        np.testing.assert_allclose(tensors[f"{name}.weight"], weight, rtol=0, atol=tolerance * np.abs(weight).max())


def test_rows_that_the_tokenizer_has_no_token_for(lm, token_data, tmp_path):
    """A model that was made for more tokens than there are."""
    save_run(tmp_path / "run", token_data, vocab_size=330)
    assert lm("export", tmp_path / "run", "--format=gguf", "--output", tmp_path / "m.gguf").code == 0
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[320:] == [f"[PAD{token_id}]" for token_id in range(320, 330)]
    assert fields["tokenizer.ggml.token_type"].contents()[320:] == [gguf.TokenType.UNUSED] * 10


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_parameters_that_are_told_are_those_that_are_written(variant, lm, token_data, tmp_path):
    save_run(tmp_path / "run", token_data, **VARIANTS[variant])
    told = {kind: lm("export", tmp_path / "run", "--format", kind, "--output", tmp_path / kind).out for kind in FORMATS}
    written = {
        "hf": transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").num_parameters(),
        "gguf": sum(int(np.prod(tensor.shape)) for tensor in gguf.GGUFReader(tmp_path / "gguf").tensors),
        "safetensors": load_model(tmp_path / "run" / BEST).num_parameters(),  # and what is shared twice
    }
    for kind, number in written.items():
        assert f": {number:,} parameters, fp32" in told[kind]
    card = (tmp_path / "hf" / CARD).read_text()
    assert f"| parameters | {written['hf']:,}, in fp32 |" in card
    assert f"A language model of {written['hf']:,} parameters." in card


def test_names_that_are_not_utf8_or_not_one_line(lm, token_data, tmp_path):
    run = Path(os.fsdecode(bytes(tmp_path) + b"/r\xff|x\n# y"))
    save_run(run, token_data)
    for kind in FORMATS:
        done = lm(
            "export", run, "--format", kind, "--output", Path(os.fsdecode(bytes(tmp_path) + b"/z\xff" + kind.encode()))
        )
        assert (done.code, done.err) == (0, "")
    (card,) = tmp_path.glob(f"*hf/{CARD}")
    assert re.findall("^#+ .*", card.read_text(), flags=re.MULTILINE)[1] == "# r\ufffd|x # y"


def test_a_special_token_that_hugging_face_decodes_as_bytes_is_named(lm, token_data, tmp_path):
    save_run(tmp_path / "run", token_data, vocab_size=330)
    small = Tokenizer.load(token_data / "tok")
    Tokenizer(small.vocab, small.merges, [*small.special_tokens, "<|d\xe9but|>"]).save(tmp_path / "tok")
    shutil.rmtree(tmp_path / "run" / TOKENIZER)
    shutil.copytree(tmp_path / "tok", tmp_path / "run" / TOKENIZER)
    save_checkpoint(load_checkpoint(tmp_path / "run" / BEST), tmp_path / "run" / BEST)
    shown = lm("export", tmp_path / "run", "--output", tmp_path / "hf")
    assert "'<|d\xe9but|>' its id, but decodes that to the bytes b'<|d\\xe9but|>'" in shown.out


def test_our_own_names_and_half_precision(exported, lm, tmp_path):
    model, folder = exported
    path = tmp_path / "m.safetensors"
    assert lm("export", folder / "run", "--format=safetensors", "--dtype=bf16", "--output", path).code == 0
    weights = load_file(path)
    assert weights.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weights[name], weight.bfloat16())
    assert lm("export", folder / "run", "--dtype=bf16", "--output", tmp_path / "hf").code == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


@torch.inference_mode()
def test_texts_of_different_lengths_are_padded(exported):
    """In one batch, padded on the left, each has the logits that it has alone."""
    model, folder = exported
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf", local_files_only=True, padding_side="left")
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder / "hf", local_files_only=True)
    texts = ["Tom", "Tom saw a red ball.", "the"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert batch["attention_mask"].min() == 0
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    logits = theirs(**batch, position_ids=positions).logits
    ours = Tokenizer.load(folder / "run" / TOKENIZER)
    for text, row in zip(texts, logits, strict=True):
        token_ids = torch.tensor([ours.encode(text)])
        torch.testing.assert_close(row[-1], model(token_ids)[0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("command", ["generate", "test", "export"])
def test_a_tokenizer_with_more_tokens_than_the_model_has_rows(command, lm, token_data, tmp_path):
    save_run(tmp_path / "run", token_data, vocab_size=100)
    more = {"generate": [], "test": [token_data / "valid.bin"], "export": ["--output", tmp_path / "hf"]}
    done = lm(command, tmp_path / "run", *more[command])
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "has 320 tokens, but the model in" in done.err
    assert not (tmp_path / "hf").exists()


PATTERNS_TO_EXPORT = {**PATTERNS, "own": r"\p{L}+|\d|\s+|[^\p{L}\d\s]+", "with gaps": r"\p{L}+"}


@pytest.mark.parametrize("name", PATTERNS_TO_EXPORT)
def test_another_pattern_gives_the_same_ids_in_transformers(name, lm, token_data, random_text, tmp_path):
    save_run(tmp_path / "run", token_data)
    trained = Tokenizer.load(token_data / "tok")
    ours = Tokenizer(trained.vocab, trained.merges, trained.special_tokens, PATTERNS_TO_EXPORT[name])
    ours.save(tmp_path / "run" / TOKENIZER)
    checkpoint = load_checkpoint(tmp_path / "run" / BEST)
    save_checkpoint(checkpoint, tmp_path / "run" / BEST)  # whose manifest knows the tokenizer beside it
    assert lm("export", tmp_path / "run", "--output", tmp_path / "hf").code == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    for seed in range(300):
        text = random_text(seed) + "In 1999 there was<|endoftext|> a red ball"
        assert theirs.encode(text) == ours.encode(text)
        assert ours.decode(theirs.encode(text)) == text
    padded = theirs(["Tom", "Tom saw a red ball."], padding=True)["input_ids"]
    assert padded[0][-1] == ours.end_of_text_id
    assert len(padded[0]) == len(padded[1])


SMALLER = [(kind, dtype) for kind, form in FORMATS.items() for dtype in form.dtypes if dtype != "fp32"]


@pytest.mark.parametrize(("kind", "dtype"), SMALLER)
@pytest.mark.parametrize("size", [1e5, 3.4e38])
def test_a_weight_beyond_the_dtype_is_refused(kind, dtype, size, lm, token_data, tmp_path):
    model = save_run(tmp_path / "run", token_data)
    model.layers[1].ffn.w3.weight.data[5, 7] = size
    checkpoint = load_checkpoint(tmp_path / "run" / BEST)
    checkpoint["state_dict"] = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    save_checkpoint(checkpoint, tmp_path / "run" / BEST)
    done = lm("export", tmp_path / "run", "--format", kind, "--dtype", dtype, "--output", tmp_path / "new/out")
    if size <= LARGEST[dtype]:
        assert (done.code, done.err) == (0, "")
        return
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"--dtype {dtype}: cannot hold" in done.err
    assert f"whose values reach {size:.4g}" in done.err
    assert not (tmp_path / "new/out").exists()
    if size > 1e38:  # the remedy, in the same place
        done = lm("export", tmp_path / "run", "--format", kind, "--output", tmp_path / "new/out")
        assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_has_a_model_card(kind, lm, token_data, tmp_path):
    save_run(tmp_path / "run", token_data)
    assert lm("export", tmp_path / "run", "--format", kind, "--output", tmp_path / "out").code == 0
    assert (tmp_path / "out" / CARD).is_file() == (tmp_path / "out").is_dir() == (FORMATS[kind].card is not None)


def test_the_help_shows_every_format(lm):
    shown = " ".join(lm("export", "--help").out.split())
    for kind, form in FORMATS.items():
        assert "fp32" in form.dtypes, f"{kind}: needs fp32, the default of --dtype"
        assert form.examples, f"{kind}: no example for the help in lm/commands/export.py"
        for arguments, words in form.examples.items():
            assert words
            assert f"--format {kind} {arguments} {words}" in shown
        assert f"for {kind} {', '.join(form.dtypes)}" in shown


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"norm_position": "post"}, "norm_position post, only pre"),
        ({"norm_position": "none"}, "norm_position none, only pre"),
        ({"position_encoding": "none"}, "position_encoding none, only rope"),
        ({"feed_forward": "silu"}, "feed_forward silu, only swiglu"),
        ({"qk_norm": True}, "qk_norm True, only False"),
    ],
)
def test_what_is_no_llama_is_refused(settings, reason, lm, token_data, tmp_path):
    save_run(tmp_path / "run", token_data, **settings)
    for kind in ("hf", "gguf"):
        done = lm("export", tmp_path / "run", "--format", kind, "--output", tmp_path / "out")
        assert done.code == 2
        assert reason in done.err
        assert done.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert lm("export", tmp_path / "run", "--format=safetensors", "--output", tmp_path / "out").code == 0


def test_wrong_inputs(exported, lm, tmp_path):
    _, folder = exported
    for arguments, words in {
        ("no-such-run", "--output", tmp_path / "a"): "no such checkpoint",
        (folder / "run", "--output", folder / "hf"): "exists already",
        (folder / "run", "--output", tmp_path / "a", "--dtype=int3"): "it can be fp32, bf16, fp16",
        (folder / "run", "--output", tmp_path / "a", "--format=gguf", "--dtype=bf16"): "it can be fp32, fp16, q8_0",
    }.items():
        done = lm("export", *arguments)
        assert done.code == 2
        assert words in done.err
    assert not list(tmp_path.iterdir())
