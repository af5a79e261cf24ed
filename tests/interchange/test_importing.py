"""Proves that a Llama that transformers made is the same model as a run of ours, that a run comes back exactly from its
export, that new runs begin with such weights, and that whatever is another model is refused by name."""

import json
import re
import shutil

import pytest
import torch
import transformers
import yaml
from helpers.llamas import SIZES, save_llama
from helpers.models import SHAPE, VARIANTS, save_run
from safetensors.torch import load_file, save_file

from lm.commands.import_ import become_special
from lm.interchange.llama import model_settings
from lm.runs.checkpoint import load_checkpoint, load_model
from lm.runs.folder import BEST, TOKENIZER
from tokenization import InputError, Tokenizer


@torch.inference_mode()
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tie_word_embeddings": True},
        {"shards": "50KB"},
        {"dtype": "bfloat16"},
        {"hidden_act": "swish", "head_dim": 16, "num_key_value_heads": 4, "rope_parameters": None},
        {"num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 7, "attention_dropout": 0.1},
    ],
    ids=str,
)
def test_a_llama_of_transformers(settings, lm, token_data, tmp_path):
    theirs = save_llama(tmp_path / "hf", token_data, **settings).eval()
    if "dtype" in settings:
        theirs.to(torch.bfloat16).save_pretrained(tmp_path / "hf")
        theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert ("shards" in settings) == (tmp_path / "hf/model.safetensors.index.json").exists()
    (tmp_path / "hf/generation_config.json").unlink()  # which not every folder has
    done = lm("import", tmp_path / "hf", "--output", tmp_path / "run")
    assert (done.code, done.err) == (0, "")
    ours = load_model(tmp_path / "run" / BEST)
    token_ids = torch.randint(320, (3, 32), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(token_ids), theirs(token_ids).logits, rtol=1e-4, atol=1e-4)
    tied = ours.lm_head.weight is ours.token_embeddings.weight
    assert tied == settings.get("tie_word_embeddings", False)
    text = "Tom saw a red ball.<|endoftext|>"
    # AutoTokenizer of transformers 5.0 would build a Llama's tokenizer, with <unk>, instead of reading tokenizer.json.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert Tokenizer.load(tmp_path / "run" / TOKENIZER).encode(text) == tokenizer.encode(text)
    written = lm("generate", tmp_path / "run", "--prompt=Tom", "--max-new-tokens=5")
    assert (written.code, written.err) == (0, "")
    assert "not with the config's eos_token_id, 2" in done.out  # LlamaConfig's default, which is no token of ours
    assert "never use a stranger's YAML unread" in done.out
    verified = lm("verify", tmp_path / "run")
    assert (verified.code, verified.err) == (0, "")
    assert "as `lm import` writes them" in verified.out
    assert "None" not in verified.out


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
    assert "starting with the weights of runs/llama/best.ckpt" in done.out
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
        (f"--data.tokenizer={tmp_path / 'other'}",): "which is not the tokenizer",
        (f"--init_from={tmp_path / 'none'}",): "no such checkpoint",
    }.items():
        done = lm(*fit_arguments(tmp_path / "new", *flags, *begin, *wrong))
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert words in done.err
    assert not (tmp_path / "new").exists()
    assert lm(*fit_arguments(tmp_path / "new", *flags, *begin)).code == 0


