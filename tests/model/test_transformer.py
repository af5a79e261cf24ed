"""Proves that the model is Hugging Face's Llama with the same weights, and in every ablation the handout's equations
in torch's functions; that it is causal, starts at ln(vocab_size), learns a batch by heart, and is written by hand."""

import ast
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import lm
from lm.model.loss import cross_entropy
from lm.model.transformer import TransformerLM
from lm.optim.adamw import AdamW

SHAPE = {"vocab_size": 50, "context_length": 12, "d_model": 16, "num_layers": 3, "num_heads": 2}
OPTIONS = [
    {"norm_position": norm, "position_encoding": position, "feed_forward": network}
    for norm, position, network in itertools.product(("pre", "post", "none"), ("rope", "none"), ("swiglu", "silu"))
]
OPTIONS.append({"norm_position": "pre", "position_encoding": "rope", "feed_forward": "relu2"})


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(**changes) -> TransformerLM:
    model = TransformerLM(**SHAPE | changes)
    for name, parameter in model.named_parameters():
        if "ln" in name:  # gains that are all 1 would hide a norm that stands in the wrong place
            parameter.data.uniform_(0.5, 1.5)
    return model


def half_split(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of a q or k projection from interleaved pairs to Llama's, which pairs feature i with i + d_k / 2."""
    out_features, in_features = weight.shape
    pairs = weight.view(num_heads, out_features // num_heads // 2, 2, in_features)
    return pairs.transpose(1, 2).reshape(out_features, in_features)


def llama_weights(state: dict[str, torch.Tensor], num_heads: int) -> dict[str, torch.Tensor]:
    names = {
        "token_embeddings": "model.embed_tokens",
        "layers": "model.layers",
        "attn.q_proj": "self_attn.q_proj",
        "attn.k_proj": "self_attn.k_proj",
        "attn.v_proj": "self_attn.v_proj",
        "attn.output_proj": "self_attn.o_proj",
        "ffn.w1": "mlp.gate_proj",
        "ffn.w2": "mlp.down_proj",
        "ffn.w3": "mlp.up_proj",
        "ln1": "input_layernorm",
        "ln2": "post_attention_layernorm",
        "ln_final": "model.norm",
    }
    result = {}
    for name, weight in state.items():
        weight = half_split(weight, num_heads) if "q_proj" in name or "k_proj" in name else weight
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        result[name] = weight
    return result


def test_the_model_is_llama():
    transformers = pytest.importorskip("transformers")
    ours = make(rope_theta=500.0, d_ff=40)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=12,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    theirs = transformers.LlamaForCausalLM(config)
    weights = llama_weights({name: parameter.detach() for name, parameter in ours.named_parameters()}, 2)
    theirs.load_state_dict(weights, strict=True)
    token_ids, targets = torch.randint(50, (2, 4, 12)).unbind()
    our_logits, their_logits = ours(token_ids), theirs(token_ids, use_cache=False).logits
    torch.testing.assert_close(our_logits, their_logits, rtol=1e-4, atol=1e-4)
    cross_entropy(our_logits, targets).backward()
    F.cross_entropy(their_logits.flatten(0, 1), targets.flatten()).backward()
    gradients = llama_weights({name: parameter.grad for name, parameter in ours.named_parameters()}, 2)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: n + m)


def reference(model: TransformerLM, token_ids, norm_position, position_encoding, feed_forward) -> torch.Tensor:
    """The handout's equations once more, in torch's functions."""
    w = {name.removesuffix(".weight"): weight for name, weight in model.named_parameters()}
    x = F.embedding(token_ids, w["token_embeddings"])
    seq, d_model, num_heads = token_ids.shape[-1], SHAPE["d_model"], SHAPE["num_heads"]
    d_k = d_model // num_heads
    angles = torch.outer(torch.arange(seq), 10000.0 ** (-torch.arange(0, d_k, 2) / d_k))
    turn = torch.polar(torch.ones_like(angles), angles)

    def norm(x, name):
        return F.rms_norm(x, (d_model,), w[name], 1e-5)

    def heads(x, name, rotated):
        y = F.linear(x, w[name]).unflatten(-1, (num_heads, d_k)).transpose(-3, -2)
        if rotated and position_encoding == "rope":
            y = torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
        return y

    def attention(x, layer):
        q, k, v = (heads(x, f"{layer}.attn.{part}_proj", part != "v") for part in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(y.transpose(-3, -2).flatten(-2), w[f"{layer}.attn.output_proj"])

    def network(x, layer):
        hidden = F.linear(x, w[f"{layer}.ffn.w1"])
        hidden = F.relu(hidden) ** 2 if model.settings["feed_forward"] == "relu2" else F.silu(hidden)
        if feed_forward == "swiglu":
            hidden = hidden * F.linear(x, w[f"{layer}.ffn.w3"])
        return F.linear(hidden, w[f"{layer}.ffn.w2"])

    for index in range(SHAPE["num_layers"]):
        layer = f"layers.{index}"
        for part, ln in ((attention, "ln1"), (network, "ln2")):
            if norm_position == "pre":
                x = x + part(norm(x, f"{layer}.{ln}"), layer)
            elif norm_position == "post":
                x = norm(x + part(x, layer), f"{layer}.{ln}")
            else:
                x = x + part(x, layer)
    if norm_position == "pre":
        x = norm(x, "ln_final")
    return F.linear(x, w["lm_head"])


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()))
def test_every_ablation_is_the_handouts_equations(options):
    model, token_ids = make(**options), torch.randint(50, (3, 10))
    ours, expected = model(token_ids), reference(model, token_ids, **options)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    parameters = list(model.parameters())
    weights = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), parameters) for y in (ours, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_the_full_model_is_the_default():
    model, token_ids = make(), torch.randint(50, (2, 5))
    torch.testing.assert_close(model(token_ids), reference(model, token_ids, "pre", "rope", "swiglu"))


@pytest.mark.parametrize("leading", [(), (1,), (2, 3)])
def test_any_leading_dimensions(leading):
    model, token_ids = make(), torch.randint(50, (*leading, 7))
    logits = model(token_ids)
    assert logits.shape == (*leading, 7, 50)
    for row, one in zip(token_ids.reshape(-1, 7), logits.reshape(-1, 7, 50), strict=True):
        torch.testing.assert_close(model(row), one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS[::3], ids=lambda options: "-".join(options.values()))
def test_a_later_token_changes_nothing_before_it(options):
    model, token_ids = make(**options), torch.randint(50, (2, 12))
    logits = model(token_ids)
    for t in range(12):
        changed = token_ids.clone()
        changed[:, t] = (changed[:, t] + 1) % 50
        after = model(changed)
        assert torch.equal(after[:, :t], logits[:, :t])
        assert not torch.equal(after[:, t], logits[:, t])


def test_the_loss_begins_at_the_logarithm_of_the_vocabulary():
    model = TransformerLM(vocab_size=1000, context_length=32, d_model=64, num_layers=2, num_heads=4)
    inputs, targets = torch.randint(1000, (2, 8, 32)).unbind()
    # logits of the untrained head have a variance near 2 d_model / (d_model + vocab_size), half of which adds
    assert cross_entropy(model(inputs), targets).item() == pytest.approx(math.log(1000) + 64 / 1064, abs=0.1)


@pytest.mark.parametrize(
    "options", [OPTIONS[0], OPTIONS[7], OPTIONS[10]], ids=lambda options: "-".join(options.values())
)
def test_one_batch_is_learnt_by_heart(options):
    model = TransformerLM(**SHAPE, **options)
    inputs = torch.randperm(50)[:48].view(4, 12)  # no beginning twice, or nothing could tell which target is due
    targets = torch.randint(50, (4, 12))
    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(100):
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


TINYSTORIES = {"vocab_size": 10_000, "context_length": 256, "d_model": 512, "num_layers": 4, "num_heads": 16}
GPT2_XL = {"vocab_size": 50_257, "context_length": 1024, "d_model": 1600, "num_layers": 48, "num_heads": 25}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (TINYSTORIES | {"d_ff": 1344}, 22_696_448),
        (TINYSTORIES, 22_696_448),
        (TINYSTORIES | {"feed_forward": "silu"}, 22_827_520),
        (TINYSTORIES | {"position_encoding": "none"}, 22_696_448),
        (TINYSTORIES | {"norm_position": "post"}, 22_696_448 - 512),
        (TINYSTORIES | {"norm_position": "none"}, 22_696_448 - 9 * 512),
        (GPT2_XL | {"d_ff": 6400}, 2_127_057_600),
        (GPT2_XL, 1_640_452_800),
    ],
)
def test_number_of_parameters(settings, expected):
    assert TransformerLM(**settings, device="meta").num_parameters() == expected


