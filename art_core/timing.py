"""Where the time of a step went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timings:
    """Wall-clock seconds per named span; a span entered twice adds up.

    Spans may nest or run side by side; each counts its own wall time.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time the block, also when it raises.

        Args:
            name: The span's name; for a stage of the straight line, the stage's.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """The spans as metrics ``time/step_<span>_s``."""
        return {f"time/step_{name}_s": value for name, value in self.seconds.items()}
