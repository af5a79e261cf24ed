"""The field of a record that holds its text.

    {"text": "..."}                    without --text-field, or {"content": "..."}
    {"body": "..."}                    --text-field body
    {"message": {"content": "..."}}    --text-field message.content

A dotted name leads through objects. A key that contains the dots itself comes first: of the keys that the name begins
with, the longest is followed. A chat is a list of messages and no text, so it is refused with what to do.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

TEXT_FIELDS = ("text", "content")  # the first of them that a record has
CHATS = {"messages": "content", "conversations": "value"}  # lists of messages, and the field of a message

_JSON_TYPES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


class FieldError(Exception):
    """A record has no such field; says what it has instead, and what to do."""


class Kind(NamedTuple):
    """How a format's records are looked into, and what their parts are called in messages."""

    field: str  # what it calls a field
    fields_of: Callable[[Any], Mapping[str, Any] | None]  # of an object; None for any other value
    describe: Callable[[Any], str]  # what a value is, after its name


def json_type(value: object) -> str:
    """Returns what JSON calls a value, with its article."""
    return _JSON_TYPES.get(type(value), "a number")


JSON = Kind("field", lambda value: value if type(value) is dict else None, lambda value: f"is {json_type(value)}")


def find_field(record: Mapping[str, Any], text_field: str | None, kind: Kind = JSON) -> tuple[list[str], Any]:
    """Returns the keys that lead to the field of the text, as a rule one, and what is there.

    text_field: a name, as above; None takes the first of TEXT_FIELDS. Raises FieldError where it leads nowhere.
    """
    for name in TEXT_FIELDS if text_field is None else (text_field,):
        if name in record:
            return [name], record[name]
    if text_field is None:
        raise FieldError(missing(kind.field, TEXT_FIELDS, list(record)))
    path: list[str] = []
    rest = text_field
    while rest not in record:
        key = next((key for key in beginnings(rest) if key in record), None)
        if key is None:
            raise FieldError(missing(kind.field, [rest], list(record), ".".join(path)))
        path.append(key)
        rest = rest.removeprefix(f"{key}.")
        inner = kind.fields_of(record[key])
        if inner is None:
            what = f"the {kind.field} {'.'.join(path)!r} {kind.describe(record[key])} and has no {rest!r}"
            raise FieldError(f"{what}; {remedy(key)}")
        record = inner
    return [*path, rest], record[rest]


def beginnings(name: str) -> list[str]:
    """Returns what stands in front of each dot of a name, the longest first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def missing(field: str, names: Sequence[str], found: Sequence[str], within: str = "") -> str:
    """Returns the message where none of the names is among those found. within: the object that they are in."""
    wanted = " or ".join(map(repr, names))
    inside = f" in {within!r}" if within else ""
    listed = ", ".join(map(repr, found[:8])) + (", ..." if len(found) > 8 else "")
    chat = next((name for name in found if name in CHATS), "")
    return f"has no {field} {wanted}{inside}, only {listed or 'none'}; {remedy(chat, 'name one')}"


def remedy(key: str, name_another: str = "name another") -> str:
    """Returns what to do where a field of this key holds something else than text, or a record holds it instead."""
    if key not in CHATS:
        return f"{name_another} with --text-field"
    as_text = f'{{text: ([.{key}[].{CHATS[key]}] | join("\\n"))}}'
    return (
        f"{key!r} are chats, which can be written as text in many ways, so write each as one string: for JSON Lines,"
        f" `jq -c '{as_text}'` is one way"
    )
