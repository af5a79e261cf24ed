"""What a run has told TensorBoard, read back: its curves and its texts.

A run that was interrupted has several event files. Where a later one says that it starts at a step, what the earlier
ones have from there on is void; one that says nothing begins the run anew. The pause between them, and the work that
was lost in it, does not count as time.

An event file is a row of records: a length, its checksum, so many bytes, their checksum. TensorBoard's own reader ends
silently at the first that is damaged; here what follows is read, too, and what is missing is said.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tensorboard import data_compat, dataclass_compat
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.util.tensor_util import make_ndarray

from tokenization import InputError

EVENT_FILES = "events.out.tfevents.*"
HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")


@dataclass
class Curve:
    """One tag's points, in the order of their steps."""

    steps: list[int] = field(default_factory=list)  # optimizer steps, counted from 1
    seconds: list[float] = field(default_factory=list)  # since the run began, pauses left out
    values: list = field(default_factory=list)  # float, or str where the tag holds texts

    def cut(self, step: int) -> None:
        """Drops what was drawn at this step or later."""
        kept = sum(number < step for number in self.steps)
        for points in (self.steps, self.seconds, self.values):
            del points[kept:]


class Curves(dict[str, Curve]):
    """By tag. damage: what of the event files could not be read, a line each."""

    def __init__(self) -> None:
        super().__init__()
        self.damage: list[str] = []


def read_curves(folder: Path) -> Curves:
    """Tag to curve, of all event files of a run's folder; the text samples are "sample/text_summary".

    A file that ends in the middle of a point, as a killed run leaves it, counts up to there.
    """
    paths = sorted(folder.glob(EVENT_FILES))
    if not paths:
        raise InputError(f"{folder}: holds no {EVENT_FILES}; a run's folder is what trainer.default_root_dir named")
    curves, step = Curves(), 0
    for path in paths:
        opened = start = None  # wall-clock: of the file's first event; when a run without pauses would have begun
        damaged = lost = False  # just now; anywhere in the file: also what would say at which step it begins
        for event in read_events(path):
            if event is None:
                damaged = lost = True
                curves.damage.append(f"{path}: is damaged after step {step}, and the curves end there")
                continue
            if damaged and event.summary.value:
                damaged = False
                curves.damage[-1] = f"{path}: is damaged after step {step}; the curves go on at step {event.step}"
            step = event.step or step
            opened = event.wall_time if opened is None else opened
            begins = start is None and event.summary.value and (event.step or not lost)  # settings have step 0
            if event.session_log.status == SessionLog.START or begins:
                for curve in curves.values():
                    curve.cut(event.step)
                start = opened - max((curve.seconds[-1] for curve in curves.values() if curve.seconds), default=0.0)
            if start is not None:
                _add(curves, event, event.wall_time - start)
    for tag in [tag for tag, curve in curves.items() if not curve.steps]:
        del curves[tag]
    return curves


def read_events(path: Path) -> Iterator[Event | None]:
    """Yields the events of a file, and None where some are damaged."""
    metadata: dict = {}
    for record in records(path.read_bytes()):
        if record is None:
            yield None
        else:
            yield from dataclass_compat.migrate_event(data_compat.migrate_event(Event.FromString(record)), metadata)


def records(content: bytes) -> Iterator[bytes | None]:
    """Yields each whole record, and None for damaged ones in a row; one that is cut short ends the file.

    After a damaged length the next record begins at the next place that has a length and its checksum.
    """
    place, whole = 0, True
    while (left := len(content) - place - HEADER.size - FOOTER.size) >= 0:
        length, checksum = HEADER.unpack_from(content, place)
        known = (whole or length <= left) and masked_crc32c(content[place : place + 8]) == checksum
        if known and length > left:
            return
        data = content[place + HEADER.size : place + HEADER.size + length] if known else b""
        good = known and FOOTER.unpack_from(content, place + HEADER.size + length) == (masked_crc32c(data),)
        if good or whole:
            yield data if good else None
        place += HEADER.size + length + FOOTER.size if known else 1
        whole = good


def _add(curves: dict[str, Curve], event: Event, seconds: float) -> None:
    for value in event.summary.value:
        content = make_ndarray(value.tensor)
        if content.size != 1:
            continue  # histograms and the like: nothing that `lm fit` writes
        curve = curves.setdefault(value.tag, Curve())
        item = content.flat[0]
        curve.steps.append(event.step)
        curve.seconds.append(seconds)
        curve.values.append(item.decode(errors="replace") if isinstance(item, bytes) else float(item))
