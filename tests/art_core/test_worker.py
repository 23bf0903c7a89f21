"""A trainer in another process: nothing is lost on the way, and its death, slowness or refusal is a typed error."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from art_core import message
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG
from art_core.config import Timeouts
from art_core.errors import (
    ArtError,
    NonFiniteLossError,
    PluginNotFoundError,
    TrainerError,
    TrainerStartError,
    TrainerUnavailableError,
)
from art_core.message import decode, encode, own_versions, skew
from art_core.step import StepConfig
from art_core.testing.condition import LONGEST_S, NOTICED_S, TOLD_S, until, within
from art_core.worker import TrainerWorker
from tests.numpy_trainer import ASKING, FACTORY, SPEC, make_batch

ROOT = Path(__file__).parents[2]
OWNER = """
import asyncio, sys
from pathlib import Path
from art_core.config import Timeouts
from art_core.worker import TrainerWorker
from tests.numpy_trainer import ASKING, FACTORY, SPEC, make_batch
from art_core.step import StepConfig

async def main():
    worker = TrainerWorker(FACTORY, {}, Path(sys.argv[1]), Timeouts())
    info = await worker.start(SPEC, None)
    print(info.versions["pid"], flush=True)
    await worker.step(make_batch(), StepConfig(learning_rate=ASKING[sys.argv[2]]))
