"""The torch trainer, which stops in the middle of a save once, to be killed there."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from art_core.checkpoint import ADAPTER
from tests.own_trainer import OwnTrainer


class StoppedTrainer(OwnTrainer):
    """Stops where the file that the option ``stop`` names exists; writes its process's id there."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__({name: value for name, value in options.items() if name != "stop"})
        self._stop = Path(options["stop"])

    async def save(self, directory: Path) -> None:
        """See `Trainer.save`; half of a file is there when it stops."""
        if self._stop.exists():
            (directory / ADAPTER).write_bytes(b"half")
            self._stop.write_text(f"{os.getpid()}\n")
            signal.pause()
        await super().save(directory)
