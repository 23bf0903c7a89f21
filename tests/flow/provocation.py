"""Who provokes which error: scenarios for `test_errors_provoked.py`, each as a user, a plugin or a machine does it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from art_torch.engine import TorchEngine
from art_torch.options import TorchEngineOptions, TorchTrainerOptions
from art_torch.trainer import TorchTrainer
from starlette.applications import Starlette

import art
from art.local import LocalBackend
from art_core.backend import Backend
from art_core.batch import make_batch
from art_core.checkpoint import ADAPTER, StoredCheckpoint, verify, write_manifest
from art_core.config import Timeouts
from art_core.environment.own import own_distribution
from art_core.gateway import Gateway
from art_core.part import StorePart
from art_core.protocols.engine import EngineSpec, LoadedAdapter
from art_core.server import ServerThread
from art_core.step import StepConfig
from art_core.tokenization import TokenizationLimits
from art_core.worker import TrainerWorker
from tests.faults.life import groups
from tests.installed import install, store
from tests.staged import stage_step


@dataclass
class Place:
    """A model that has been trained for a few steps, and a folder that plugins are found in."""

    tmp: Path
    base_model: Path
    door: LocalBackend
    model: art.TrainableModel
    site: Path

    @property
    def backend(self) -> Backend:
        return self.door._sessions["errors", "provoked"].backend

    @property
    def newest(self) -> StoredCheckpoint:
        return self.backend.route.current().policy.stored

    async def train(self, what: list[art.TrajectoryGroup] | None = None) -> None:
        await self.door.train(self.model, groups() if what is None else what, learning_rate=1e-4)

    async def register(self, path: Path | None = None, **options: object) -> None:
        """The same model on a backend of its own."""
        model = art.TrainableModel(name="provoked", project="errors", base_model=str(self.base_model))
        async with LocalBackend(path=path or self.tmp, **options) as backend:
            await model.register(backend)


async def config(place: Place) -> None:
    await place.register(engin="torch")


async def plugin_not_found(place: Place) -> None:
    await place.register(engine="torhc")


async def plugin_load(place: Place) -> None:
    install(place.site, "broken", "raise RuntimeError('boom')")
    await place.register(store="broken")


async def plugin_conflict(place: Place) -> None:
    install(place.site, "twice", store("twice"), "art-one")
    install(place.site, "twice", store("twice"), "art-two")
    await place.register(store="twice")


async def plugin_contract(place: Place) -> None:
    install(place.site, "bad", store("bad", extra=", contract_version=99"))
    await place.register(store="bad")


async def plugin_unusable(place: Place) -> None:
    install(place.site, "big", store("big", extra=", usable=lambda: 'no GPU here; try: buy one'"))
    await place.register(store="big")


async def environment_build(place: Place) -> None:
    """A plugin that was copied here, not installed."""
    install(place.site, "copied", store("copied"))
    own_distribution("art-copied")


async def capability(place: Place) -> None:
    await place.backend.engine.sleep(1)


async def trajectory(place: Place) -> None:
    await place.train([])


async def tokenization(place: Place) -> None:
    what = groups()
    what[1].trajectories[0].messages_and_choices[-1].logprobs = None
    await place.train(what)


async def batch(place: Place) -> None:
    """Core refuses such tokens earlier; another caller of the trainer may not."""
    limits = TokenizationLimits(vocab_size=100, context_tokens=64, current_step=0)
    made, _ = make_batch(groups(), limits)
    wrong = replace(made, tokens_BT=made.tokens_BT + np.int32(1_000_000))
    await place.backend.trainer.step(wrong, StepConfig())


async def run(place: Place) -> None:
    @asynccontextmanager
    async def fails(app: Starlette) -> AsyncIterator[None]:
        raise OSError("no such device")
        yield

    ServerThread(Starlette(lifespan=fails), "art-provoked").start(10)


async def engine(place: Place) -> None:
    await place.backend.engine.load_adapter(place.backend.route.current().policy.name, place.newest)


async def engine_start(place: Place) -> None:
    """Its log can't be written, because a directory stands there."""
    place.tmp.mkdir()
    await TorchEngine(TorchEngineOptions()).start(EngineSpec(str(place.base_model), "base", 8, place.tmp))


