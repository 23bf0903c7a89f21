"""A trainer in a process of its own, behind the trainer's contract.

So no training library holds the client's interpreter, and the trainer may live in another one with other pins. The
child is `art_core.worker_server`, the wire format is `art_core.message`'s, and the child can't outlive this process
(`art_core.process`). What it logs is in its log file, and its own lines and all warnings come to the logger
``art.trainer`` here. A worker that has died, or was killed because a call took too long, makes that call and all
later ones `TrainerUnavailableError`, until `start` launches it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from art_core.batch import TrainBatch
from art_core.config import Timeouts
from art_core.errors import ArtError, TrainerError, TrainerStartError, TrainerUnavailableError, from_wire
from art_core.log_line import forward
from art_core.message import Arrays, decode, encode, encoded_of, own_versions, skew
from art_core.process import Child, ProcessError
from art_core.protocols.trainer import TrainerInfo, TrainerSpec
from art_core.step import Probe, StepConfig, StepResult
from art_core.supervised import EncodedChat, EncodeRequest

_SPEC, _INFO, _CONFIG = TypeAdapter(TrainerSpec), TypeAdapter(TrainerInfo), TypeAdapter(StepConfig)
_REQUEST = TypeAdapter(EncodeRequest)

_SOCKET = "socket"
_WITHOUT_STATE = ("start", "stop")
"""Calls that leave nothing worth keeping when they are cancelled: the process is killed, not waited for."""

_log = logging.getLogger("art.worker")
_trainer_log = logging.getLogger("art.trainer")


class TrainerWorker:
    """A `Trainer` whose calls are made in a child process.

    Args:
        part: Name of an installed trainer, or ``module:callable`` that makes one of its options.
        options: The trainer's options.
        log_path: File that the child's output is appended to.
        timeouts: How long each call may take.
        variables: Variables to launch the child with.
        python: Interpreter to run the child with; it must have the same art-core, and the same plugin.
    """

    def __init__(
        self,
        part: str,
        options: Mapping[str, Any],
        log_path: Path,
        timeouts: Timeouts,
        variables: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        self._part = part
        self._variables = variables or {}
        self._options = options
        self._log_path = log_path
        self._timeouts = timeouts
        self._python = python
        self._connection: _Connection | None = None

    async def start(self, spec: TrainerSpec, resume_from: Path | None) -> TrainerInfo:
        """Launch the process if none is alive, then start the trainer in it; see `Trainer.start`.

        Raises:
            TrainerStartError: The process did not come up, or its versions don't fit ours (both are named).
            TrainerUnavailableError: It died or was too slow while loading.
        """
        deadline = time.monotonic() + self._timeouts.trainer_start_s
        if self._connection is None or not self._connection.child.alive:
            await self.stop()
            self._connection = await self._launch()
        data = {
            "spec": _SPEC.dump_python(spec, mode="json"),
            "resume_from": _absolute(resume_from) if resume_from else None,
            "options": to_jsonable_python(self._options),
        }
        answer, _ = await self._call("start", data, {}, deadline - time.monotonic())
        return _INFO.validate_python(answer["info"])

    @property
    def alive(self) -> bool:
        """Whether the process has not ended; where it has, `start` launches it again."""
        return self._connection is not None and self._connection.child.alive

    @property
    def process_id(self) -> int:
        """Of the process.

        Raises:
            TrainerUnavailableError: There is none.
        """
        if self._connection is None:
            raise TrainerUnavailableError(f"trainer {self._part!r} is not started; call start first")
        return self._connection.child.pid

    async def step(self, batch: TrainBatch, config: StepConfig) -> StepResult:
        """See `Trainer.step`. A cancelled step has ended in the process too when this raises."""
        data = {"config": _CONFIG.dump_python(config, mode="json")}
        answer, arrays = await self._call("step", data, batch.arrays(), self._timeouts.step_s)
        return StepResult(answer["metrics"], Probe.from_arrays(arrays), answer["updated"])

    async def encode(self, request: EncodeRequest) -> Sequence[EncodedChat]:
        """See `SupervisedTrainer.encode`."""
        data = {"request": _REQUEST.dump_python(request, mode="json")}
        _, arrays = await self._call("encode", data, {}, self._timeouts.step_s)
        return encoded_of(arrays)

    async def save(self, directory: Path) -> None:
        """See `Trainer.save`."""
        await self._call("save", {"directory": _absolute(directory)}, {}, self._timeouts.save_s)

    async def offload(self) -> None:
        """See `Trainer.offload`."""
        await self._call("offload", {}, {}, self._timeouts.trainer_start_s)

    async def onload(self) -> None:
        """See `Trainer.onload`."""
        await self._call("onload", {}, {}, self._timeouts.trainer_start_s)

    async def stop(self) -> None:
        """Cancel what runs, free everything and end the process; idempotent, never raises for a dead one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _call(
        self, method: str, data: dict[str, Any], arrays: Arrays, timeout_s: float
    ) -> tuple[dict[str, Any], Arrays]:
        if self._connection is None:
            raise TrainerUnavailableError(f"trainer {self._part!r} is not started; call start first")
        return await self._connection.call(method, data, arrays, timeout_s)

    async def _launch(self) -> _Connection:
        directory = Path(tempfile.gettempdir()) / f"art-{uuid.uuid4().hex[:16]}"  # made by the child; goes with it
        lines, written = os.pipe()
        command = [self._python, "-P", "-m", "art_core.worker_server", self._part, str(directory / _SOCKET)]
        command += ["--log-fd", str(written)]
        try:
            child = await Child.launch(
                command, log_path=self._log_path, env=self._variables, pass_fds=[written], private=directory
            )
        except ProcessError as error:
            raise TrainerStartError(f"trainer {self._part!r}: {error}") from error
        finally:
            os.close(written)
            forward(lines, _trainer_log)
        connection = _Connection(self._part, child, directory, self._timeouts)
        try:
            hello = await child.ready(self._timeouts.trainer_start_s)
            self._require_same(hello["versions"])
        except BaseException as error:
            await child.stop(0)
            if isinstance(error, ProcessError):
                raise TrainerStartError(f"trainer {self._part!r} did not start: {error}") from error
            raise
        return connection

    def _require_same(self, versions: Mapping[str, str]) -> None:
        if difference := skew(own_versions(self._part), versions):
            raise TrainerStartError(
                f"trainer {self._part!r} runs in {self._python} with versions that don't fit: {difference}; "
                f"install the same on both sides"
            )


