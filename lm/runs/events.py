"""Reads a run's curves and text samples back from its TensorBoard event files.

A run that was interrupted has several event files. If a later one declares the step at which it starts, it replaces the
earlier ones' points from that step on; if it declares none, it starts the run anew. Neither the pause between them nor
the work lost in it counts as time.

An event file is a sequence of records: a length, its checksum, that many bytes, their checksum. TensorBoard's own
reader stops silently at the first damaged record; this one reads on after it, and reports what is missing.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from tokenization import InputError

EVENT_FILES = "events.out.tfevents.*"
SINCE = "val/since"  # the step after which the validated text is the present one, if it was another before
MACHINE, CODE = "machine", "code"  # names among the hyperparameters that each start of a run logs
HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")


@dataclass
class Curve:
    """The points of one tag, in the order of their steps."""

    steps: list[int] = field(default_factory=list)  # optimizer steps, counted from 1
    seconds: list[float] = field(default_factory=list)  # since the run began, without pauses
    values: list[Any] = field(default_factory=list)  # float, or str for a tag of text samples

    def cut(self, step: int) -> None:
        """Drops the points at this step and later."""
        kept = sum(number < step for number in self.steps)
        for points in (self.steps, self.seconds, self.values):
            del points[kept:]


class Start(NamedTuple):
    """Where a run started or went on; an older run has recorded neither."""

    machine: str
    code: str


class Curves(dict[str, Curve]):
    """The curves of a run by tag.

    damage: one line on each place in the event files that could not be read. starts: one for each start of the run.
    began, ended: when, in seconds of the system's clock; 0.0 if no event tells.
    """

    def __init__(self) -> None:
        super().__init__()
        self.damage: list[str] = []
        self.starts: list[Start] = []
        self.began = self.ended = 0.0


def read_curves(folder: Path) -> Curves:
    """Reads all event files of a run's folder; the text samples are under "sample/text_summary".

    A file that ends within a record, as a killed run leaves it, counts up to there. InputError if there is no file.
    """
    paths = sorted(folder.glob(EVENT_FILES))
    if not paths:
        raise InputError(f"{folder}: holds no {EVENT_FILES}; name a run's folder, its trainer.default_root_dir")
    curves, step = Curves(), 0
    for path in paths:
        opened = start = None  # wall-clock time: of the file's first event; of the run's start, had it not paused
        damaged = lost = False  # the last record; any record of the file, perhaps the one that declares its first step
        for event in read_events(path):
            if event is None:
                damaged = lost = True
                curves.damage.append(f"{path}: is damaged after step {step:,}, and the curves end there")
                continue
            if damaged and event.summary.value:
                damaged = False
                curves.damage[-1] = f"{path}: is damaged after step {step:,}; the curves go on at step {event.step:,}"
            step = event.step or step
            opened = event.wall_time if opened is None else opened
            curves.began, curves.ended = curves.began or opened, max(curves.ended, event.wall_time)
            curves.starts += starts(event)
            begins = start is None and event.summary.value and (event.step or not lost)  # hyperparameters have step 0
            if event.session_log.status == SessionLog.START or begins:
                for curve in curves.values():
                    curve.cut(event.step)
                start = opened - max((curve.seconds[-1] for curve in curves.values() if curve.seconds), default=0.0)
            if start is not None:
                _add(curves, event, event.wall_time - start)
        if opened is None and not lost:
            curves.damage.append(f"{path}: holds no whole event")
    for tag in [tag for tag, curve in curves.items() if not curve.steps]:
        del curves[tag]
    return curves


def read_events(path: Path) -> Iterator[Event | None]:
    """Yields the events of a file, and None for each damaged stretch."""
    for record in records(path.read_bytes()):
        yield None if record is None else Event.FromString(record)


def records(content: bytes) -> Iterator[bytes | None]:
    """Yields each whole record, and None for each damaged stretch; a truncated record ends the file.

    After a damaged length, the next record begins at the next offset that holds a length and its checksum.
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


def starts(event: Event) -> Iterator[Start]:
    """Yields the start of a run that the event's hyperparameters describe, if it has any."""
    for value in event.summary.value:
        if value.tag == SESSION_START_INFO_TAG:
            found = HParamsPluginData.FromString(value.metadata.plugin_data.content).session_start_info.hparams
            yield Start(found[MACHINE].string_value, found[CODE].string_value)


def _add(curves: dict[str, Curve], event: Event, seconds: float) -> None:
    for value in event.summary.value:
        item = None if value.tag == CONFIG_SUMMARY_TAG else _item(value)  # TensorBoard's layout is no curve
        if item is not None:
            curve = curves.setdefault(value.tag, Curve())
            curve.steps.append(event.step)
            curve.seconds.append(seconds)
            curve.values.append(item)


def _item(value: Summary.Value) -> float | str | None:
    """Returns a number or a text; None for a histogram or the like, which `lm fit` never writes."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    content = make_ndarray(value.tensor) if value.HasField("tensor") else np.empty(0)
    if content.size != 1:
        return None
    item = content.flat[0]
    return item.decode(errors="replace") if isinstance(item, bytes) else float(item)