async def engine_unavailable(place: Place) -> None:
    await TorchEngine(TorchEngineOptions()).health()


async def engine_died(place: Place) -> None:
    for child in psutil.Process().children():
        if any("art_torch.serve.server" in word for word in child.cmdline()):
            child.kill()
    await place.backend.engine.health()


async def stale_weights(place: Place) -> None:
    """The engine loads the step before, under the new step's name."""
    backend, previous = place.backend, place.newest
    real = backend.engine.load_adapter

    async def load(name: str, checkpoint: StoredCheckpoint) -> LoadedAdapter:
        return await real(name, previous)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend.engine, "load_adapter", load)
        await place.train()


async def trainer(place: Place) -> None:
    await TorchTrainer(TorchTrainerOptions()).save(place.tmp)


async def trainer_start(place: Place) -> None:
    worker = TrainerWorker("torch", {}, place.tmp / "trainer.log", Timeouts(), python="/no/such/python")
    await worker.start(place.backend.spec.trainer, None)


async def trainer_unavailable(place: Place) -> None:
    connection = place.backend.trainer._connection
    assert connection is not None
    psutil.Process(connection.child.pid).kill()
    await place.backend.trainer.save(place.tmp)


async def checkpoint(place: Place) -> None:
    """A trainer that writes a pickle."""
    directory = place.tmp
    directory.mkdir()
    (directory / "adapter_model.bin").write_bytes(b"\x80\x04")
    write_manifest(directory, run="provoked", step=1, base_model=place.newest.manifest.base_model)


async def checkpoint_corrupt(place: Place) -> None:
    copy = Path(shutil.copytree(place.newest.directory, place.tmp))
    data = bytearray((copy / ADAPTER).read_bytes())
    data[-1] ^= 1
    (copy / ADAPTER).write_bytes(data)
    verify(copy)


async def store_fails(place: Place) -> None:
    (place.backend.spec.run.path / "state.json").write_text("{")
    place.model.read_state()


async def store_unavailable(place: Place) -> None:
    """Nobody listens where the bucket is said to be."""
    part = place.door._plugins.part("store", "s3")
    assert isinstance(part, StorePart)
    store = part.create(part.options.parse({"bucket": "b", "endpoint_url": "http://127.0.0.1:9", "timeout_s": 1}))
    assert store is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "y")
        await store.check()


async def checkpoint_not_found(place: Place) -> None:
    model = art.TrainableModel(name="new", project="errors", base_model=str(place.base_model))
    await place.door._experimental_fork_checkpoint(model, from_model="nobody")


async def commit_conflict(place: Place) -> None:
    path = place.backend.spec.run.path
    await place.backend.store.commit(stage_step(path, place.newest.step))


async def run_locked(place: Place) -> None:
    await place.register(place.door._path)


async def publish(place: Place) -> None:
    policy = place.backend.route.current().policy
    await place.backend.publisher.publish(policy.name, policy.stored)


async def publish_timeout(place: Place) -> None:
    """Two slots: the default's, and one that is leased."""
    async with place.door.exact_adapter_lease(place.model, 0), place.door.exact_adapter_lease(place.model, 1):
        pass


async def route(place: Place) -> None:
    backend = place.backend
    endpoint = backend.recovery._endpoint
    assert Gateway(backend.route, endpoint).base_url


async def no_route(place: Place) -> None:
    async with place.door.adapter_lease(place.model, 999):
        pass


async def local_serving_unavailable(place: Place) -> None:
    """The program goes on asking after its backend was closed."""
    await place.door.close()
    client = place.model.openai_client().with_options(max_retries=0)
    await client.chat.completions.create(model="provoked", messages=[{"role": "user", "content": "Hi"}], max_tokens=1)
