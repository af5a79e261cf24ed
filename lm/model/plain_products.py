"""Tells what torch makes of a product x W^T, for whoever computes it in another way.

A fast module that joins products, or puts them into an operator, reads the weights of its layers and calls none of
them. It computes the same only where calling them would compute the product alone.
"""

import torch
from torch import Tensor, nn

from lm.machine.torch_inside import is_watched
from lm.model.layers import Linear


def is_autocast(x: Tensor) -> bool:
    """Tells whether autocast sets the dtype of products with x; it leaves float64 alone."""
    return x.dtype != torch.float64 and not x.is_meta and torch.is_autocast_enabled(x.device.type)


def products_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which products with x are computed here."""
    return torch.get_autocast_dtype(x.device.type) if is_autocast(x) else x.dtype


def is_as_made(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tells whether a module is of this very type, and nobody has hooked into its calls."""
    return type(module) is kind and not is_watched(module)


def may_read(x: Tensor, *layers: nn.Module) -> bool:
    """Tells whether calling each layer with x computes x W^T alone, so that its weight may be read instead.

    Without autocast, torch does not multiply different dtypes: the layer must be called, so that torch refuses.
    """
    if not all(is_as_made(layer, Linear) for layer in layers):
        return False
    return is_autocast(x) or all(layer.weight.dtype == x.dtype for layer in layers)
