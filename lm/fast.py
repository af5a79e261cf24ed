"""The same numbers as the plain modules give, arranged for the machine: operators with a backward pass of their own,
which torch.compile leaves alone. Attention and cross-entropy do without their two large intermediate tensors.

    embed                 rows of a table, whose gradient adds up in one order, so that a run can be repeated.
    block_attention       causal attention, a block of queries at a time: what lies after a block is never computed,
                          and the (seq, seq) scores stay as small as the cache. Short contexts on a CPU.
    torch_attention       PyTorch's fused kernels, which keep no scores at all. GPUs, and long contexts.
    linear_cross_entropy  lm_head and loss together, some rows at a time: no (tokens, vocab_size) logits.
    whole_cross_entropy   the loss from all logits, for torch.compile on a GPU that has room for them.
    joint_product         several weights, one matrix product.

What is computed, in a form to be read, is in attention.py and loss.py; the tests hold these against it.
"""

import math

import torch
from torch import Tensor, nn

from lm.support import Support

SUPPORT = Support(
    part="the fast path",
    remedy="set model.fast to false",
    options={
        "norm_position": ("pre", "post", "none"),
        "position_encoding": ("rope", "none"),
        "feed_forward": ("swiglu", "silu"),
        "tie_embeddings": (False, True),
        "qk_norm": (False, True),
    },
)
BLOCK = 128  # queries; measured best, or near it, from 128 to 4096 positions
ROWS = 512  # of logits at a time: 10 MB of bfloat16 with a vocabulary of 10,000
GPU_LOGITS = 1 << 26  # at a time on a GPU, which wants few and large operations: 256 MB of float32
LARGEST_LOGITS = 1 / 8  # of a GPU's memory, in float32: up to here they are kept whole
LONGEST_FOR_BLOCKS = 1024  # from here on PyTorch's kernels were faster


@torch.library.custom_op("lm::embed", mutates_args=())
def embed(weight: Tensor, token_ids: Tensor) -> Tensor:
    """weight[token_ids]: (rows, width), (...) -> (..., width), with a gradient that is the same bits every time.

    The gradient of indexing adds to the rows in parallel, in whatever order the threads come, and so does what
    torch.compile makes of it: the rounding, and with it the whole run, would differ from one time to the next.
    """
    return weight.index_select(0, token_ids.flatten()).view(*token_ids.shape, weight.shape[-1])


@embed.register_fake
def _(weight: Tensor, token_ids: Tensor) -> Tensor:
    return weight.new_empty((*token_ids.shape, weight.shape[-1]))


@torch.library.custom_op("lm::embed_backward", mutates_args=())
def _embed_backward(d_vectors: Tensor, token_ids: Tensor, rows: int) -> Tensor:
    """dW_r = sum of dY_i over all i with token_ids_i = r, in the order of i: on a CPU a row belongs to one thread."""
    return torch.ops.aten.embedding_dense_backward(d_vectors, token_ids, rows, -1, False)


@_embed_backward.register_fake
def _(d_vectors: Tensor, token_ids: Tensor, rows: int) -> Tensor:
    return d_vectors.new_empty((rows, d_vectors.shape[-1]))


def _keep_for_embed(ctx, inputs, output) -> None:
    weight, token_ids = inputs
    ctx.rows = len(weight)
    ctx.save_for_backward(token_ids)


def _backward_of_embed(ctx, d_vectors: Tensor) -> tuple[Tensor, None]:
    return _embed_backward(d_vectors.contiguous(), *ctx.saved_tensors, ctx.rows), None


embed.register_autograd(_backward_of_embed, setup_context=_keep_for_embed)


def choose_attention(device_type: str, context_length: int) -> str:
    """blocks on a CPU at short contexts, where they took a half to three quarters of the time; else sdpa."""
    return "blocks" if device_type == "cpu" and context_length <= LONGEST_FOR_BLOCKS else "sdpa"


def torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal. q, k, v: (..., seq, d_k) -> (..., seq, d_k)."""
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def block_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal. q, k, v: (..., seq, d_k) -> (..., seq, d_k)."""
    flat = ((q / math.sqrt(q.shape[-1])).flatten(0, -3), k.flatten(0, -3), v.flatten(0, -3))
    return _attend(*(x.contiguous() for x in flat))[0].view_as(q)


def _spans(length: int) -> list[tuple[int, int]]:
    """Where each block of queries begins and ends."""
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _split_probabilities(flat: Tensor, texts: int, length: int) -> list[Tensor]:
    """The one tensor that holds every block's attention weights -> one view (texts, queries, keys so far) a block."""
    shapes = [(texts, end - start, end) for start, end in _spans(length)]
    return [part.view(shape) for part, shape in zip(flat.split([math.prod(s) for s in shapes]), shapes, strict=True)]


