"""Runs a Writer in one thread for many callers, who submit texts and are called back with their tokens.

    submit(texts)  queues texts for free rows, in order; raises Busy if too many wait
    cancel(texts)  frees their rows, and their places in the queue
    close()        stops; callers who still wait for a token are told

Texts submitted during a step join before the next one: while there is a free row, no text waits for another to end.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch

from lm.generation.texts import Drawn, Text
from lm.generation.writer import Writer
from lm.machine.contention import LOOK_EVERY, OtherPrograms
from lm.machine.waiting import wait_briefly
from tokenization import InputError

Deliver = Callable[[Drawn | Exception], None]  # called in the engine's thread


class Busy(Exception):
    """The queue has no room for so many texts now."""


class Stopped(Exception):
    """The server is shutting down, or its thread has ended by an error."""


class Engine:
    """Generates the texts of all requests. rows: the most generated at once; queue: the most that wait."""

    def __init__(self, writer: Writer, rows: int, queue: int):
        self.writer, self.rows, self.queue = writer, rows, queue
        self.waiting: deque[Text] = deque()
        self.deliver: dict[Text, Deliver] = {}  # for each text that waits or is being generated
        self.changed = threading.Condition()
        self.closed = self.closing = False  # by an error, too; by close alone
        self.thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self.thread.start()

    def submit(self, texts: Sequence[Text], deliver: Deliver) -> None:
        """Queues texts; deliver gets each token, or the error that ends a text. Raises Busy, Stopped or InputError."""
        if len(texts) > self.rows + self.queue:
            raise InputError(
                f"{len(texts)} texts are more than slots + queue ({self.rows} + {self.queue}); ask for fewer"
            )
        with self.changed:
            if self.closed:
                raise Stopped
            free = self.rows - (len(self.deliver) - len(self.waiting))
            if len(self.waiting) + len(texts) > free + self.queue:
                raise Busy(
                    f"{len(self.waiting)} texts wait, and there is no room for {len(texts)} more; try again later"
                )
            self.waiting.extend(texts)
            self.deliver |= dict.fromkeys(texts, deliver)
            self.changed.notify()

    def cancel(self, texts: Iterable[Text]) -> None:
        """Gives up texts; those that have ended are ignored."""
        with self.changed:
            for text in texts:
                if self.deliver.pop(text, None) and text in self.waiting:
                    self.waiting.remove(text)
            self.changed.notify()

    def status(self) -> dict[str, int]:
        """Counts the texts being generated and those that wait."""
        with self.changed:
            waiting = len(self.waiting)
            return {"running": len(self.deliver) - waiting, "waiting": waiting, "slots": self.rows, "queue": self.queue}

    def close(self) -> None:
        """Stops the thread, and waits for its end."""
        with self.changed:
            self.closed = self.closing = True
            self.changed.notify()
        self.thread.join()

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        others = OtherPrograms(torch.get_num_threads())
        try:
            while self._wait():
                try:
                    if others.look(LOOK_EVERY):
                        wait_briefly(others.in_the_way)
                    self._step()
                except Exception as error:  # concerns all texts; their callers must hear of it
                    self._fail(error)
                    for text in list(self.writer.texts):  # fails, too, where the device is lost; then the thread ends
                        self.writer.drop(text)
        finally:
            with self.changed:
                self.closed = True
            self._fail(Stopped())

    def _wait(self) -> bool:
        """Waits until there is something to do; returns False if the engine is closed."""
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
            except Exception as error:  # concerns this text alone
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
        for deliver in delivers:
            deliver(error)
