"""Proves that a Llama that transformers made is the same model as a run of ours, that a run comes back exactly from its
export, that new runs begin with such weights, and that whatever is another model is refused by name."""

import json
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_export import SHAPE, VARIANTS, save_run
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lm.checkpoint import BEST, TOKENIZER, load_checkpoint, load_model
from tokenization import Tokenizer
from tokenization.interchange import export_huggingface


def save_llama(folder, token_data, shards="5GB", **settings) -> LlamaForCausalLM:
    """What transformers itself writes."""
    torch.manual_seed(1)
    config = LlamaConfig(
        **{
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 777.0},
        }
        | settings
    )
    model = LlamaForCausalLM(config)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.2 + (weight.ndim == 1)
    model.save_pretrained(folder, max_shard_size=shards)
    export_huggingface(Tokenizer.load(token_data / "tok"), folder / "tokenizer.json")
    return model


@torch.inference_mode()
@pytest.mark.parametrize(
    "settings", [{}, {"tie_word_embeddings": True}, {"shards": "50KB"}, {"dtype": "bfloat16"}], ids=str
)
def test_a_llama_of_transformers(settings, lm, token_data, tmp_path):
    theirs = save_llama(tmp_path / "hf", token_data, **settings)
    if "dtype" in settings:
        theirs.to(torch.bfloat16).save_pretrained(tmp_path / "hf")
        theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert ("shards" in settings) == (tmp_path / "hf/model.safetensors.index.json").exists()
    done = lm("import", tmp_path / "hf", "--output", tmp_path / "run")
    assert (done.code, done.err) == (0, "")
    ours = load_model(tmp_path / "run" / BEST)
    token_ids = torch.randint(320, (3, 32), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(token_ids), theirs(token_ids).logits, rtol=1e-4, atol=1e-4)
    tied = ours.lm_head.weight is ours.token_embeddings.weight
    assert tied == settings.get("tie_word_embeddings", False)
    text = "Tom saw a red ball.<|endoftext|>"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert Tokenizer.load(tmp_path / "run" / TOKENIZER).encode(text) == tokenizer.encode(text)
    written = lm("generate", tmp_path / "run", "--prompt=Tom", "--max-new-tokens=5")
    assert (written.code, written.err) == (0, "")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_round_trip_is_exact(variant, lm, token_data, tmp_path):
    first = save_run(tmp_path / "run", token_data, **VARIANTS[variant])
    for command, source, target in (("export", "run", "hf"), ("import", "hf", "again"), ("export", "again", "hf2")):
        done = lm(command, tmp_path / source, "--output", tmp_path / target)
        assert (done.code, done.err) == (0, "")
    second = load_model(tmp_path / "again" / BEST)
    token_ids = torch.randint(320, (2, 32), generator=torch.Generator().manual_seed(1))
    for name, weight in second.state_dict().items():
        assert torch.equal(weight, first.state_dict()[name][: len(weight)])
    torch.testing.assert_close(second(token_ids), first(token_ids))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (tmp_path / "hf2" / name).read_bytes()
    tokenizers = [Tokenizer.load(tmp_path / run / TOKENIZER).digest for run in ("run", "again")]
    assert tokenizers[0] == tokenizers[1]


