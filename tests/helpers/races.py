"""Races of two processes for one folder, forked from one that has imported nothing but the lock.

As a program: `races.py FOLDER RACES LOCKS SEED` prints for each race how the two ended, as JSON.
"""

import json
import os
import random
import select
import sys
import time
from pathlib import Path

from lm.runs.folder import LOCK
from lm.runs.lock import run_lock
from tokenization import InputError, systems


def race(folder: Path, stale: bool, delay: float) -> list[str]:
    """Two processes that want the folder at once -> how each ended.

    A winner keeps the folder until the other one is refused, however late that comes on a busy machine; of two winners,
    each waits in vain.
    """
    folder.mkdir()
    if stale:
        pid = os.fork()
        if not pid:
            with run_lock(folder):
                os._exit(0)  # without giving it back
        os.waitpid(pid, 0)
        assert (folder / LOCK).exists()
    (start, go), (refused, refuse) = os.pipe(), os.pipe()
    pids = []
    for number in range(2):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        code = 1
        try:
            os.close(go)
            os.read(start, 1)
            time.sleep(number * delay)
            with run_lock(folder):
                with open(folder / "winners", "a") as file:
                    file.write("x")
                select.select([refused], [], [], 10)
            code = 10
        except InputError:
            os.write(refuse, b"x")
            code = 20
        finally:
            os._exit(code)
    os.close(start)
    os.close(go)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    os.close(refused)
    os.close(refuse)
    assert not (folder / LOCK).exists()
    return sorted({10: "won", 20: "refused"}.get(code, "failed") for code in codes)


if __name__ == "__main__":
    folder, races, locks, seed = sys.argv[1:]
    if locks == "without":
        systems.fcntl = None  # type: ignore[assignment]
    rng = random.Random(int(seed))
    ends = [race(Path(folder, str(number)), number % 2 == 1, rng.choice([0, 0, 0.001])) for number in range(int(races))]
    print(json.dumps(ends))
