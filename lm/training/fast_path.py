"""Chooses how a model is computed on its device: attention, loss, sharding and torch.compile.

The fast modules are in lm/model/fast.py; compilation, and what happens if it fails, in lm/machine/compiling.py.
"""

import sys
from typing import TYPE_CHECKING

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from lm.accounting.costs import worth_compiling
from lm.machine.compiling import compile_or_run, why_not_compiled
from lm.model.fast import speed_up, why_no_kernels
from lm.model.fast_attention import choose_attention
from lm.model.fast_loss import keeps_logits
from lm.model.transformer import TransformerLM
from tokenization import InputError

if TYPE_CHECKING:
    from lm.training.module import LanguageModel


def install_fast_path(task: "LanguageModel") -> tuple[str, bool]:
    """Speeds up, shards and compiles the model of a task that has a trainer, as its settings and device ask for.

    Returns a description of what was chosen, and whether the model is compiled.
    """
    model, mesh, device = task.model, task.device_mesh, task.trainer.strategy.root_device.type
    attention = task.hparams["attention"]
    if attention == "auto":
        attention = choose_attention(device, model.context_length)
    if mesh is not None and task.hparams["optimizer"] != "adamw":
        raise InputError(
            f"model.optimizer {task.hparams['optimizer']} needs whole matrices, which trainer.strategy fsdp cuts;"
            " take adamw"
        )
    reason = why_no_kernels() if device == "cpu" else ""
    kernels = device == "cpu" and not reason
    if reason and task.global_rank == 0:
        print(f"lm: {reason}; torch's operators, which are slower, take the place of our kernels", file=sys.stderr)
    compiled = task.trainer.state.fn == "fit" and should_compile(task, device, attention)
    keep_logits = compiled and device == "cuda" and logits_fit(task)
    speed_up(model, attention, joint_products=device != "cpu", keep_logits=keep_logits, kernels=kernels)
    description = f"attention {attention}, loss {'from whole logits' if keep_logits else 'in chunks'}"
    description += ", own kernels" if kernels else ""
    if mesh is not None and not isinstance(model, FSDPModule):  # ModelParallelStrategy: FSDP
        shard(model, mesh["data_parallel"], str(task.trainer.precision))
    if compiled:
        model.compile(backend=compile_or_run)
        description += ", compiled"
    return description, compiled


def shard(model: TransformerLM, mesh: DeviceMesh, precision: str) -> None:
    """Shards a model's weights by FSDP, which gathers them where they are used.

    With bf16-mixed the weights of attention and feed-forward networks are gathered as bfloat16, which autocast would
    make of them anyway. Gains and tables are used as float32 and travel so, and all gradients do, for the sake of their
    sum.
    """
    half = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = half if precision == "bf16-mixed" else MixedPrecisionPolicy()
    for block in model.layers:
        fully_shard([block.attn, block.ffn], mesh=mesh, mp_policy=policy)  # type: ignore[list-item]
    for table in () if model.value_embeddings is None else model.value_embeddings.tables:
        fully_shard(table, mesh=mesh)
    fully_shard(model, mesh=mesh)


def should_compile(task: "LanguageModel", device: str, attention: str) -> bool:
    """Whether to compile: requested, or worth it for a run of this length, and possible."""
    wanted = task.hparams["compile"]
    if wanted == "auto":
        tokens = (task.tokens_per_batch() or 0) * max(0, task.trainer.max_steps)
        wanted = worth_compiling(task.model, tokens * task.trainer.accumulate_grad_batches, device, attention)
    if wanted and (reason := why_not_compiled(device)):
        if task.global_rank == 0:
            print(f"lm fit: {reason}; training goes on without it", file=sys.stderr)
        return False
    return bool(wanted)


def logits_fit(task: "LanguageModel") -> bool:
    """Whether the GPU has room for all logits of a batch at once."""
    tokens = task.tokens_per_batch()
    memory = torch.cuda.get_device_properties(task.trainer.strategy.root_device).total_memory
    return tokens is not None and keeps_logits(tokens * len(task.model.lm_head.weight), memory)
