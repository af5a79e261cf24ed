"""The models of transformers and litgpt as contestants, compiled, with torch's own optimizer and loss."""

from collections.abc import Callable
from typing import Any

from training_stages.shapes import CONTEXT, D_FF, D_MODEL, HEADS, LAYERS, SHAPES, VOCAB_SIZE
from training_stages.turns import Turns


def their_model(
    name: str,
    vocab_size: int = VOCAB_SIZE,
    context_length: int = CONTEXT,
    d_model: int = D_MODEL,
    num_layers: int = LAYERS,
    num_heads: int = HEADS,
    d_ff: int = D_FF,
) -> Any:
    """A model that gives logits for token ids, of the same shape as ours; and how to call it."""
    if name == "litgpt":
        from litgpt import GPT, Config

        return GPT(
            Config(
                block_size=context_length,
                vocab_size=vocab_size,
                padded_vocab_size=vocab_size,
                n_layer=num_layers,
                n_head=num_heads,
                n_embd=d_model,
                intermediate_size=d_ff,
                mlp_class_name="LLaMAMLP",
                norm_class_name="RMSNorm",
                rotary_percentage=1.0,
                bias=False,
                parallel_residual=False,
            )
        )
    import transformers

    if name == "llama":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=d_model,
                intermediate_size=d_ff,
                num_hidden_layers=num_layers,
                num_attention_heads=num_heads,
                max_position_embeddings=context_length,
                use_cache=False,
            )
        )
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocab_size,
            n_positions=context_length,
            n_embd=d_model,
            n_layer=num_layers,
            n_head=num_heads,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            use_cache=False,
        )
    )


def their_loop(name: str, turns: Turns) -> None:
    import torch

    from lm.machine.compiling import compile_graph
    from lm.machine.resources import native_precision

    torch.manual_seed(0)
    model = their_model(name)
    compiled: Callable[..., Any] = torch.compile(model, backend=compile_graph)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(VOCAB_SIZE, (SHAPES["base"]["batch_size"], CONTEXT + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    for _ in turns:
        with torch.autocast("cpu", torch.bfloat16, enabled=native_precision("cpu") == "bf16-mixed"):
            output = compiled(inputs)
            logits = output if isinstance(output, torch.Tensor) else output.logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