def test_an_imported_run_is_validated_tested_and_trained_on(lm, token_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_llama(tmp_path / "hf", token_data)
    assert lm("import", "hf", "--output", "runs/llama").code == 0
    config = yaml.safe_load((tmp_path / "runs/llama/config.yaml").read_text())
    data = (f"--data.train_path={token_data / 'train.bin'}", f"--data.val_path={token_data / 'valid.bin'}")
    tested = json.loads(lm("test", "runs/llama", token_data / "valid.bin", "--json").out)
    validated = lm("validate", "-c", "runs/llama/config.yaml", "--ckpt_path=runs/llama/best.ckpt", *data)
    assert validated.code == 0
    (loss,) = re.findall(r"val/loss\D+([\d.]+)", validated.out)
    assert float(loss) == pytest.approx(tested["loss"], rel=5e-3)  # without the last tokens, which fill no window
    few = (
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=2",
        "--model.warmup_steps=1",
        "--trainer.enable_progress_bar=false",
    )
    few += ("--trainer.precision=32-true", "--samples.max_new_tokens=0", "--model.learning_rate=1e-3")
    done = lm("fit", "-c", "runs/llama/config.yaml", *few, *data)
    assert (done.code, done.err) == (0, "")
    assert "beginning with the weights of runs/llama/best.ckpt" in done.out
    assert config["trainer"]["default_root_dir"] == "runs/llama-tuned"
    tuned = load_checkpoint(tmp_path / "runs/llama-tuned/last.ckpt")
    weights = load_checkpoint(tmp_path / "runs/llama/best.ckpt")["state_dict"]
    for name, weight in tuned["state_dict"].items():
        if name in weights:
            assert 0 < (weight - weights[name]).abs().max() < 0.01  # four steps away from where it began
    better = json.loads(lm("test", "runs/llama-tuned/last.ckpt", token_data / "valid.bin", "--json").out)
    assert better["loss"] < tested["loss"]
    again = lm(
        "fit", "-c", "runs/llama-tuned/config.yaml", "--ckpt_path=runs/llama-tuned/last.ckpt", "--trainer.max_steps=5"
    )
    assert again.code == 0
    assert "beginning with" not in again.out  # it goes on, and does not begin again


def test_a_run_begins_with_another_run_or_says_why_not(lm, token_data, fit_arguments, tmp_path):
    save_run(tmp_path / "run", token_data)
    other = Tokenizer.load(token_data / "tok")
    Tokenizer(other.vocab, other.merges[:-1], other.special_tokens).save(tmp_path / "other")
    sizes = {**SHAPE, "d_ff": 192}
    flags = [f"--model.{name}={value}" for name, value in sizes.items()]
    begin = (f"--init_from={tmp_path / 'run'}", "--trainer.max_steps=2", "--samples.max_new_tokens=0")
    for wrong, words in {
        ("--model.d_model=32",): "was trained with model.d_model 64, not 32",
        (f"--data.tokenizer={tmp_path / 'other'}",): "knows the tokens of",
        (f"--init_from={tmp_path / 'none'}",): "no such checkpoint",
    }.items():
        done = lm(*fit_arguments(tmp_path / "new", *flags, *begin, *wrong))
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert words in done.err
    assert not (tmp_path / "new").exists()
    assert lm(*fit_arguments(tmp_path / "new", *flags, *begin)).code == 0


WRONG = {
    "num_key_value_heads": (2, "num_key_value_heads is 2, and can only be 4"),
    "head_dim": (32, "head_dim is 32, and can only be 16"),
    "hidden_act": ("gelu", "hidden_act is gelu"),
    "rms_norm_eps": (1e-6, "rms_norm_eps is 1e-06"),
    "attention_bias": (True, "attention_bias is True"),
    "mlp_bias": (True, "mlp_bias is True"),
    "model_type": ("gpt2", "model_type is gpt2"),
    "rope_parameters": ({"rope_type": "llama3", "factor": 8.0}, "rope_type is llama3"),
    "rope_scaling": ({"type": "linear", "factor": 2.0}, "rope_type is linear"),
    "quantization_config": ({"bits": 4}, "quantization_config"),
    "num_hidden_layers": (3, "model.layers.2.input_layernorm.weight is missing"),
    "intermediate_size": (95, "by config.json [95, 64]"),
    "vocab_size": (100, "has 320 tokens, and the model rows for 100"),
    "hidden_size": ("wide", "no whole number for hidden_size"),
    "num_attention_heads": (0, "no whole number for num_attention_heads"),
    "tie_word_embeddings": (True, "lm_head is not model.embed_tokens"),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory, token_data):
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder, token_data)
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_by_name(name, llama, lm, tmp_path):
    value, words = WRONG[name]
    shutil.copytree(llama, tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    if name == "rope_scaling":
        del config["rope_parameters"]
    (tmp_path / "hf/config.json").write_text(json.dumps(config | {name: value}))
    done = lm("import", tmp_path / "hf", "--output", tmp_path / "run")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"hf"}


def test_damaged_folders(llama, lm, tmp_path):
    def broken(name: str, change) -> str:
        folder = tmp_path / name
        shutil.copytree(llama, folder)
        change(folder)
        done = lm("import", folder, "--output", tmp_path / "run")
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        return done.err

    weights = load_file(llama / "model.safetensors")
    first = next(iter(weights))
    assert "is missing; other forms than safetensors" in broken("a", lambda f: (f / "model.safetensors").unlink())
    assert "is damaged" in broken("b", lambda f: (f / "model.safetensors").write_bytes(b"123"))
    assert "config.json: No such file" in broken("c", lambda f: (f / "config.json").unlink())
    assert "is not what transformers writes" in broken("d", lambda f: (f / "config.json").write_text("[1"))
    assert "tokenizer.json" in broken("e", lambda f: (f / "tokenizer.json").unlink())
    fewer = {name: weight for name, weight in weights.items() if name != first}
    assert f"{first} is missing" in broken("f", lambda f: save_file(fewer, f / "model.safetensors"))
    more = weights | {"extra.weight": torch.zeros(2)}
    assert "extra.weight has no place" in broken("g", lambda f: save_file(more, f / "model.safetensors"))
    for arguments, words in (((tmp_path / "none",), "no such folder"), ((llama,), "exists already")):
        done = lm("import", *arguments, "--output", llama if words == "exists already" else tmp_path / "run")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert words in done.err
    assert not (tmp_path / "run").exists()
