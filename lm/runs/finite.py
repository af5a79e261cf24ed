"""Names the tensors of a state that hold a NaN or an infinity.

A non-finite number never goes away: every matrix product spreads it further. So a state that holds one never replaces a
good checkpoint, and nothing resumes from it or exports it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


@torch.no_grad()
def nonfinite_names(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Returns the names of the tensors that hold a NaN or an infinity; of a sharded one, this process's shard counts.

    Minimum and maximum tell (a NaN makes both NaN) without a copy of the weights. A GPU is synchronised once.
    """
    local = [(name, tensor.to_local() if isinstance(tensor, DTensor) else tensor) for name, tensor in tensors]
    filled = [(name, tensor) for name, tensor in local if tensor.is_floating_point() and tensor.numel()]
    if not filled:
        return []
    finite = torch.stack([torch.stack(tensor.detach().aminmax()).isfinite().all() for _, tensor in filled])
    return [name for (name, _), good in zip(filled, finite.tolist(), strict=True) if not good]


def in_words(names: list[str]) -> str:
    """Formats one or more names: "a, b, c and 18 more are not finite"."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'} not finite"
