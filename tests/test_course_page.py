"""Proves that docs/cs336.md answers every problem of the assignment, and names nothing that is not there."""

import ast
import re
import shlex

import pytest
from helpers import ROOT
from helpers.pages import check_understood, commands

PAGE = "docs/cs336.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
PROBLEMS = """
    unicode1 unicode2 train_bpe train_bpe_tinystories train_bpe_expts_owt tokenizer tokenizer_experiments
    linear embedding rmsnorm positionwise_feedforward rope softmax scaled_dot_product_attention
    multihead_self_attention transformer_block transformer_lm transformer_accounting
    cross_entropy learning_rate_tuning adamw adamwAccounting learning_rate_schedule gradient_clipping
    data_loading checkpointing training_together decoding
    experiment_log learning_rate batch_size_experiment generate layer_norm_ablation pre_norm_ablation no_pos_emb
    swiglu_ablation main_experiment leaderboard
"""  # as the handout names them, in its order


@pytest.mark.parametrize("page", [PAGE, "docs/zh/cs336.md"])
def test_every_problem_has_its_heading(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == PROBLEMS.split()


def definitions(path: str) -> set[str]:
    """Returns the names of a file's functions and classes, and of methods as Class.method."""
    nodes = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    methods = {f"{c.name}.{node.name}" for c in classes for node in c.body if isinstance(node, ast.FunctionDef)}
    return methods | {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_the_functions_it_names_exist():
    places = re.findall(r"`([\w.]+)` in\s+`((?:lm|tokenization)/[\w/]+\.py)`", TEXT)
    assert len(places) > 20
    assert [(name, path) for name, path in places if name not in definitions(path)] == []
    adapters = set(re.findall(r"lm\.course\.(\w+)", TEXT))
    assert adapters == {name for name in definitions("lm/course.py") if name != "compute" and name[0] != "_"}


def test_the_files_it_names_exist():
    paths = set(re.findall(r"(?:lm|tokenization|configs|benchmarks|examples)/[\w/.-]+\.(?:py|yaml)", TEXT))
    assert len(paths) > 25
    paths |= {f"docs/{target}" for target in re.findall(r"\]\(([^):#]+)(?:#[\w-]+)?\)", TEXT)}
    assert sorted(path for path in paths if not (ROOT / path).is_file()) == []


def test_the_sections_it_refers_to_exist():
    sections = re.findall(r'\]\((\S+\.md)\),\s+"([^"]+)"', TEXT)
    assert len(sections) > 5
    for page, heading in sections:
        words = r"\s+".join(map(re.escape, heading.split()))
        assert re.search(f"^##+ {words}", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE), heading


@pytest.mark.parametrize("command", dict.fromkeys(commands(PAGE)))
def test_its_commands_are_understood(command, monkeypatch):
    """By the parsers of the programs."""
    check_understood(shlex.split(command), monkeypatch)
