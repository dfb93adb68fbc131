"""A potential that kills the process that unpickles it, as often as it is told."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import mirrorode as mo


@dataclass(frozen=True)
class Deadly(mo.Euclidean):
    """½‖θ‖², deadly as long as the file ``left`` is longer than nothing."""

    left: str = ""

    def __setstate__(self, state):
        path = Path(state["left"])
        lives = path.read_bytes()
        if lives:
            path.write_bytes(lives[1:])
            os.kill(os.getpid(), signal.SIGKILL)
        self.__dict__.update(state)
