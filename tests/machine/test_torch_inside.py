"""Proves each function of torch_inside against the installed torch.

Where one of these fails after an update, the message names the part that has changed: mend the function there, and
nothing else.
"""

import ctypes
import os
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from helpers.libraries import changed
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from lm.machine import torch_inside


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_backward(dtype):
    scores = torch.randn(3, 4, 5, dtype=dtype, requires_grad=True)
    probabilities, d_probabilities = scores.softmax(-1), torch.randn(3, 4, 5, dtype=dtype)
    (expected,) = torch.autograd.grad(probabilities, scores, d_probabilities)
    found = torch_inside.softmax_backward(d_probabilities, probabilities.detach())
    assert torch.equal(found, expected), changed("torch", "torch._softmax_backward_data")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention(dtype):
    q, k, v = (torch.randn(2, 3, 70, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    d_values = torch.randn(2, 70, 3, 8, dtype=dtype).transpose(1, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    gradients = torch.autograd.grad(expected, (q, k, v), d_values)
    q, k, v = (x.detach() for x in (q, k, v))
    values, sums = torch_inside.fused_attention(q, k, v)
    scores = (q.float() @ k.float().mT).masked_fill(torch.ones(70, 70, dtype=torch.bool).triu(1), -torch.inf)
    torch.testing.assert_close(sums, scores.logsumexp(-1), rtol=1e-3, atol=1e-3)  # its exponentials have 20 bits
    assert torch.equal(values, expected), changed("torch", "_scaled_dot_product_flash_attention_for_cpu")
    for found, gradient in zip(
        torch_inside.fused_attention_backward(d_values, q, k, v, values, sums), gradients, strict=True
    ):
        assert torch.equal(found, gradient), changed("torch", "_scaled_dot_product_flash_attention_for_cpu_backward")


def test_packed_product():
    if not torch_inside.has_packed_product(torch.float32):
        assert not torch.backends.mkldnn.is_available(), changed("torch", "torch.ops.mkldnn._linear_pointwise is gone")
        pytest.skip("this torch has no oneDNN")
    x, weight = torch.randn(5, 1, 48), torch.randn(64, 48)
    product = torch_inside.packed_product(weight)(x)
    torch.testing.assert_close(
        product, x @ weight.T, msg=lambda text: changed("torch", f"mkldnn._linear_pointwise: {text}")
    )


def test_openmp_starts_a_team():
    library = torch_inside.openmp()
    if library is None:
        pytest.skip("torch has no GNU OpenMP here")
    seen = []
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    library.GOMP_parallel(kind(lambda _: seen.append(library.omp_get_num_threads())), None, 1, 0)
    assert seen == [1]


def test_has_packed_product_asks_the_processor():
    assert isinstance(torch_inside.has_packed_product(torch.bfloat16), bool)
    assert torch_inside.has_packed_product(torch.float32) == torch.backends.mkldnn.is_available()


def test_is_watched():
    layer = torch.nn.Linear(1, 1)
    assert not torch_inside.is_watched(layer), changed("torch", "Module._forward_hooks")
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook, layer.register_full_backward_hook):
        handle = register(lambda *_: None)
        assert torch_inside.is_watched(layer), changed("torch", "Module._forward_hooks")
        handle.remove()
    layer.forward = lambda x: x
    assert torch_inside.is_watched(layer)


def test_without_memory():
    with torch_inside.without_memory():
        huge = torch.empty(1 << 50, device="cpu")
        assert huge.device.type == "cpu", changed("torch", "FakeTensorMode")
        assert huge.untyped_storage().nbytes() == 4 << 50, changed("torch", "FakeTensorMode")


def test_is_followed():
    seen = []

    def look(x):
        seen.append(torch_inside.is_followed())
        return x + 1

    look(torch.zeros(1))
    for mode in (torch_inside.without_memory(), FlopCounterMode(display=False)):
        with mode:
            look(torch.zeros(1))
    torch.compile(look, backend="eager", fullgraph=True)(torch.zeros(1))
    torch.vmap(look)(torch.zeros(2))
    make_fx(look)(torch.zeros(1))
    assert seen == [False, *[True] * 5], changed("torch", "torch._C._len_torch_dispatch_stack and its like")


def test_is_forward_mode():
    seen = []

    def look(x):
        seen.append(torch_inside.is_forward_mode())
        return x + 1

    x = torch.zeros(1)
    look(x)
    torch.func.jvp(look, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        look(x)
    look(x)
    assert seen == [False, True, True, False], changed("torch", "torch.autograd.forward_ad._current_level")


def test_storage_id():
    tensor, other = torch.zeros(4), torch.zeros(4)
    ids = [torch_inside.storage_id(x) for x in (tensor, tensor[1:], tensor.view(2, 2), other)]
    assert ids[0] == ids[1] == ids[2] != ids[3], changed("torch", "UntypedStorage._cdata")
    with torch_inside.without_memory():
        fake = torch.empty(4)
        assert torch_inside.storage_id(fake) == torch_inside.storage_id(fake[1:]), changed("torch", "fake storages")


def test_inductors_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = torch_inside.inductor_folder()
    assert str(folder) == cache_dir(), changed("torch", "default_cache_dir")  # where it would write
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch_inside.empty_inductor_folder():
        inside = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert inside != tmp_path, changed("torch", "fresh_cache")
        assert inside.is_dir()
    assert not inside.exists(), changed("torch", "fresh_cache keeps its folder")
    torch_inside.forget_compiled()


def test_inductor_compiles_the_way_back_at_once(monkeypatch):
    """Without a compiler: what is asked for is seen before it is done."""
    from torch._dynamo.backends import registry
    from torch._functorch import config

    asked = []

    def backend(graph, inputs):
        asked.append(config.force_non_lazy_backward_lowering)
        warnings.warn("a module that pickle looks through is outdated", DeprecationWarning, stacklevel=1)
        return graph

    message = changed("torch", "_dynamo's lookup_backend, or _functorch.config.force_non_lazy_backward_lowering")
    assert callable(registry.lookup_backend("inductor")), message
    assert not config.force_non_lazy_backward_lowering, message
    monkeypatch.setattr(registry, "lookup_backend", lambda name: backend)
    assert torch_inside.run_inductor(len, []) is len
    assert asked == [True], message
    assert not config.force_non_lazy_backward_lowering


def command_line() -> list[str]:
    from torch._inductor import cpp_builder

    options = cpp_builder.CppTorchOptions()
    builder = cpp_builder.CppBuilder(name="kernel", sources="kernel.cpp", output_dir="/tmp", BuildOption=options)
    return shlex.split(builder.get_command_line())


@pytest.mark.parametrize("contract", ["off", "fast"])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_gcc_is_called_without_ipa_cp(compiler, contract, monkeypatch, tmp_path):
    """While Inductor compiles, in the command line and in the key of its cache; what the user set stays."""
    from torch._dynamo.backends import registry
    from torch._inductor import config, cpp_builder

    path = tmp_path / compiler
    path.write_text("#!/bin/sh\necho 12.2.0\n")
    path.chmod(0o755)
    message = changed("torch", "the C++ flags of _inductor.config.cpp, or cpp_builder's get_cpp_compiler, is_gcc")
    asked, keys = [], []

    def backend(graph, inputs):
        asked.append(command_line())
        keys.append(config.get_hash())
        return graph

    monkeypatch.setattr(registry, "lookup_backend", lambda name: backend)
    cpp_builder.is_gcc.cache_clear()
    settings = {"cpp.cxx": (str(path),), "cpp.enable_floating_point_contract_flag": contract}
    try:
        with config.patch(settings):
            assert torch_inside.cpp_compiler() == str(path), message
            torch_inside.run_inductor(len, [])
            backend(len, [])
    finally:
        cpp_builder.is_gcc.cache_clear()
    for line in asked:
        assert line[0] == str(path), message
        assert f"-ffp-contract={contract}" in line, message
    assert ["-fno-ipa-cp" in line for line in asked] == [compiler == "g++", False], message
    assert (keys[0] != keys[1]) == (compiler == "g++"), message


def test_without_a_compiler_or_the_setting_nothing_is_changed(monkeypatch):
    """A run on a GPU needs neither."""
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        before = config.get_hash()
        assert torch_inside.cpp_compiler() == "", changed("torch", "cpp_builder.get_cpp_compiler")
        with torch_inside.gcc_without_ipa_cp():
            assert config.get_hash() == before
    with config.patch({"cpp.enable_floating_point_contract_flag": None}), torch_inside.gcc_without_ipa_cp():
        assert config.cpp.enable_floating_point_contract_flag is None
