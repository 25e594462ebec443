"""How tests stop long runs: by Ctrl-C, and by `kill -9`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


class Pressed:
    """A progress bar on which the user presses Ctrl-C after so many steps."""

    def __init__(self, after: int):
        self.left = after

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def advance(self, count):
        """Count steps."""
        self.left -= count
        if self.left <= 0:
            raise KeyboardInterrupt


def forked(run: Callable[[], None]) -> int:
    """Run in a process of its own; give its number."""
    child = os.fork()
    if not child:
        try:
            run()
        finally:
            os._exit(0)
    return child


def kill(run: Callable[[int], None], path: Path, kind: str, kills: int, most: int) -> None:
    """Run so many times, given which, and kill each run when it has written some more files.

    A run writes `path/kind-000000.npz` and so on; between one and `most` of them, and a moment.
    """
    rng, written = np.random.default_rng(5), 0
    for attempt in range(kills):
        child = forked(lambda attempt=attempt: run(attempt))
        after = written + rng.integers(1, most)
        while not (path / f"{kind}-{after - 1:06d}.npz").exists():
            if os.waitpid(child, os.WNOHANG)[0]:
                sys.exit(f"process {attempt} ended with {written} files")
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.01))
        os.kill(child, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            sys.exit(f"process {attempt} was not killed")
        written = len(list(path.glob(f"{kind}-*.npz")))
