"""What a test says where a library has changed."""

from importlib.metadata import version


def changed(library: str, part: str) -> str:
    return f"{library} {version(library)} has changed: {part}; mend lightning_inside.py or torch_inside.py"