asyncio.run(main())
"""


def asking(word: str) -> StepConfig:
    return StepConfig(learning_rate=ASKING[word])


@pytest.fixture(autouse=True, scope="module")
def importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., TrainerWorker]]:
    made: list[TrainerWorker] = []

    def build(timeouts: Timeouts | None = None, part: str = FACTORY, **options: Any) -> TrainerWorker:
        made.append(TrainerWorker(part, options, tmp_path / "logs" / "trainer.log", timeouts or Timeouts()))
        return made[-1]

    yield build
    for worker in made:
        await worker.stop()


@pytest.fixture
async def worker(make: Callable[..., TrainerWorker]) -> TrainerWorker:
    """A started worker, to be harmed."""
    worker = make()
    await worker.start(SPEC, None)
    return worker


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TrainerWorker]:
    """A worker for the tests that leave its process well."""
    log = tmp_path_factory.mktemp("shared") / "trainer.log"
    worker = TrainerWorker(FACTORY, {"path": Path("/a")}, log, Timeouts())
    yield worker
    await worker.stop()


async def logged(log: Path, text: str) -> None:
    await until(lambda: text in log.read_text(), f"{log.name} says {text!r}")


async def pid_of(worker: TrainerWorker) -> int:
    return int((await worker.start(SPEC, None)).versions["pid"])


def test_a_message_is_its_own_inverse() -> None:
    arrays: dict[str, Any] = {
        "i": np.arange(6, dtype=np.int32).reshape(2, 3).T,
        "b": np.array([True, False]),
        "f": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }
    data, back = decode(encode({"x": [1 / 3, 5e-324, "é\0", None]}, arrays))
    assert data == {"x": [1 / 3, 5e-324, "é\0", None]}
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()
        assert back[name].flags.writeable
    assert decode(encode({}, {})) == ({}, {})


async def test_every_call_crosses_exactly(shared: TrainerWorker, tmp_path: Path) -> None:
    info = await shared.start(SPEC, None)
    assert info.versions["spec"] == repr(replace(SPEC, lora=replace(SPEC.lora, target_modules=["q_proj", "k_proj"])))
    assert (info.model.identity.name, info.model.chat_template, info.model.dtype) == ("tiny", "é {{ x }}", "float32")
    batch = make_batch()
    result = await shared.step(batch, StepConfig(learning_rate=0.1))
    assert result.updated
    assert result.metrics["third"] == 1 / 3
    assert result.metrics["sum"] == float(batch.tokens_BT.sum() + batch.lengths_B.sum())
    assert result.metrics["numpy"] == float(np.float32(0.1))
    for i in range(2):
        np.testing.assert_array_equal(result.probe.tokens[i], batch.tokens_BT[i])
        np.testing.assert_array_equal(result.probe.scored[i], batch.loss_mask_BT[i])
        np.testing.assert_array_equal(result.probe.before[i], batch.logprobs_BT[i])
        np.testing.assert_array_equal(result.probe.after[i], batch.logprobs_BT[i] * 2)
        assert (result.probe.tokens[i].dtype, result.probe.scored[i].dtype) == (np.int32, np.bool_)
    await shared.save(tmp_path)
    assert load_file(tmp_path / ADAPTER)["weight"].tolist() == [np.float32(0.1)] * 4
    assert (tmp_path / ADAPTER_CONFIG).read_text() == '{"path": "/a"}'
    await shared.offload()
    await shared.onload()
    await shared.start(SPEC, tmp_path)
    await shared.step(batch, StepConfig(learning_rate=0.1))
    (tmp_path / "again").mkdir()
    await shared.save(tmp_path / "again")
    assert load_file(tmp_path / "again" / ADAPTER)["weight"].tolist() == [np.float32(0.1) + np.float32(0.1)] * 4


async def test_the_socket_is_private_and_removed(worker: TrainerWorker) -> None:
    connection = worker._connection
    assert connection is not None
    directory = connection._directory
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    await worker.stop()
    assert not directory.exists()


async def test_a_typed_error_is_rebuilt_with_its_traceback(shared: TrainerWorker) -> None:
    await shared.start(SPEC, None)
    with pytest.raises(NonFiniteLossError, match="loss is nan") as caught:
        await shared.step(make_batch(), asking("raise"))
    assert (caught.value.stage, caught.value.run, caught.value.step) == ("step", "r", 3)
    assert 'numpy_trainer.py", line' in caught.value.__notes__[0]
    with pytest.raises(TrainerError, match="ZeroDivisionError: by zero") as foreign:
        await shared.step(make_batch(), asking("raise foreign"))
    assert type(foreign.value) is TrainerError
    assert (await shared.step(make_batch(), StepConfig())).metrics["steps"] == 1


async def test_a_trainer_that_can_not_start_says_why(make: Callable[..., TrainerWorker]) -> None:
    with pytest.raises(TrainerStartError, match="TypeError: no such kernel"):
        await make(fail_start=True).start(SPEC, None)
    with pytest.raises(PluginNotFoundError, match="nosuch"):
        await make(part="nosuch").start(SPEC, None)


async def test_an_interpreter_that_is_missing_or_bare_is_named(tmp_path: Path) -> None:
    missing = TrainerWorker(FACTORY, {}, tmp_path / "log", Timeouts(), python="/no/python")
    with pytest.raises(TrainerStartError, match=r"/no/python can't be started: .*No such file"):
        await missing.start(SPEC, None)
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(TrainerStartError, match=r"(?s)did not start: process .*No module named"):
        await TrainerWorker(FACTORY, {}, tmp_path / "log", Timeouts(), python=str(bare)).start(SPEC, None)


async def test_other_versions_are_refused_and_both_named(
    make: Callable[..., TrainerWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message, "CONTRACT_VERSION", 99)
    worker = make()
    with pytest.raises(TrainerStartError, match="contract is 99 here and 1 there; install the same"):
        await worker.start(SPEC, None)
    with pytest.raises(TrainerUnavailableError, match="not started"):
        await worker.step(make_batch(), StepConfig())


def test_which_versions_fit() -> None:
    own = own_versions("torch")
    assert skew(own, own) is None
    assert skew(own, {**own, "Python": "3.99.1", "numpy": own["numpy"].split(".")[0] + ".999.9", "more": "1"}) is None
    others = {"art-torch": "0.0.1", "art-core": "0.0.1", "contract": "0", "Python": "2.7.18", "numpy": "1.26.4"}
    assert set(others) == set(own)
    for name, other in others.items():
        assert skew(own, {**own, name: other}) == f"{name} is {own[name]} here and {other} there"
        assert skew(own, {k: v for k, v in own.items() if k != name}) == f"{name} is {own[name]} here and none there"


async def test_kill_9_mid_step_is_noticed(worker: TrainerWorker, tmp_path: Path) -> None:
    pid = await pid_of(worker)
    step = asyncio.create_task(worker.step(make_batch(), asking("block")))
    await logged(tmp_path / "logs" / "trainer.log", "waiting")
    os.kill(pid, signal.SIGKILL)
    told = r"(?s)was killed by SIGKILL; last lines of .*trainer.log:\n.*waiting"
    with within(NOTICED_S, "a kill is noticed"), pytest.raises(TrainerUnavailableError, match=told):
        await step
    with pytest.raises(TrainerUnavailableError, match="was killed by SIGKILL"):
        await worker.step(make_batch(), StepConfig())
    with pytest.raises(TrainerUnavailableError):
        await worker.save(tmp_path)


async def test_a_worker_that_exits_mid_step_shows_status_and_log(worker: TrainerWorker) -> None:
    with pytest.raises(TrainerUnavailableError, match=r"(?s)is gone: process \d+ ended with exit status 3;.*farewell"):
        await worker.step(make_batch(), asking("exit"))


@pytest.mark.parametrize("call", ["save", "offload", "onload"])
async def test_kill_9_in_any_call_is_noticed_and_it_starts_again(
    make: Callable[..., TrainerWorker], tmp_path: Path, call: str
) -> None:
    worker = make(block_in=call)
    (tmp_path / "saved").mkdir()
    calls = {"save": lambda: worker.save(tmp_path / "saved"), "offload": worker.offload, "onload": worker.onload}
    pid = await pid_of(worker)
    running = asyncio.ensure_future(calls[call]())
    await logged(tmp_path / "logs" / "trainer.log", "waiting")
    os.kill(pid, signal.SIGKILL)
    with within(TOLD_S, "a kill is told"), pytest.raises(TrainerUnavailableError, match="was killed by SIGKILL"):
        await running
    assert await pid_of(worker) != pid
    assert (await worker.step(make_batch(), StepConfig())).metrics["steps"] == 1


async def test_its_log_lines_are_told_again_here(
    worker: TrainerWorker, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.INFO, "art.trainer"):
        await worker.step(make_batch(), asking("log"))
        await until(lambda: "last" in caplog.text, "the lines are told again")
    told = [(each.name, each.levelname, each.message) for each in caplog.records]
    assert told == [
        ("art.trainer", "INFO", "art.numpy: ours, é"),
        ("art.trainer", "WARNING", "library: theirs"),
        ("art.trainer", "ERROR", f"library: {'x' * 900}"),
        ("art.trainer", "INFO", "art.numpy: last"),
    ]
    assert {"chatter", "x" * 5000} <= set((tmp_path / "logs" / "trainer.log").read_text().split()), "the file has all"


async def test_a_flood_of_lines_stops_nothing(worker: TrainerWorker, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "art.trainer"):
        assert (await worker.step(make_batch(), asking("flood"))).metrics["steps"] == 1


async def test_it_starts_again_after_death(worker: TrainerWorker, tmp_path: Path) -> None:
    await worker.step(make_batch(), StepConfig(learning_rate=0.1))
    await worker.save(tmp_path)
    pid = await pid_of(worker)
    assert worker.alive
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TrainerUnavailableError, match="was killed by SIGKILL"):
        await worker.step(make_batch(), StepConfig())
    info = await worker.start(SPEC, tmp_path)
    assert int(info.versions["pid"]) != pid
    assert (await worker.step(make_batch(), StepConfig())).metrics["steps"] == 1


async def test_a_cancelled_step_has_ended_when_it_raises(worker: TrainerWorker, tmp_path: Path) -> None:
    pid = await pid_of(worker)
    for count in (1, 2):
        step = asyncio.create_task(worker.step(make_batch(), asking("wait")))
        await logged(tmp_path / "logs" / "trainer.log", "waiting\n" * count)
        start = time.perf_counter()
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        assert time.perf_counter() - start >= 0.2, "the trainer takes that long to end its microbatch"
        result = await worker.step(make_batch(), StepConfig())
        assert (result.metrics["steps"], result.metrics["cancelled"]) == (count, count)
    assert await pid_of(worker) == pid


async def test_a_call_cancelled_before_it_was_sent_is_never_made(shared: TrainerWorker) -> None:
    """Cancelled at each of the first event-loop turns, so before, while and after the request is sent."""
    await shared.start(SPEC, None)
    for turns in range(40):
        step = asyncio.create_task(shared.step(make_batch(64, 4096), asking("wait")))
        for _ in range(turns):
            await asyncio.sleep(0)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
    async with asyncio.timeout(LONGEST_S):
        assert (await shared.step(make_batch(), StepConfig())).metrics["steps"] == 1


async def test_a_call_that_does_not_end_when_cancelled_is_killed(
    make: Callable[..., TrainerWorker], tmp_path: Path
) -> None:
    worker = make(Timeouts(trainer_cancel_s=0.2))
    pid = await pid_of(worker)
    step = asyncio.create_task(worker.step(make_batch(), asking("block")))
    await logged(tmp_path / "logs" / "trainer.log", "waiting")
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert not psutil.pid_exists(pid)
    with pytest.raises(TrainerUnavailableError):
        await worker.step(make_batch(), StepConfig())
    assert await pid_of(worker) != pid


async def test_a_start_that_is_cancelled_leaves_nothing(make: Callable[..., TrainerWorker], tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    worker = make(slow_start=True)
    start = asyncio.create_task(worker.start(SPEC, None))
    await until((tmp_path / "logs" / "trainer.log").exists, "the process has its log")
    await logged(tmp_path / "logs" / "trainer.log", "loading")
    start.cancel()
    async with asyncio.timeout(LONGEST_S):
        with pytest.raises(asyncio.CancelledError):
            await start
    assert {child.pid for child in psutil.Process().children()} <= before


async def test_cancelling_twice_kills(worker: TrainerWorker, tmp_path: Path) -> None:
    pid = await pid_of(worker)
    step = asyncio.create_task(worker.step(make_batch(), asking("block")))
    await logged(tmp_path / "logs" / "trainer.log", "waiting")
    step.cancel()
    await asyncio.sleep(0)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert not psutil.pid_exists(pid)


async def test_a_call_that_takes_too_long_is_killed(make: Callable[..., TrainerWorker]) -> None:
    worker = make(Timeouts(step_s=0.3))
    pid = await pid_of(worker)
    with pytest.raises(TrainerUnavailableError, match=r"step took longer than 0.3 s, so its process was killed"):
        await worker.step(make_batch(), asking("block"))
    assert not psutil.pid_exists(pid)
    assert await pid_of(worker) != pid


async def test_a_start_that_takes_too_long_leaves_nothing(tmp_path: Path) -> None:
    worker = TrainerWorker(FACTORY, {}, tmp_path / "log", Timeouts(trainer_start_s=0.02))
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(TrainerStartError, match=r"was not ready within 0.02 s"):
        await worker.start(SPEC, None)
    assert {child.pid for child in psutil.Process().children()} <= before


async def test_stop_is_polite_idempotent_and_quiet_about_the_dead(
    make: Callable[..., TrainerWorker], tmp_path: Path
) -> None:
    worker = make(Timeouts(trainer_stop_s=LONGEST_S))
    await worker.stop()
    pid = await pid_of(worker)
    await worker.stop()
    await worker.stop()
    assert not psutil.pid_exists(pid)
    assert (tmp_path / "logs" / "trainer.log").read_text().count("stopped") == 1
    pid = await pid_of(worker)
    os.kill(pid, signal.SIGKILL)
    await worker.stop()


async def test_stop_ends_a_step_under_way(make: Callable[..., TrainerWorker], tmp_path: Path) -> None:
    worker = make(Timeouts(trainer_stop_s=LONGEST_S))
    await worker.start(SPEC, None)
    step = asyncio.create_task(worker.step(make_batch(), asking("wait")))
    await logged(tmp_path / "logs" / "trainer.log", "waiting")
    await worker.stop()
    with pytest.raises(ArtError):
        await step
    assert "stopped" in (tmp_path / "logs" / "trainer.log").read_text()


async def test_an_owner_killed_with_9_leaves_no_process(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path / "log", "block"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert owner.stdout is not None
    child = psutil.Process(int(owner.stdout.readline()))
    await logged(tmp_path / "log", "waiting")
    sockets = [Path(word).parent for word in child.cmdline() if word.endswith("/socket")]
    assert len(sockets) == 1 and sockets[0].is_dir()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert (await asyncio.to_thread(psutil.wait_procs, [child], LONGEST_S))[1] == []
    assert not sockets[0].exists()


def test_it_works_from_one_event_loop_after_another(tmp_path: Path) -> None:
    worker = TrainerWorker(FACTORY, {}, tmp_path / "log", Timeouts())
    asyncio.run(worker.start(SPEC, None))
    for count in (1, 2):
        assert asyncio.run(worker.step(make_batch(), StepConfig())).metrics["steps"] == count
    asyncio.run(worker.stop())


async def test_a_temporary_directory_too_deep_for_a_socket_says_so(
    make: Callable[..., TrainerWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(TrainerStartError, match="AF_UNIX path too long"):
        await make().start(SPEC, None)
    assert list(deep.iterdir()) == []
