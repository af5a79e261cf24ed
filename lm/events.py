"""What a run has told TensorBoard, read back: its curves and its texts.

A run that was interrupted has several event files. Where a later one says that it starts at a step, what the earlier
ones have from there on is void; one that says nothing begins the run anew. The pause between them, and the work that
was lost in it, does not count as time.
"""

from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.util.tensor_util import make_ndarray

from tokenization import InputError

EVENT_FILES = "events.out.tfevents.*"


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


def read_curves(folder: Path) -> dict[str, Curve]:
    """Tag to curve, of all event files of a run's folder; the text samples are "sample/text_summary".

    A file that ends in the middle of a point, as a killed run leaves it, counts up to there.
    """
    paths = sorted(folder.glob(EVENT_FILES))
    if not paths:
        raise InputError(f"{folder}: holds no {EVENT_FILES}; a run's folder is what trainer.default_root_dir named")
    curves: dict[str, Curve] = {}
    for path in paths:
        opened = start = None  # wall-clock: of the file's first event; when a run without pauses would have begun
        for event in EventFileLoader(str(path)).Load():
            opened = event.wall_time if opened is None else opened
            if event.session_log.status == SessionLog.START or (start is None and event.summary.value):
                for curve in curves.values():
                    curve.cut(event.step)
                start = opened - max((curve.seconds[-1] for curve in curves.values() if curve.seconds), default=0.0)
            if start is not None:
                _add(curves, event, event.wall_time - start)
    return {tag: curve for tag, curve in curves.items() if curve.steps}


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
