"""What is odd about a document: how far it compresses, and characters that do not belong in text."""

import re
import zlib

SHORTEST = 1000  # bytes of a document that is judged by its compression: shorter ones hardly compress
REPETITIVE = 8.0  # bytes per compressed byte, and more: prose has 2
INCOMPRESSIBLE = 1.4  # and less: base64 has 1.3, random bytes 1.0

SIGNS = {  # name: a character class, and what it is
    "nul": (r"\0", "NUL"),
    "control": (r"\x01-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f", "control characters"),
    "separator": (r"\v\f\x1c-\x1e\x85\u2028\u2029", "line separators other than \\n"),
    "replacement": ("\ufffd", "U+FFFD, where a decoder failed"),
    "mark": ("\ufeff", "U+FEFF, a byte order mark within the text"),
}
_EACH = {name: re.compile(f"[{characters}]") for name, (characters, _) in SIGNS.items()}
_ANY = re.compile(f"[{''.join(characters for characters, _ in SIGNS.values())}]")


def compression(data: bytes) -> float:
    """Returns the bytes per byte that zlib makes of them; 0 of a document too short to be judged."""
    return len(data) / len(zlib.compress(data, 1)) if len(data) >= SHORTEST else 0.0


def signs_of(text: str) -> tuple[int, int]:
    """Returns which SIGNS a text has, a bit each, and the place of the first; (0, 0) for none."""
    first = _ANY.search(text)
    if first is None:
        return 0, 0
    return sum(1 << bit for bit, sign in enumerate(_EACH.values()) if sign.search(text)), first.start()
