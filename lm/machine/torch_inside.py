"""Wraps every private part of torch that lm uses in a named function; no other file touches one.

Names behind an underscore may change with any release. tests/machine/test_torch_inside.py checks each function
against the installed torch and says what has changed. torch._foreach_* are not here: torch documents them. Lightning's
private parts are in lightning_inside.py, apart, because not all who import torch import Lightning.
"""

import ctypes
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Graph = Callable[..., Any]

ROWS = 32  # a hint for oneDNN's packed layout; any number of rows can be multiplied


# --- operators -------------------------------------------------------------------------------------------------------


def softmax_backward(d_probabilities: Tensor, probabilities: Tensor) -> Tensor:
    """Computes the gradient of softmax over the last dimension, in one pass.

    Both arguments are (..., n) of one dtype; so is the result, the gradient of the scores.
    """
    return torch._softmax_backward_data(d_probabilities, probabilities, -1, probabilities.dtype)


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Computes causal attention by PyTorch's fused kernel for CPUs, and keeps what its gradient needs.

    q, k, v: (batch, heads, seq, d_k) of one dtype, with q scaled. Returns the weighted values, of the same shape, and
    the logarithm of each query's sum of exponentials, (batch, heads, seq), float32.
    """
    values, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True, scale=1.0)
    return values, sums.contiguous()


def fused_attention_backward(
    d_values: Tensor, q: Tensor, k: Tensor, v: Tensor, values: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of q, k and v, (batch, heads, seq, d_k), from what `fused_attention` was given and gave."""
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    d_q, d_k, d_v = backward(d_values, q, k, v, values, sums, 0.0, True, scale=1.0)
    return d_q, d_k, d_v


def has_packed_product(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this dtype on this processor, and torch gives access to it."""
    there = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and (dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def packed_product(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Packs a weight (out, in) into oneDNN's own layout, and returns the product by it: (..., in) -> (..., out).

    torch.compile uses the same two operators.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def is_followed() -> bool:
    """Whether something follows what is computed: torch.compile, torch.jit.trace, torch.vmap, FakeTensorMode."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return torch._C._is_tracing() or torch._C._are_functorch_transforms_active()


def is_forward_mode() -> bool:
    """Whether derivatives are computed along with the numbers, as by torch.func.jvp and torch.autograd.forward_ad."""
    return torch.autograd.forward_ad._current_level >= 0


# --- threads ---------------------------------------------------------------------------------------------------------


def openmp() -> ctypes.CDLL | None:
    """Returns the GNU OpenMP library whose threads torch uses; None where torch has another, or none."""
    try:
        library = ctypes.CDLL(torch._C.__file__)  # and whatever it has been linked with
    except OSError:
        return None
    return library if hasattr(library, "GOMP_parallel") and hasattr(library, "omp_get_thread_num") else None


# --- tensors without memory ------------------------------------------------------------------------------------------


def is_watched(module: nn.Module) -> bool:
    """Tells whether somebody has hooked into calls of the module, or put a forward of its own in place of its type's.

    Whoever computes its output must then call it.
    """
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in vars(module)


def without_memory() -> AbstractContextManager[Any]:
    """Returns a context in which tensors have shapes and devices but no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def storage_id(tensor: Tensor) -> int:
    """Returns an identifier of the memory that a tensor and its views share, valid while one of them is alive."""
    return int(tensor.untyped_storage()._cdata)


# --- torch.compile ---------------------------------------------------------------------------------------------------


def run_inductor(graph: Graph, inputs: list[Any]) -> Graph:
    """Compiles a graph and its backward pass by Inductor, so that both fail now or not at all."""
    from torch._dynamo.backends.registry import lookup_backend
    from torch._functorch import config

    with config.patch(force_non_lazy_backward_lowering=True), gcc_without_ipa_cp(), warnings.catch_warnings():
        # Inductor pickles the graph for its cache, and for a torch.memory_format pickle asks every module that is
        # loaded whether it is there; some warn of being outdated then.
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled: Graph = lookup_backend("inductor")(graph, inputs)
        return compiled


def gcc_without_ipa_cp() -> AbstractContextManager[Any]:
    """Returns a context in which Inductor calls GCC without its pass -fipa-cp; other compilers are not affected."""
    from torch._inductor import config, cpp_builder

    setting = "enable_floating_point_contract_flag"
    flag = getattr(config.cpp, setting, None)
    if not isinstance(flag, str) or not cpp_compiler() or not cpp_builder.is_gcc():
        return nullcontext()
    # GCC 12.2 at -O3 miscompiles a kernel that transposes two bfloat16 matrices by AVX-512: gradients are wrong or NaN
    # under a correct loss. Inductor has no setting for further flags. This one enters the command line verbatim, and
    # the cache's key, so that code compiled without it is not used again.
    patched: AbstractContextManager[Any] = config.patch({f"cpp.{setting}": f"{flag} -fno-ipa-cp"})
    return patched


def cpp_compiler() -> str:
    """Returns the command of the C++ compiler that Inductor calls; "" if it finds none."""
    from torch._inductor import cpp_builder

    try:
        command: str = cpp_builder.get_cpp_compiler()
    except (RuntimeError, OSError):
        return ""
    return command


def inductor_folder() -> Path:
    """Returns the folder of Inductor's cache, which TORCHINDUCTOR_CACHE_DIR overrides."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    return Path(default_cache_dir())


def forget_compiled() -> None:
    """Makes Inductor forget the libraries it has loaded, so that it reads its cache again."""
    from torch._inductor.utils import clear_caches

    clear_caches()


def empty_inductor_folder() -> AbstractContextManager[Any]:
    """Returns a context in which Inductor compiles into a temporary folder, deleted afterwards."""
    from torch._inductor.utils import fresh_cache

    folder: AbstractContextManager[Any] = fresh_cache()
    return folder
