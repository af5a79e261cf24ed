"""Split patterns in two dialects: the `regex` package's, and Oniguruma's with Ruby's syntax, which Hugging Face reads.

    regex     Oniguruma
    ^         \\A           the beginning of the text
    $         \\Z           its end, or the line end there
    \\Z        \\z           its very end
    (?m:$)    $            the end of any line; (?m:^) and ^ are the beginnings
    (?s:      (?m:         the dot takes line ends, too
    x{1,3}+   (?>x{1,3})   possessive; Oniguruma takes x{1,3}+ for (?:x{1,3})+

What else the two read differently is refused by name. Which characters are letters, digits or white space, and which
are equal but for their case, is a matter of each library's Unicode version, and not of a pattern.
"""

import os

import regex

from tokenization.errors import InputError
from tokenization.pretokenization import CL100K_PATTERN, check_length

# Here the plainer words do: \s++ leaves no line end for $ to see, and \p{N}{1,3} never has to give one back.
_PUBLISHED = {CL100K_PATTERN: CL100K_PATTERN.replace("$", r"\z").replace("{1,3}+", "{1,3}")}
_FROM_PUBLISHED = {theirs: ours for ours, theirs in _PUBLISHED.items()}

_LINE = r"(?m:^(?!\Z))"  # a line end that ends the text begins no line for Oniguruma
_TO = {"^": r"\A", "$": r"\Z", r"\Z": r"\z", _LINE: "^", "(?m:$)": "$", "(?s:": "(?m:"}
_FROM = {theirs: ours for ours, theirs in _TO.items()}
_TO["(?m:^)"] = r"(?:^|(?<=\n)\z)"
_TOKEN = regex.compile(
    r"""\(\?m:(?: \^ | \$ | \^\(\?!\\Z\) )\)  |  \(\? (?: <?[=!] | [a-zA-Z-]*[:)] | . )   # groups
    |   \\ (?: [pP]\{[^}]*\} | x[\da-fA-F]{2} | u[\da-fA-F]{4} | . )   # escapes
    |   \[ (?: \\. | \[:\^?\w+:\] | [^\]\\] )* \]                      # classes
    |   \{[^{}]*\}[+?]?  |  .                                          # quantifiers, and the rest""",
    regex.VERBOSE | regex.DOTALL,
)
_ESCAPE = r"\\ (?: [dDwWsSbBntrfvae1-9] | \W | [pP]\{[^}]*\} | x[\da-fA-F]{2} | u[\da-fA-F]{4} )"
_PORTABLE = regex.compile(
    rf"""[^\\\[\{{]  |  {_ESCAPE}  |  \(\? (?: [:=!><] | <[=!] | i: )
    |   \{{\d+\}}  |  \{{ (?: \d+,\d* | ,\d+ ) \}}\??
    |   \[\^? (?: {_ESCAPE} | \[:\^?\w+:\] | (?! && | -- | \|\| | ~~ ) [^\[\]\\] )+ \]""",
    regex.VERBOSE | regex.DOTALL,
)


def to_oniguruma(pattern: str, path: str | os.PathLike[str]) -> str:
    """The pattern as a tokenizer.json has it; path: of that file, for messages."""
    return _PUBLISHED.get(pattern) or translate(pattern, _TO, "(?>{}{})", f"{path}: cannot be exported")


def from_oniguruma(pattern: str, path: str | os.PathLike[str]) -> str:
    return _FROM_PUBLISHED.get(pattern) or translate(pattern, _FROM, "(?:{}{})+", f"{path}: cannot be imported")


def translate(pattern: str, words: dict[str, str], possessive: str, refusal: str) -> str:
    """Word by word. possessive: how the other dialect says that what stands before {1,3}+ repeats in this one's way."""
    check_length(pattern)
    parts: list[str] = []
    for token in _TOKEN.findall(pattern):
        if token in words:
            parts.append(words[token])
        elif token.endswith("}+") and parts and parts[-1][-1] != ")":
            parts.append(possessive.format(parts.pop(), token[:-1]))
        elif _PORTABLE.fullmatch(token) or (token == "(?i)" and not parts):
            parts.append(token)
        else:
            raise InputError(f"{refusal}: {token!r} in its pattern means one thing to `regex`, another to Oniguruma")
    return "".join(parts)