@torch.library.custom_op("lm::attend", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(n, seq, d_k) each, q scaled -> the values, weighted, and the weights, which the backward pass needs."""
    texts, length, _ = q.shape
    kept = _new_probabilities(q)
    values = []
    with torch.autocast(q.device.type, enabled=False):
        for (start, end), weights in zip(_spans(length), _split_probabilities(kept, texts, length), strict=True):
            scores = torch.bmm(q[:, start:end], k[:, :end].mT)
            # Only in its last columns does a block see positions after its queries.
            scores[..., start:] += torch.full_like(scores[0, :, start:], -math.inf).triu(1)
            torch.softmax(scores, dim=-1, out=weights)
            values.append(torch.bmm(weights, v[:, :end]))
    return torch.cat(values, dim=1), kept


def _new_probabilities(q: Tensor) -> Tensor:
    return q.new_empty(len(q) * sum((end - start) * end for start, end in _spans(q.shape[1])))


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), _new_probabilities(q)


@torch.library.custom_op("lm::attend_backward", mutates_args=())
def _attend_backward(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, d_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """O = P V, P = softmax(Q K^T):  dV = P^T dO, dP = dO V^T, dS = P * (dP - sum(dP * P)), dQ = dS K, dK = dS^T Q."""
    texts, length, _ = q.shape
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    blocks = list(zip(_spans(length), _split_probabilities(kept, texts, length), strict=True))
    with torch.autocast(q.device.type, enabled=False):
        for (start, end), weights in reversed(blocks):  # the last block reaches every key: it writes, the others add
            d_block = d_values[:, start:end]
            d_weights = torch.bmm(d_block, v[:, :end].mT)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, q.dtype)
            d_q[:, start:end] = torch.bmm(d_scores, k[:, :end])
            d_keys, d_vals = torch.bmm(d_scores.mT, q[:, start:end]), torch.bmm(weights.mT, d_block)
            if end == length:
                d_k, d_v = d_keys, d_vals
            else:
                d_k[:, :end] += d_keys
                d_v[:, :end] += d_vals
    return d_q, d_k, d_v


@_attend_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, d_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep_for_attend(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward_of_attend(ctx, d_values: Tensor, _d_kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _attend_backward(*ctx.saved_tensors, d_values.contiguous())


_attend.register_autograd(_backward_of_attend, setup_context=_keep_for_attend)


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, z_loss: float = 0.0) -> Tensor:
    """cross_entropy(x @ weight.T, targets, z_loss) over the first vocab_size rows of the weight.

    x: (..., d_model), weight: (at least vocab_size, d_model), targets: (...) -> scalar, float32. The gradients are
    computed on the way forward, while a chunk of logits is at hand (Wijmans et al. 2024 avoid the logits, too), and
    only where gradients are wanted.
    """
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type):
        x = x.to(torch.get_autocast_dtype(device_type))
    with_gradients = torch.is_grad_enabled()
    return _linear_cross_entropy(x.flatten(0, -2), weight, targets.flatten(), vocab_size, z_loss, with_gradients)[0]


@torch.library.custom_op("lm::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, z_loss: float, with_gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-> the mean loss, and the gradients of the SUM of all losses for x and weight."""
    d_x, d_weight = torch.empty_like(x), torch.zeros_like(weight)  # pages that nothing writes to cost nothing
    loss = torch.zeros((), dtype=torch.float32, device=x.device)
    rows, at_once = weight.to(x.dtype), ROWS if x.is_cpu else max(ROWS, GPU_LOGITS // len(weight))
    with torch.autocast(x.device.type, enabled=False):
        for x_chunk, chunk_targets, d_x_chunk in zip(
            x.split(at_once), targets[:, None].split(at_once), d_x.split(at_once), strict=True
        ):
            logits = x_chunk @ rows.T
            logits[:, vocab_size:] = -math.inf
            probabilities = torch.softmax(logits, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
            # -log p of the target may underflow, that of the likeliest token cannot: it is at least 1 / vocab_size.
            maximum, log_likeliest = logits.amax(dim=-1).float(), probabilities.amax(dim=-1).log()
            behind = maximum - logits.gather(-1, chunk_targets).squeeze(-1).float()
            loss += (behind - log_likeliest).sum()
            if z_loss:
                log_normalizer = maximum - log_likeliest
                loss += z_loss * log_normalizer.square().sum()
            if not with_gradients:
                continue
            if z_loss:
                probabilities *= (1 + 2 * z_loss * log_normalizer)[:, None]
            probabilities.scatter_add_(-1, chunk_targets, probabilities.new_full((len(x_chunk), 1), -1))
            d_logits = probabilities.to(x.dtype)
            torch.mm(d_logits, rows, out=d_x_chunk)
            d_weight += d_logits.T @ x_chunk
    return loss / len(x), d_x, d_weight


@_linear_cross_entropy.register_fake
def _(
    x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, z_loss: float, with_gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty((), dtype=torch.float32), torch.empty_like(x), torch.empty_like(weight)


def _keep_for_loss(ctx, inputs, output) -> None:
    ctx.save_for_backward(*output[1:])


def _backward_of_loss(ctx, d_loss: Tensor, _d_x: Tensor, _d_weight: Tensor) -> tuple:
    d_x, d_weight = ctx.saved_tensors
    scale = d_loss / len(d_x)
    return d_x * scale.to(d_x.dtype), d_weight * scale.to(d_weight.dtype), None, None, None, None


_linear_cross_entropy.register_autograd(_backward_of_loss, setup_context=_keep_for_loss)


def keeps_logits(num_logits: int, memory: int) -> bool:
    """Whether a GPU with so many bytes of memory takes the loss from all logits of a batch at once."""
    return 4 * num_logits <= LARGEST_LOGITS * memory


def whole_cross_entropy(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """loss.cross_entropy, arranged for torch.compile, which makes one pass over the logits of it and one back.

    The target's logit is picked by comparing: the gradient of gather would be another tensor as large as the logits.
    """
    logits = logits.float()
    maximum = logits.detach().amax(dim=-1, keepdim=True)
    shifted = logits - maximum
    log_normalizer = shifted.exp().sum(dim=-1).log()
    picked = torch.arange(logits.shape[-1], device=logits.device) == targets.unsqueeze(-1)
    losses = log_normalizer - torch.where(picked, shifted, 0.0).sum(dim=-1)
    if z_loss:
        losses = losses + z_loss * (log_normalizer + maximum.squeeze(-1)).square()
    return losses.mean()


def joint_product(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """x @ w.T for each w, (out_features, in_features), by one product with all of them."""
    return (x @ torch.cat(weights).T).split([len(weight) for weight in weights], dim=-1)