def test_the_keys_of_the_state_dict_are_frozen():
    keys = ["token_embeddings.weight", "lm_head.weight", "ln_final.weight"]
    for layer in range(3):
        names = [f"attn.{part}_proj" for part in ("q", "k", "v", "output")] + [
            "ffn.w1",
            "ffn.w2",
            "ffn.w3",
            "ln1",
            "ln2",
        ]
        keys += [f"layers.{layer}.{name}.weight" for name in names]
    assert sorted(make().state_dict()) == sorted(keys)
    assert sorted(make(feed_forward="silu").state_dict()) == sorted(key for key in keys if "w3" not in key)
    assert sorted(make(norm_position="none").state_dict()) == sorted(key for key in keys if "ln" not in key)
    assert sorted(make(norm_position="post").state_dict()) == sorted(key for key in keys if "ln_final" not in key)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_device_and_dtype(device):
    model = make(device=device, dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 and p.device.type == device for p in model.parameters())
    logits = model(torch.randint(50, (2, 12), device=device))
    assert (logits.dtype, logits.device.type) == (torch.bfloat16, device)
    if device == "cpu":
        exact = make()
        exact.load_state_dict(model.state_dict())
        token_ids = torch.randint(50, (2, 12))
        torch.testing.assert_close(model(token_ids).float(), exact(token_ids), rtol=0.1, atol=0.2)


