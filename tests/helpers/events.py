"""What a run has told TensorBoard."""

from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.util.tensor_util import make_ndarray

from lm.runs import events

Curves = dict[str, list[tuple[int, float]]]


class Asked(events.Curves):
    """The curves of a run that has logged nothing; `tags` are those that somebody has looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def get(self, tag, default=None):
        self.tags.add(tag)
        return super().get(tag, default)


def read_events(folder: Path) -> tuple[Curves, dict[str, list[tuple[int, str]]]]:
    """The curves of all event files of a run, and its texts, joined as TensorBoard does it: where a later file says
    that it starts at a step, what earlier ones have from there on is void."""
    scalars: dict[str, list] = {}
    texts: dict[str, list] = {}
    for path in sorted(folder.glob("events*")):
        for event in EventFileLoader(str(path)).Load():
            if event.session_log.status == SessionLog.START:
                for points in (*scalars.values(), *texts.values()):
                    points[:] = [point for point in points if point[0] < event.step]
            for value in event.summary.value:
                if value.tag.startswith(("_hparams_", "custom_scalars__")):  # settings, a layout
                    continue
                content = make_ndarray(value.tensor).flat[0]
                if isinstance(content, bytes):
                    texts.setdefault(value.tag, []).append((event.step, content.decode()))
                else:
                    scalars.setdefault(value.tag, []).append((event.step, float(content)))
    return scalars, texts
