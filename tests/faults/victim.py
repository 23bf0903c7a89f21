"""A client to be killed, as a program of its own: `real_life`, with its lines on stdout.

python -m tests.faults.victim ROOT BASE_MODEL STEPS [STOPPED_AT...]

It stops itself (SIGSTOP) once it has said that it trains a step STOPPED_AT, so that whoever kills knows where it is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.faults.life import real_life, teller


def main(root: str, base_model: str, steps: str, *stopped_at: str) -> None:
    tell = teller(1)

    def say(*words: object) -> None:
        tell(*words)
        if words[0] == "training" and str(words[1]) in stopped_at:
            os.kill(os.getpid(), signal.SIGSTOP)

    asyncio.run(real_life(Path(base_model))(Path(root), int(steps), say))


if __name__ == "__main__":
    main(*sys.argv[1:])
