"""Proves that `from lm import NAME` gives what the module of that name gives, and that `import lm` loads nothing."""

import ast
import subprocess
import sys
from importlib import import_module

import pytest
from helpers import ROOT

import lm

SOURCE = ast.parse((ROOT / "lm/__init__.py").read_text())
SHOWN = {  # to editors and type checkers
    alias.name: node.module
    for node in ast.walk(SOURCE)
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lm.")
    for alias in node.names
}


def test_nothing_heavy_is_imported_before_it_is_used():
    """In a process of its own, with a command that needs no model, too."""
    program = (
        "import sys, lm\nassert not {'numpy', 'tokenization', 'lm.model'} & set(sys.modules)\n"
        "from lm.__main__ import main\n"
        "try:\n    main(['report', '--help'])\nexcept SystemExit as leaving:\n    assert not leaving.code\n"
        "heavy = {'torch', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert lm.cosine_warmup(1, 1.0, 0.1, 2, 4) == 0.5\n"
        "assert 'lm.optim.schedule' in sys.modules and 'lightning' not in sys.modules\n"
        "from lm.generation.decoding import CachedReader\n"
        "model = lm.TransformerLM(8, 4, 4, 1, num_heads=1, d_ff=4)\n"
        "CachedReader(model, 1, model.lm_head.weight.dtype).read(0, [1])\n"
        "heavy = {'lightning', 'sympy', 'torch._dynamo'} & set(sys.modules)\n"  # each a second and more
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: lm report")


@pytest.mark.parametrize("name", lm.__all__)
def test_each_name_is_its_modules(name):
    assert getattr(lm, name) is getattr(import_module(SHOWN[name]), name)
    assert name in dir(lm)


def test_what_editors_see_is_all_of_it():
    assert sorted(SHOWN) == lm.__all__
    assert {"load", "TransformerLM", "LanguageModel", "TokenDataModule", "AdamW", "generate"} <= SHOWN.keys()


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="module 'lm' has no attribute 'Transformer'"):
        _ = lm.Transformer
    with pytest.raises(ImportError, match="cannot import name 'train_bpe' from 'lm'"):
        from lm import train_bpe  # noqa: F401
