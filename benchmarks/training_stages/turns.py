"""Steps of training that a process makes when it is asked for them."""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator


class Turns:
    """Steps that are made when the parent asks for them; what the program itself prints goes nowhere."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        self.began: tuple[float, float] | None = None

    def next(self) -> None:
        """Answers how long it took since the last turn began, and waits for the next one."""
        if self.began:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
            seconds, processor = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
            answer = {"seconds": seconds, "processor": processor, "memory": peak}
            print(json.dumps(answer), file=self.answers, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self.began = time.perf_counter(), time.process_time()

    def __iter__(self) -> Iterator[int]:
        for number in range(1 << 30):
            self.next()
            yield number
