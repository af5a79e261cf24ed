"""Translating split patterns between the `regex` package and Oniguruma with Ruby's syntax, which Hugging Face uses.

    regex     Oniguruma
    ^         \\A           the beginning of the text
    $         \\Z           its end, or the line end there
    \\Z        \\z           its very end
    (?m:$)    $            the end of any line; (?m:^) and ^ are the beginnings
    (?s:      (?m:         the dot matches line ends, too
    x{1,3}+   (?>x{1,3})   possessive; Oniguruma reads x{1,3}+ as (?:x{1,3})+

Everything else that the two read differently is refused by name. Which characters are letters, digits or white space,
and which are equal but for their case, depends on each library's Unicode version, and not on the pattern.
"""

import os

import regex

from tokenization.errors import InputError
from tokenization.pretokenization import CL100K_PATTERN, check_length

# Here the plain forms suffice: \s++ leaves no line end for $ to match, and \p{N}{1,3} never has to backtrack.
_PUBLISHED = {CL100K_PATTERN: CL100K_PATTERN.replace("$", r"\z").replace("{1,3}+", "{1,3}")}
_FROM_PUBLISHED = {theirs: ours for ours, theirs in _PUBLISHED.items()}

_LINE = r"(?m:^(?!\Z))"  # a line end that ends the text begins no line for Oniguruma
_TO = {"^": r"\A", "$": r"\Z", r"\Z": r"\z", _LINE: "^", "(?m:$)": "$", "(?s:": "(?m:"}
_FROM = {theirs: ours for ours, theirs in _TO.items()}
_TO["(?m:^)"] = r"(?:^|(?<=\n)\z)"
_TOKEN = regex.compile(
    r"""\(\?m:(?: \^ | \$ | \^\(\?!\\Z\) )\)  |  \(\? (?: <?[=!] | [a-zA-Z-]*[:)] | . )   # groups
    |   \\ (?: [pP]\{[^}]*\} | x[0-9a-fA-F]{2} | u[0-9a-fA-F]{4} | . )   # escapes
    |   \[ (?: \\. | \[:\^?\w+:\] | [^\]\\] )* \]                      # classes
    |   \{[^{}]*\}[+?]?  |  .                                          # quantifiers, and the rest""",
    regex.VERBOSE | regex.DOTALL,
)
_ESCAPE = r"\\ (?: [dDwWsSbBntrfvae1-9] | \W | [pP]\{[^}]*\} | x[0-9a-fA-F]{2} | u[0-9a-fA-F]{4} )"
_PORTABLE = regex.compile(
    rf"""[^\\\[\{{]  |  {_ESCAPE}  |  \(\? (?: [:=!><] | <[=!] | i: )
    |   \{{[0-9]+\}}  |  \{{ (?: [0-9]+,[0-9]* | ,[0-9]+ ) \}}\??
    |   \[\^? (?: {_ESCAPE} | \[:\^?\w+:\] | (?! && | -- | \|\| | ~~ ) [^\[\]\\] )+ \]""",
    regex.VERBOSE | regex.DOTALL,
)


def to_oniguruma(pattern: str, path: str | os.PathLike[str]) -> str:
    """Translates a pattern into that of a tokenizer.json. path: of that file, for messages.

    Raises InputError for what Oniguruma reads in another way.
    """
    return _PUBLISHED.get(pattern) or translate(pattern, _TO, "(?>{}{})", f"{path}: cannot be exported")


def from_oniguruma(pattern: str, path: str | os.PathLike[str]) -> str:
    """Translates the pattern of a tokenizer.json; the inverse of `to_oniguruma`."""
    return _FROM_PUBLISHED.get(pattern) or translate(pattern, _FROM, "(?:{}{})+", f"{path}: cannot be imported")


def translate(pattern: str, words: dict[str, str], possessive: str, refusal: str) -> str:
    """Translates a pattern token by token.

    words: {token: translation}. possessive: the format, of an item and its quantifier, that gives {1,3}+ in the other
    dialect the meaning that it has here. refusal: the beginning of the message of the InputError.
    """
    check_length(pattern)
    translated: list[str] = []
    for token in _TOKEN.findall(pattern):
        if token in words:
            translated.append(words[token])
        elif token.endswith("}+") and translated and translated[-1][-1] != ")":
            translated.append(possessive.format(translated.pop(), token[:-1]))
        elif _PORTABLE.fullmatch(token) or (token == "(?i)" and not translated):
            translated.append(token)
        else:
            raise InputError(f"{refusal}: {token!r} in its pattern means one thing to `regex`, another to Oniguruma")
    return "".join(translated)
