"""Texts for many at once: one thread owns the Writer, and whoever wants a text hands it in and is called back.

    submit(texts)  they wait for a free row, in order; Busy where too many wait
    cancel(texts)  their rows, and their places in the queue, are free again
    close()        the end: whoever still waits for a token is told

Between two steps the thread takes in what was handed in meanwhile, so that a text does not wait for the end of another
as long as there is a row.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from lm.generation.writer import Drawn, Text, Writer
from tokenization import InputError

Deliver = Callable[[Drawn | Exception], None]  # called in the engine's thread


class Busy(Exception):
    """There is no place for so many texts now."""


class Stopped(Exception):
    """The server ends."""


class Engine:
    def __init__(self, writer: Writer, rows: int, queue: int):
        """rows: texts that are written at once, at most; queue: that wait, at most."""
        self.writer, self.rows, self.queue = writer, rows, queue
        self.waiting: deque[Text] = deque()
        self.deliver: dict[Text, Deliver] = {}  # of all that wait or are written
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self.thread.start()

    def submit(self, texts: Sequence[Text], deliver: Deliver) -> None:
        if len(texts) > self.rows + self.queue:
            raise InputError(
                f"{len(texts)} texts at once are more than slots + queue ({self.rows} + {self.queue}); ask for fewer"
            )
        with self.changed:
            if self.closed:
                raise Stopped
            free = self.rows - (len(self.deliver) - len(self.waiting))
            if len(self.waiting) + len(texts) > free + self.queue:
                raise Busy(
                    f"{len(self.waiting)} texts wait, and there is no place for {len(texts)} more; try again later"
                )
            self.waiting.extend(texts)
            self.deliver |= dict.fromkeys(texts, deliver)
            self.changed.notify()

    def cancel(self, texts: Iterable[Text]) -> None:
        """Those that are over already are passed by."""
        with self.changed:
            for text in texts:
                if self.deliver.pop(text, None) and text in self.waiting:
                    self.waiting.remove(text)
            self.changed.notify()

    def status(self) -> dict[str, int]:
        with self.changed:
            waiting = len(self.waiting)
            return {"running": len(self.deliver) - waiting, "waiting": waiting, "slots": self.rows, "queue": self.queue}

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._wait():
            try:
                self._step()
            except Exception as error:  # of the model as a whole; whoever waits must hear of it
                self._fail(error)
        self._fail(Stopped())

    def _wait(self) -> bool:
        """Until there is something to do; False at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self.waiting or self.writer.texts)
            return not self.closed

    def _step(self) -> None:
        with self.changed:
            gone = [text for text in self.writer.texts if text not in self.deliver]
            new = [
                self.waiting.popleft()
                for _ in range(min(len(self.waiting), self.rows - len(self.writer.texts) + len(gone)))
            ]
        for text in gone:
            self.writer.drop(text)
        self.writer.read()
        for text in new:
            try:
                self.writer.add(text)
            except Exception as error:  # of this text alone
                self._hand_out(text, error, last=True)
        for drawn in self.writer.step() if self.writer.texts else ():
            self._hand_out(drawn.text, drawn.text.error or drawn, drawn.last)

    def _hand_out(self, text: Text, news: Drawn | Exception, last: bool) -> None:
        with self.changed:
            deliver = self.deliver.pop(text, None) if last else self.deliver.get(text)
        if deliver:
            deliver(news)

    def _fail(self, error: Exception) -> None:
        with self.changed:
            delivers, self.deliver = set(self.deliver.values()), {}
            self.waiting.clear()
        for text in list(self.writer.texts):
            self.writer.drop(text)
        for deliver in delivers:
            deliver(error)