class _Connection:
    """One running worker process and how to call it."""

    def __init__(self, part: str, child: Child, directory: Path, timeouts: Timeouts) -> None:
        self.child = child
        self._part = part
        self._directory = directory
        self._timeouts = timeouts

    async def call(
        self, method: str, data: dict[str, Any], arrays: Arrays, timeout_s: float
    ) -> tuple[dict[str, Any], Arrays]:
        """Make a call, for as long as the process lives and the time-out allows.

        Raises:
            ArtError: What the trainer raised, with its traceback as a note.
            TrainerUnavailableError: The process has died, or was killed because the time was up.
        """
        call = uuid.uuid4().hex
        request = asyncio.ensure_future(self._post(method, {"call": call, **data}, arrays))
        end = asyncio.ensure_future(self.child.exited())
        try:
            done, _ = await asyncio.wait({request, end}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                await self.child.stop(0)
                raise TrainerUnavailableError(
                    f"trainer {self._part!r}: {method} took longer than {timeout_s:g} s, so its process was killed; "
                    f"start it again, with a longer time-out"
                )
            if end in done and not request.done():
                raise self._dead(end.result())
            answer, returned = request.result()
        except httpx.HTTPError as error:
            raise self._dead(await self._ended()) from error
        except asyncio.CancelledError:
            await self._cancel(method, call)
            raise
        finally:
            for task in (request, end):
                task.cancel()
            await asyncio.gather(request, end, return_exceptions=True)
        if "error" in answer:
            raise from_wire(answer["error"], TrainerStartError if method == "start" else TrainerError)
        return answer, returned

    async def close(self) -> None:
        """Stop the trainer, then end the process."""
        try:
            if self.child.alive:
                await self.call("stop", {}, {}, self._timeouts.trainer_stop_s)
        except ArtError as error:
            _log.warning("trainer %r did not stop by itself: %s", self._part, error)
        finally:
            await self.child.stop(self._timeouts.trainer_stop_s)

    async def _cancel(self, method: str, call: str) -> None:
        """Cancel a call and wait until it has ended in the process; kill the process where it does not end."""
        if method in _WITHOUT_STATE:
            await self.child.stop(0)
            return
        try:
            async with asyncio.timeout(self._timeouts.trainer_cancel_s):
                await self._post("cancel", {"call": call}, {})
        except (TimeoutError, httpx.HTTPError) as error:
            _log.warning("trainer %r did not end a cancelled call (%r); its process is killed", self._part, error)
            await self.child.stop(0)
        except asyncio.CancelledError:
            await self.child.stop(0)
            raise

    async def _ended(self) -> int:
        """Exit status of a process whose connection broke; one that still lives is of no use and killed."""
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                return await self.child.exited()
        except TimeoutError:
            return await self.child.stop(0)

    def _dead(self, status: int) -> TrainerUnavailableError:
        return TrainerUnavailableError(f"trainer {self._part!r} is gone: {self.child.died(status)}")

    async def _post(self, method: str, data: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        # A client per call costs a millisecond and makes any event loop of the owner do; there is no TLS to verify.
        transport = httpx.AsyncHTTPTransport(uds=str(self._directory / _SOCKET), verify=False)
        timeout = httpx.Timeout(None, connect=self._timeouts.connect_s)
        async with httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as client:
            response = await client.post(f"http://worker/{method}", content=encode(data, arrays))
            response.raise_for_status()
        return decode(response.content)


def _absolute(path: Path) -> str:
    return str(path.absolute())
