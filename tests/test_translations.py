"""Proves that the Chinese pages have the commands, figures, code and links of the English ones, and that the
comparison names what differs. To try it, digits of the real pages are changed, one at a time."""

import random
import re
from os.path import normpath
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.translations import LINK, TRANSLATED, differences, target

PAIRS = {"README.md": "README.zh.md"} | {
    f"docs/{path.name}": f"{TRANSLATED}{path.name}" for path in sorted((ROOT / TRANSLATED).glob("*.md"))
}
HAN, STOPS = "[\u4e00-\u9fff]", "[\u3001\u3002\uff08-\uff1f]"
UNLIKE_CHINESE = re.compile(
    rf"{HAN}[,.;:!?()\w`]|[,.;:!?(\w`%]{HAN}"  # a stop of half width; no space between Chinese and English
    rf"|({HAN}|{STOPS})\n(?!\n|[-#|>]|\d\. |$)",  # a paragraph of several lines: browsers show a space for each end
    re.ASCII,
)
each_pair = pytest.mark.parametrize(("page", "translation"), PAIRS.items(), ids=PAIRS.values())


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@each_pair
def test_a_translation_says_the_same(page: str, translation: str) -> None:
    assert list(differences(page, read(page), translation, read(translation))) == []


@each_pair
def test_its_links_lead_to_chinese_pages_where_there_are_any(page: str, translation: str) -> None:
    for link in LINK.findall(read(translation)):
        path, _, section = link.partition("#")
        there = normpath(Path(translation).parent / path) if path else translation
        original = target(path, translation) if path else page
        right = PAIRS.get(original, original)
        assert there in (right, page), f"{link}: should lead to {right}"
        if section and there in PAIRS.values():
            assert f'<a id="{section}"></a>' in read(there), f"{link}: no such place"


@each_pair
def test_its_punctuation_is_chinese(page: str, translation: str) -> None:
    text = re.sub("^```.*?^```", "", read(translation), flags=re.DOTALL | re.MULTILINE)
    assert [text[max(0, found.start() - 10) : found.end() + 10] for found in UNLIKE_CHINESE.finditer(text)] == []


@pytest.mark.parametrize("text", ["训练,好", "用lm 训练", "`lm`的", "3步", "损失(2)", "好。\n再来", "三\n步"])
def test_other_punctuation_is_noticed(text: str) -> None:
    assert UNLIKE_CHINESE.search(text)


@each_pair
def test_a_changed_digit_is_noticed(page: str, translation: str) -> None:
    text = read(translation)
    digits = [match.start() for match in re.finditer(r"\d", text)]
    for at in random.Random(0).sample(digits, min(20, len(digits))):
        tampered = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]
        found = list(differences(page, read(page), translation, tampered))
        line = text.count("\n", 0, at) + 1
        assert found, f"{translation}:{line} {text[at - 20 : at + 20]!r}"


AGREE = [
    ("It has 1.1 million parameters, 22.7M more.", "它有 110 万个参数、还有 22.7M 个。"),
    ("In 2 min 27 s, or 2.8 CPU seconds", "2 分 27 秒、或 2.8 CPU 秒"),
    ("42 % of 1,024 in 5.8 hours", "5.8 小时、1024 的 42%"),
    ("2.454 ([x](x.md), \"Two longer\n  runs\")", "2.454、见 [x](../x.md) 的“Two longer runs”一节"),
    ("1. one\n2. `two`\n   more", "1. 一\n2. 二 `two`"),
    ("| a | 4 of 5 |\n|---|---|", "| 甲 | 5 之 4 |\n| --- | --- |"),
    ("```sh\nlm fit  # trains\n# 3 more\nls\n```", "```sh\nlm fit  # 训练\n# 还有 3 个\nls\n```"),
    ("> She said\n> so.", "> She said so."),
    ("See [the course](cs336.md).", "见[课程](cs336.md)。"),
]  # fmt: skip


@pytest.mark.parametrize(("english", "chinese"), AGREE)
def test_what_may_differ(english: str, chinese: str) -> None:
    assert list(differences("docs/a.md", english, "docs/zh/a.md", chinese)) == []


@pytest.mark.parametrize(
    ("english", "chinese", "named"),
    [
        ("a\n\nloss 2.306", "甲\n\n损失 2.307", ["a.md:3 has the figure '2.306'", "zh/a.md:3 has the figure '2.307'"]),
        ("8.508 GB", "8.508 GiB", ["'8.508 GB'", "'8.508 GiB'"]),
        ("1.1 million", "1.1 万", ["'1100000'", "'11000'"]),
        ("3 s", "3 分钟", ["'3 s'", "'3 min'"]),
        ("5 and 5", "两个 5", ["docs/a.md:1 has the figure '5'"]),
        ("an H100", "一块 A100", ["'H100'", "'A100'"]),
        ("4.0", "4.00", ["'4.0'", "'4.00'"]),
        ("| 1 | 2 |", "| 2 | 1 |", ["'1'", "'2'"]),
        ("`lm fit`", "`lm test`", ["the code 'lm fit'", "the code 'lm test'"]),
        ("[a](b.md)", "[甲](c.md)", ["the link 'docs/b.md'", "the link 'docs/c.md'"]),
        ("```sh\nlm fit\nlm test\n```", "```sh\nlm fit\nlm tset\n```", ["docs/zh/a.md:3 has the line 'lm tset'"]),
        ("```sh\nlm fit\n```", "```python\nlm fit\n```", ["the line '```python'"]),
        ("```sh\na\nb\n```", "```sh\na\n```", ["docs/a.md:3 has a code sh where docs/zh/a.md:3 has a fence"]),
        ("> She said so.", "> 她是这样说的。", ["the line 'She said so.'"]),
        ("## One\n\n## Two", "## 一", ["docs/a.md:3 has a heading ## where docs/zh/a.md ends"]),
        ("a\n\n- b", "甲\n\n乙", ["docs/a.md:3 has a item - where docs/zh/a.md:3 has a paragraph"]),
        ('[a](b.md), "One" x', "[a](../b.md) 的“Two”", ["docs/a.md:1 names the section 'One'"]),
    ],
)  # fmt: skip
def test_what_differs_is_named(english: str, chinese: str, named: list[str]) -> None:
    found = list(differences("docs/a.md", english, "docs/zh/a.md", chinese))
    assert found
    assert [words for words in named if not any(words in line for line in found)] == []
