"""TensorBoard's files, read by their own format: which metrics stand in them, over which steps."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

import art
from art.local import LocalBackend
from tests.art_core.rollout import group


def events(directory: Path) -> Iterator[Event]:
    """Every event of a directory, in the order of its files: length, checksum, event, checksum."""
    for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


async def log(root: Path, steps: range) -> None:
    model = art.Model(name="agent", project="board", report_metrics=["tensorboard"])
    async with LocalBackend(path=root) as backend:
        await model.register(backend)
        for step in steps:
            await model.log([group(1.0, 0.0)], split="train", step=step, metrics={"loss/train": float(step)})


async def test_two_programs_make_one_run(tmp_path: Path) -> None:
    await log(tmp_path, range(2))
    await log(tmp_path, range(2, 3))
    directory = tmp_path / "board/models/agent/tensorboard"
    assert len([*directory.iterdir()]) == 2
    found = [
        (event.step, value.tag, value.simple_value) for event in events(directory) for value in event.summary.value
    ]
    assert [(step, value) for step, tag, value in found if tag == "loss/train"] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert [(step, value) for step, tag, value in found if tag == "train/reward"] == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert not [each for each in threading.enumerate() if type(each).__module__.startswith("tensorboardX")]