def test_more_tokens_than_the_context():
    with pytest.raises(ValueError, match="13 tokens do not fit a context_length of 12"):
        make()(torch.zeros(1, 13, dtype=torch.long))


@pytest.mark.parametrize("option", ["norm_position", "position_encoding", "feed_forward"])
def test_an_option_that_does_not_exist(option):
    with pytest.raises(ValueError, match=f"{option} is 'nowhere'; it can be "):
        make(**{option: "nowhere"})


@pytest.mark.parametrize("name", ["vocab_size", "context_length", "d_model", "num_layers", "num_heads", "d_ff"])
@pytest.mark.parametrize("size", [0, -2])
def test_sizes_below_1(name, size):
    with pytest.raises(ValueError, match=f"^{name} is {size}; it must be at least 1$"):
        make(**{name: size})


# --- written by hand -------------------------------------------------------------------------------------------------

ALLOWED = {
    "torch.nn": {"Parameter", "Module", "ModuleList", "ModuleDict", "ParameterList", "Sequential", "init"},
    "torch.optim": {"Optimizer"},
}
FORBIDDEN = {"softmax", "log_softmax", "silu", "rms_norm", "layer_norm", "embedding", "scaled_dot_product_attention"}
FORBIDDEN |= {"cross_entropy", "cross_entropy_loss", "nll_loss", "logsumexp", "clip_grad_norm_"}


def not_by_hand(source: str) -> list[str]:
    """What a source takes from torch.nn, torch.optim or torch's ready-made layers beyond what the handout allows."""
    found, tree = [], ast.parse(source)
    modules = {"torch": "torch"}  # local name -> module of torch
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    modules[alias.asname] = alias.name
                if alias.name.startswith(("torch.nn", "torch.optim")):
                    found.append(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module == "lm.model":
            modules |= {alias.name: f"lm.model.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            for alias in node.names:
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                names = ALLOWED.get(str(node.module))
                outside = node.module.startswith(("torch.nn", "torch.optim")) and alias.name not in (names or ())
                if outside or alias.name in FORBIDDEN:
                    found.append(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            path = ast.unparse(node)
            first, _, rest = path.partition(".")
            path = f"{modules.get(first, first)}.{rest}"
            owner, _, name = path.rpartition(".")
            if owner.startswith("lm.model."):
                continue
            if name in FORBIDDEN or name not in ALLOWED.get(owner, {name}):
                found.append(path)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.nn.Linear(3, 4)",
        "from torch import nn\nnn.Embedding(3, 4)",
        "from torch.nn import RMSNorm",
        "import torch.nn.functional as F",
        "import torch\ntorch.nn.functional.silu(x)",
        "from torch.nn import functional",
        "from torch import nn\nnn.functional.cross_entropy(x, y)",
        "from torch import nn\nnn.utils.clip_grad_norm_(x, 1.0)",
        "import torch\ntorch.optim.AdamW(x)",
        "from torch.optim import AdamW",
        "from torch.optim.lr_scheduler import LambdaLR",
        "import torch\ntorch.softmax(x, -1)",
        "y = x.log_softmax(-1)",
        "from torch import nn as layers\nlayers.SiLU()",
    ],
)
def test_the_check_below_finds_what_is_not_by_hand(source):
    assert not_by_hand(source)


def test_the_package_is_written_by_hand():
    """Except fast.py and its two parts, whose every function stands beside one that is."""
    sources = sorted(path for path in Path(lm.__file__).parent.rglob("*.py") if not path.name.startswith("fast"))
    assert len(sources) > 10
    assert {path.name: names for path in sources if (names := not_by_hand(path.read_text()))} == {}
