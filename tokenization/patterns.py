"""Reads a split pattern as a row of known alternatives, so that text can be split without a regular expression.

    contractions | words | numbers | signs | white space

Published patterns differ in these five parts alone. A part is known by its exact spelling; spellings that match the
same characters in every text count as one. A pattern with any other part is not known, and `regex` splits by it.
"""

import functools
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

CONTRACTIONS_EXACT, CONTRACTIONS_ANY_CASE = 1, 2  # 's, or 'S as well

Fields = dict[str, int | str]


class Parts(NamedTuple):
    """What the alternatives of a known pattern match."""

    contractions: int  # before all else: 0 for none, or one of the two above
    any_lead: bool  # a word may take any one character before it but letters, numbers and line ends, not only a space
    marks: bool  # words may have marks in them
    cased: bool  # a word ends where capitals begin
    suffix: bool  # a contraction in any case belongs to the word before it
    spaced_numbers: bool  # a space may stand before a number
    digits: int  # in a number, at most; 0 for any number of them
    mark_signs: bool  # marks are signs, where no word has them
    tail: str  # characters that signs take with them
    lines: bool  # white space is cut after its last line end
    whole_end: bool  # but for white space that ends the text


def _spellings(text: str) -> Iterator[str]:
    """Yields the text with each ~ left out, or replaced by the + that makes a repetition possessive."""
    first, *rest = text.split("~")
    for signs in product(("", "+"), repeat=len(rest)):
        yield first + "".join(sign + part for sign, part in zip(signs, rest, strict=True))


def _part(*rows: tuple[str, Fields]) -> dict[str, Fields]:
    """Returns {spelling: fields of Parts}."""
    return {spelling: fields for text, fields in rows for spelling in _spellings(text)}


_EACH, _SHORT = "'s|'t|'re|'ve|'m|'ll|'d", "[sdmt]|ll|ve|re"
_CONTRACTIONS = _part(
    ("", {"contractions": 0}),
    (f"{_EACH}|", {"contractions": CONTRACTIONS_EXACT}),
    (f"'(?:{_SHORT})|", {"contractions": CONTRACTIONS_EXACT}),
    (f"(?i:{_EACH})|", {"contractions": CONTRACTIONS_ANY_CASE}),
    (f"'(?i:{_SHORT})|", {"contractions": CONTRACTIONS_ANY_CASE}),
)

_LEAD, _UPPER, _LOWER = r"[^\r\n\p{L}\p{N}]?", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PLAIN: Fields = {"any_lead": True, "marks": False, "cased": False, "suffix": False}


def _cased(suffix: str) -> str:
    return rf"{_LEAD}{_UPPER}*{_LOWER}+{suffix}|{_LEAD}{_UPPER}+{_LOWER}*{suffix}|"


_WORDS = _part(
    (r" ?~\p{L}+~|", _PLAIN | {"any_lead": False}),
    (rf"{_LEAD}~\p{{L}}+~|", _PLAIN),
    (rf"{_LEAD}[\p{{L}}\p{{M}}]+~|", _PLAIN | {"marks": True}),
    (_cased(""), _PLAIN | {"cased": True}),
    (_cased(f"(?i:{_EACH})?"), _PLAIN | {"cased": True, "suffix": True}),
)
_NUMBERS = _part(
    (r" ?~\p{N}+~|", {"spaced_numbers": True, "digits": 0}),
    (r"\p{N}+~|", {"spaced_numbers": False, "digits": 0}),
    (r"\p{N}|", {"spaced_numbers": False, "digits": 1}),
    *((rf"\p{{N}}{{1,{most}}}~|", Fields(spaced_numbers=False, digits=most)) for most in range(1, 10)),
)
_SIGNS = _part(
    (r" ?~[^\s\p{L}\p{N}]+~|", {"mark_signs": True, "tail": ""}),
    (r" ?~[^\s\p{L}\p{N}]+~[\r\n]*~|", {"mark_signs": True, "tail": "\r\n"}),
    (r" ?~[^\s\p{L}\p{N}]+~[\r\n/]*~|", {"mark_signs": True, "tail": "\r\n/"}),
)
_SIGNS_WITHOUT_MARKS = {
    spelling.replace(r"\p{L}\p{N}", r"\p{L}\p{M}\p{N}"): fields | {"mark_signs": False}
    for spelling, fields in _SIGNS.items()
}
_LAST = r"\s+(?!\S)|\s"
_WHITE_SPACE = _part(
    *(
        (f"{end}{lines}{_LAST}{more}", Fields(lines=bool(lines), whole_end=bool(end and lines)))
        for end in ("", r"\s+~$|")
        for lines in ("", r"\s*[\r\n]|", r"\s*[\r\n]+~|")
        for more in ("", "+~")
    )
)


@functools.cache
def parts_of(pattern: str) -> Parts | None:
    """Returns the parts of a pattern, or None if one of them is not known."""
    fields: Fields = {}
    rest = pattern
    for table in (_CONTRACTIONS, _WORDS, _NUMBERS, _SIGNS, _WHITE_SPACE):
        if table is _SIGNS and fields["marks"]:  # where no word has marks in it, they are signs
            table = _SIGNS | _SIGNS_WITHOUT_MARKS
        spelling = max((known for known in table if rest.startswith(known)), key=len, default=None)
        if spelling is None:
            return None
        fields |= table[spelling]
        rest = rest.removeprefix(spelling)
    return Parts(**fields) if not rest else None  # type: ignore[arg-type]
