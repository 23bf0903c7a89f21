"""Observer `tensorboard`: every line of metrics as scalars over the training step, below the run's directory."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from art_core.hookspecs import hookimpl
from art_core.run import LogRecord

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

DIRECTORY = "tensorboard"

_writers: dict[Path, SummaryWriter] = {}
_turn = threading.Lock()


@hookimpl
def art_on_log(run: str, record: LogRecord) -> None:
    """Write the metrics, and force them to the file."""
    from tensorboardX import SummaryWriter

    with _turn:
        if record.run_path not in _writers:
            # names of files hold the second only: of two starts within one the later would replace the earlier's
            suffix = f".{uuid.uuid4().hex[:8]}"
            _writers[record.run_path] = SummaryWriter(str(record.run_path / DIRECTORY), filename_suffix=suffix)
        writer = _writers[record.run_path]
        for name, value in sorted(record.metrics.items()):
            writer.add_scalar(name, value, record.step)
        writer.flush()


@hookimpl
def art_on_close(run: str) -> None:
    """Close the run's file."""
    with _turn:
        for path in [path for path in _writers if path.name == run]:
            _writers.pop(path).close()
