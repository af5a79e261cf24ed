"""Proves that a text shown piece by piece is the text written at once: it stops where the whole would, and no character
is cut."""

import random

import pytest

from lm.generation.continuation import TextStream
from tokenization import InputError


class Alphabet:
    """A tokenizer of bytes."""

    def decode_bytes(self, token_ids):
        return bytes(token_ids)


@pytest.mark.parametrize("seed", range(30))
def test_streams_stop_where_the_whole_text_would(seed):
    """Against a search in the whole text; what is shown is never taken back, and held no longer than it must be."""
    rng = random.Random(seed)
    data = "".join(rng.choice("aabbc日é") for _ in range(40)).encode()
    stops = ["".join(rng.choice("aabbc日") for _ in range(rng.randint(2, 4))) for _ in range(rng.randint(0, 2))]
    stream, shown, text = TextStream(Alphabet(), stops), "", data.decode()
    for end, byte in enumerate(data, start=1):
        shown += stream.feed(byte)
        so_far = data[:end].decode(errors="ignore")
        if stream.stopped:
            break
        held = so_far.removeprefix(shown)
        assert so_far == shown + held
        assert held == "" or any(stop.startswith(held) for stop in stops)
    shown += stream.close()
    ends = [text.find(stop) for stop in stops if stop in text]
    assert stream.stopped == bool(ends)
    assert shown == text[: min(ends)] if ends else shown == text


@pytest.mark.parametrize("seed", range(20))
def test_where_tokens_begin(seed):
    """Tokens of any bytes, some of no character, some of parts of one or of several: against each byte's character."""
    rng = random.Random(seed)
    text = "".join(rng.choice("aé日😀\ufffd") for _ in range(30))
    owners = [index for index, character in enumerate(text) for _ in character.encode()]
    data, tokens = text.encode(), {}
    stream, starts = TextStream(Dictionary(tokens)), []
    while data:
        length = rng.randint(1, 5)
        tokens[len(tokens)], data = data[:length], data[length:]
        starts.append(sum(map(len, tokens.values())) - len(tokens[len(tokens) - 1]))
    shown = "".join(stream.feed(token_id) for token_id in tokens)
    assert shown + stream.close() == text
    assert stream.offsets == [owners[start] for start in starts]
    broken = TextStream(Dictionary({0: b"\xe6", 1: b"\x97", 2: b"a\xff", 3: b"\xff\xe6", 4: b"b"}))
    assert "".join(map(broken.feed, range(5))) == "\ufffda\ufffd\ufffd\ufffdb"
    assert broken.offsets == [0, 0, 1, 3, 5]


class Dictionary:
    """A tokenizer of these tokens."""

    def __init__(self, tokens: dict[int, bytes]):
        self.tokens = tokens

    def decode_bytes(self, token_ids):
        return b"".join(self.tokens[token_id] for token_id in token_ids)


def test_a_text_that_ends_within_a_character():
    stream = TextStream(Alphabet())
    assert [stream.feed(byte) for byte in "é日".encode()[:4]] == ["", "é", "", ""]
    assert stream.close() == "\ufffd"
    with pytest.raises(InputError, match="empty stop string"):
        TextStream(Alphabet(), ["a", ""])
