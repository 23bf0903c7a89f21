"""Child side of `art_core.worker`: one trainer behind a Unix socket. Run as ``python -m art_core.worker_server``.

The trainer is named by the part that a plugin registers (``mine``), or, for one that no plugin registers, by
``module:callable``, which is called with the options as a mapping. It is made at the first ``start``.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import uvicorn
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from art_core.batch import TrainBatch
from art_core.environment.spec import misfit_here
from art_core.errors import PluginLoadError, PluginNotFoundError, TrainerStartError, nearest, to_wire
from art_core.log_line import LogLineHandler
from art_core.message import Arrays, arrays_of, decode, encode, own_versions
from art_core.part import TrainerPart, require_contract
from art_core.plugins import load_part
from art_core.process import announce, attach_owner
from art_core.protocols.trainer import SupervisedTrainer, Trainer, TrainerInfo, TrainerSpec
from art_core.step import StepConfig
from art_core.supervised import EncodeRequest

Answer = tuple[dict[str, Any], Arrays]
_NOTHING: Answer = ({}, {})

_SPEC, _INFO, _CONFIG = TypeAdapter(TrainerSpec), TypeAdapter(TrainerInfo), TypeAdapter(StepConfig)
_REQUEST = TypeAdapter(EncodeRequest)


class TrainerHost:
    """Makes a trainer's calls one at a time, each in a task that can be cancelled by the call's id."""

    def __init__(self, create: Callable[[Mapping[str, Any]], Trainer]) -> None:
        self._create = create
        self._made: Trainer | None = None
        self._turn = asyncio.Lock()
        self._running: dict[str, asyncio.Task[Answer]] = {}
        self._cancelled: set[str] = set()
        self._methods: Mapping[str, Callable[[dict[str, Any], Arrays], Awaitable[Answer]]] = {
            "start": self._start,
            "step": self._step,
            "encode": self._encode,
            "save": self._save,
            "offload": self._offload,
            "onload": self._onload,
            "stop": self._stop,
        }

    async def answer(self, method: str, data: dict[str, Any], arrays: Arrays) -> Answer:
        """Make one call.

        Args:
            method: ``cancel`` or a method of `Trainer`.
            data: The request's JSON.
            arrays: The request's arrays.
        """
        call = data["call"]
        if method == "cancel":
            await self._cancel(call)
            return _NOTHING
        if method == "stop":
            for running in list(self._running):
                await self._cancel(running)
        async with self._turn:
            if call in self._cancelled:
                return {"error": to_wire(asyncio.CancelledError())}, {}
            task = asyncio.ensure_future(self._methods[method](data, arrays))
            self._running[call] = task
            await asyncio.wait({task})
            del self._running[call]
        if task.cancelled():
            return {"error": to_wire(asyncio.CancelledError())}, {}
        if error := task.exception():
            return {"error": to_wire(error)}, {}
        return task.result()

    async def _cancel(self, call: str) -> None:
        """Returns when the call has ended; a call that has not arrived yet will be refused."""
        self._cancelled.add(call)
        if task := self._running.get(call):
            task.cancel()
            await asyncio.wait({task})

    @property
    def _trainer(self) -> Trainer:
        if self._made is None:
            raise RuntimeError("the trainer was not started")
        return self._made

    async def _start(self, data: dict[str, Any], arrays: Arrays) -> Answer:
        if self._made is None:
            self._made = self._create(data["options"])
        resume_from = data["resume_from"]
        info = await self._made.start(_SPEC.validate_python(data["spec"]), Path(resume_from) if resume_from else None)
        return {"info": _INFO.dump_python(info, mode="json")}, {}

    async def _step(self, data: dict[str, Any], arrays: Arrays) -> Answer:
        result = await self._trainer.step(TrainBatch(**arrays), _CONFIG.validate_python(data["config"]))  # type: ignore[arg-type]
        metrics = {name: float(value) for name, value in result.metrics.items()}
        return {"metrics": metrics, "updated": result.updated}, result.probe.arrays()

    async def _encode(self, data: dict[str, Any], arrays: Arrays) -> Answer:
        require_contract(self._trainer, SupervisedTrainer, "the trainer, which declares 'supervised',")
        encoded = await cast(SupervisedTrainer, self._trainer).encode(_REQUEST.validate_python(data["request"]))
        return {}, arrays_of(encoded)

    async def _save(self, data: dict[str, Any], arrays: Arrays) -> Answer:
        await self._trainer.save(Path(data["directory"]))
        return _NOTHING

    async def _offload(self, data: dict[str, Any], arrays: Arrays) -> Answer:
        await self._trainer.offload()
        return _NOTHING

    async def _onload(self, data: dict[str, Any], arrays: Arrays) -> Answer:
        await self._trainer.onload()
        return _NOTHING

    async def _stop(self, data: dict[str, Any], arrays: Arrays) -> Answer:
        if self._made is not None:
            await self._made.stop()
        return _NOTHING


def _factory(trainer: str) -> Callable[[Mapping[str, Any]], Trainer]:
    def create(options: Mapping[str, Any]) -> Trainer:
        if ":" in trainer:
            made = _imported(trainer)(options)
            require_contract(made, Trainer, f"what trainer {trainer!r} returns")
            return made
        part = cast(TrainerPart, load_part("trainer", trainer))
        _require_library(part)
        return part.create(part.options.parse(dict(options)))

    return create


def _imported(trainer: str) -> Callable[[Mapping[str, Any]], Trainer]:
    """What ``module:callable`` names, in this process."""
    module, _, name = trainer.partition(":")
    try:
        found: Mapping[str, Any] = vars(import_module(module))
    except ImportError as error:
        advice = "install it for this interpreter, or put its directory on PYTHONPATH before the run starts"
        raise PluginLoadError(f"trainer {trainer!r} can't be imported: {error}; {advice}") from error
    if not callable(found.get(name)):
        offered = [each for each, value in found.items() if callable(value) and not each.startswith("_")]
        raise PluginNotFoundError(f"trainer {trainer!r}: {module} has no callable {name!r}; {nearest(name, offered)}")
    return cast(Callable[[Mapping[str, Any]], Trainer], found[name])


def _require_library(part: TrainerPart) -> None:
    """Refuse an interpreter without the part's library before its code meets that."""
    spec = part.environment
    if spec is not None and (reason := misfit_here(spec)):
        raise TrainerStartError(
            f"trainer {part.name!r} can't run in {sys.executable}: {reason}; install that there, or leave the option "
            f"`python` out and let `art env create {part.name}` build an environment"
        )


async def _serve(trainer: str, socket_path: Path) -> None:
    host = TrainerHost(_factory(trainer))

    async def handle(request: Request) -> Response:
        data, arrays = decode(await request.body())
        return Response(encode(*await host.answer(request.path_params["method"], data, arrays)))

    app = Starlette(routes=[Route("/{method}", handle, methods=["POST"])])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()
        # From here on a connection waits for the server, however long that takes to come up.
        announce({"versions": own_versions(trainer)})
        config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, access_log=False)
        await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    """Serve until the owner stops or ends."""
    parser = argparse.ArgumentParser(prog="art_core.worker_server", description=__doc__)
    parser.add_argument("trainer", help="name of an installed trainer, or module:callable")
    parser.add_argument("socket", type=Path, help="path of the Unix socket to serve on, in a directory to be made")
    parser.add_argument("--log-fd", type=int, required=True, help="pipe to the owner for log lines")
    arguments = parser.parse_args()
    attach_owner(private=arguments.socket.parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger().addHandler(LogLineHandler(arguments.log_fd))
    asyncio.run(_serve(arguments.trainer, arguments.socket))


if __name__ == "__main__":
    main()