WRONG = {
    "num_key_value_heads": (2, "num_key_value_heads is 2, but can only be 4"),
    "head_dim": (32, "head_dim is 32, but can only be 16"),
    "hidden_act": ("gelu", "hidden_act is gelu"),
    "rms_norm_eps": (1e-6, "rms_norm_eps is 1e-06"),
    "rms_norm_eps ": (None, "rms_norm_eps is 1e-06"),  # which is what transformers takes where there is none
    "attention_bias": (True, "attention_bias is True"),
    "mlp_bias": (True, "mlp_bias is True"),
    "model_type": ("gpt2", "model_type is gpt2"),
    "model_type ": (None, "model_type is absent"),
    "architectures": (["LlamaForSequenceClassification"], "architectures is ['LlamaForSequenceClassification']"),
    "is_encoder_decoder": (True, "is_encoder_decoder is True"),
    "pruned_heads": ({"0": [1]}, "pruned_heads is {'0': [1]}"),
    "sliding_window": (16, "sliding_window is 16, but can only be absent"),
    "partial_rotary_factor": (0.5, "partial_rotary_factor is 0.5"),
    "rope_theta": (10000.0, "rope_theta is 10000.0 in one place and 777.0 in another"),
    "quantization_config": ({"bits": 4}, "quantization_config is {'bits': 4}"),
    "auto_map": ({"AutoModelForCausalLM": "modeling.Mine"}, "auto_map ({'AutoModelForCausalLM': 'modeling.Mine'})"),
    "per_layer_config": ({"1": {"num_attention_heads": 2}}, "per_layer_config ({'1': {'num_attention_heads': 2}})"),
    "use_qk_norm": (
        True,
        "use_qk_norm (True) is unknown, and may change what the model computes; delete it if it does not",
    ),
    "num_hidden_layers": (3, "model.layers.2.input_layernorm.weight is missing"),
    "intermediate_size": (95, "mlp.down_proj.weight has the shape [64, 96], but by config.json it is [64, 95]"),
    "vocab_size": (100, "has 320 tokens, but the model has rows for 100"),
    "hidden_size": ("wide", "hidden_size is wide; it must be a whole number from 1"),
    "num_attention_heads": (0, "num_attention_heads is 0; it must be a whole number from 1"),
    "num_attention_heads ": (3, "num_key_value_heads is 4, but can only be 3"),
    "tie_word_embeddings": (True, "lm_head differs from model.embed_tokens"),
    "tie_word_embeddings ": ("false", "tie_word_embeddings is false, but can only be False or True"),
}
RESCALED: dict[str, dict] = {  # as transformers describes each kind
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 8},
    "longrope": {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 8},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8},
    "proportional": {"partial_rotary_factor": 0.5},
}
THETA = {"rope_theta": 777.0}
WRONG_ROPES = {
    **{f"5 {kind}": ("rope_parameters", {"rope_type": kind} | THETA | more, f"rope_type is {kind}")
       for kind, more in RESCALED.items()},
    **{f"4 {kind}": ("rope_scaling", {"type": kind} | more, f"type is {kind}") for kind, more in RESCALED.items()},
    "a factor": ("rope_parameters", {"rope_type": "default", "factor": 2.0} | THETA, "factor (2.0) is unknown"),
    "a part": ("rope_parameters", {"partial_rotary_factor": 0.25} | THETA, "partial_rotary_factor is 0.25"),
    "by layers": ("rope_parameters", {"full_attention": THETA}, "full_attention ({'rope_theta': 777.0})"),
    "a list": ("rope_parameters", [777.0], "rope_parameters is [777.0]; it must be an object"),
    **{f"theta {theta}": ("rope_parameters", {"rope_theta": theta}, "it must be a number above 0")
       for theta in (0, -1, "777", True, float("nan"), float("inf"), None, [1], 10**400)},
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory, token_data):
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder, token_data)
    return folder


def refusal(lm, llama, tmp_path, changes: dict) -> str:
    """What `lm import` says of the folder with other settings; null takes one away."""
    shutil.copytree(llama, tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value is not None}
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    done = lm("import", tmp_path / "hf", "--output", tmp_path / "new/run")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"hf"}
    return done.err


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_by_name(name, llama, lm, tmp_path):
    value, words = WRONG[name]
    assert words in refusal(lm, llama, tmp_path, {name.strip(): value})


@pytest.mark.parametrize("which", WRONG_ROPES)
def test_every_other_rope_is_refused_by_name(which, llama, lm, tmp_path):
    name, value, words = WRONG_ROPES[which]
    assert words in refusal(lm, llama, tmp_path, {"rope_parameters": None, name: value})


def test_every_key_that_transformers_writes_is_known(llama):
    """Its defaults are taken, and the values that make another model are refused: no key of its own is unknown."""
    written = json.loads((llama / "config.json").read_text())
    everything = transformers.LlamaConfig(**{**SIZES, "rms_norm_eps": 1e-5}).to_dict() | written
    assert model_settings(everything, llama) == model_settings(written, llama)
    older = {name: value for name, value in written.items() if name != "rope_parameters"}
    older |= {"rope_theta": 777.0, "rope_scaling": None, "torch_dtype": "float16", "pretraining_tp": 1}
    assert model_settings(older, llama) == model_settings(written, llama)
    with pytest.raises(InputError, match="attention_of_tomorrow"):
        model_settings({**everything, "attention_of_tomorrow": 1}, llama)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ([], ""),
        ([("<|endoftext|>", True)], ""),
        ([("<|endoftext|>", True), ("    ", False)], "the added token '    ' becomes special: "),
        ([("  ", False), ("    ", False)], "2 added tokens become special ('  ' is one): "),
    ],
)
def test_added_tokens_that_become_special_are_named(added, said):
    content = {"added_tokens": [{"content": text, "special": special} for text, special in added]}
    assert become_special(content) == said + (
        "programs that read an export of it may leave out such text" if said else ""
    )


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
    assert "is missing; formats other than safetensors" in broken("a", lambda f: (f / "model.safetensors").unlink())
    assert "is damaged" in broken("b", lambda f: (f / "model.safetensors").write_bytes(b"123"))
    assert "config.json: No such file" in broken("c", lambda f: (f / "config.json").unlink())
    assert "is not a JSON object" in broken("d", lambda f: (f / "config.json").write_text("[1"))
    assert "tokenizer.json" in broken("e", lambda f: (f / "tokenizer.json").unlink())
    fewer = {name: weight for name, weight in weights.items() if name != first}
    assert f"{first} is missing" in broken("f", lambda f: save_file(fewer, f / "model.safetensors"))
    more = weights | {"extra.weight": torch.zeros(2)}
    assert "extra.weight is unknown" in broken("g", lambda f: save_file(more, f / "model.safetensors"))
    for arguments, words in (((tmp_path / "none",), "no such folder"), ((llama,), "exists already")):
        done = lm("import", *arguments, "--output", llama if words == "exists already" else tmp_path / "run")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert words in done.err
    assert not (tmp_path / "run").exists()
