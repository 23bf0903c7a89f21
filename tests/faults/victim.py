"""A client to be killed, as a program of its own: `real_life`, with its lines on stdout.

python -m tests.faults.victim ROOT BASE_MODEL STEPS
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.faults.life import real_life, teller


def main(root: str, base_model: str, steps: str) -> None:
    asyncio.run(real_life(Path(base_model))(Path(root), int(steps), teller(1)))


if __name__ == "__main__":
    main(*sys.argv[1:])
