"""The straight line: one training step, stage by stage."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from art_core.backend import Backend, publish
from art_core.capability import Capability
from art_core.checkpoint import PROBE, Checkpoint, write_manifest
from art_core.errors import ConfigError, RunError, StoreError
from art_core.fork import ForkSource, ForkTarget, find_fit, staged_fork
from art_core.local_store import LocalStore
from art_core.policy import ProofKind, PublishedPolicy
from art_core.preparation import Prepared, judge_agreement, prepare, prepare_supervised
from art_core.proof import behaviour
from art_core.publication import Publication, publication_metrics, publish_elsewhere
from art_core.step import Probe, StepConfig, StepResult
from art_core.supervised import SupervisedConfig
from art_core.timing import Timings
from art_core.trajectory import Trajectory, TrajectoryGroup

_log = logging.getLogger("art.loop")


@dataclass(frozen=True)
class StepOutcome:
    """What one trip along the straight line gave."""

    policy: PublishedPolicy
    metrics: dict[str, float]
    publications: Mapping[str, Publication]
    """What the publishers that bring steps elsewhere made of it, by name."""


async def train_step(backend: Backend, groups: Sequence[TrajectoryGroup], config: StepConfig) -> StepOutcome:
    """Groups to a served step: batch, step, checkpoint, store, publish, route.

    Args:
        backend: Open, and locked by the caller.
        groups: What the agent did.
        config: How to learn from it.

    Raises:
        DataError: The groups can't be trained on; nothing has happened.
        EngineDiedError: The engine will not come back; nothing has happened, or the step is committed and not served.
        RunError: A stage failed (its `stage`, `run`, `step` say where); the last published step goes on serving,
            and the same call may be made again.
    """
    return await _step(backend, lambda held_step: prepare(backend, groups, config, held_step))


async def supervised_step(
    backend: Backend, trajectories: Sequence[Trajectory], config: SupervisedConfig
) -> StepOutcome:
    """Chats to a served step, on the same line.

    Args:
        backend: Open, and locked by the caller.
        trajectories: What the assistant said in them is learnt.
        config: How.

    Raises:
        CapabilityError: The trainer has no tokenizer; nothing has happened.
        DataError: A trajectory can't be learnt from; nothing has happened.
        RunError: As `train_step`.
    """
    return await _step(backend, lambda _: prepare_supervised(backend, trajectories, config))


async def _step(backend: Backend, prepared: Callable[[int], Awaitable[Prepared]]) -> StepOutcome:
    timings, run = Timings(), backend.spec.run
    previous = await _catch_up(backend)
    step = previous.step + 1
    with _stage(timings, backend, "batch", step):
        batch, metrics, config = await prepared(previous.step)
    with _stage(timings, backend, "train", step):
        backend.position.step = None
        result = await backend.trainer.step(batch, config)
        judge_agreement(backend, batch, result, previous.step)
    with _stage(timings, backend, "save", step):
        directory = run.stage()
        await backend.trainer.save(directory)
    with _stage(timings, backend, "manifest", step):
        checkpoint = await asyncio.to_thread(_describe, backend, directory, result, step)
    with _stage(timings, backend, "commit", step):
        stored = await backend.store.commit(checkpoint)
        backend.position.step = step
        backend.observers.step(run.name, step, result.metrics)
    with _stage(timings, backend, "publish", step):
        policy = await publish(backend, stored)
    with _stage(timings, backend, "settle", step):
        await backend.store.settle()
    with _stage(timings, backend, "flip", step):
        backend.route.flip(policy)
        backend.observers.publish(run.name, policy, timings.seconds)
    with _stage(timings, backend, "behaviour", step):
        metrics |= await _behaviour(backend, previous, policy, result.probe)
    return await _outcome(backend, policy, metrics | dict(result.metrics) | timings.metrics())


async def _outcome(backend: Backend, policy: PublishedPolicy, metrics: dict[str, float]) -> StepOutcome:
    """What is left to do once a step serves; none of it can undo that."""
    publications = await publish_elsewhere(backend.parts.elsewhere, policy.name, policy.stored)
    await _retain(backend)
    metrics |= _figures(backend, policy) | publication_metrics(publications)
    return StepOutcome(policy, metrics, publications)


async def fork_into(backend: Backend, source: ForkSource, target: ForkTarget) -> PublishedPolicy:
    """Put another run's checkpoint into an open run that has not been trained yet, and serve it.

    Args:
        backend: Open, and locked by the caller; the target is its run.
        source: Which checkpoint.
        target: What the run was made for.

    Returns:
        The forked step, proved and the default.

    Raises:
        ConfigError: Base model or adapter shape differ, or a step was trained here already.
        RunError: There is no such checkpoint, it is damaged, or can't be served; the fresh adapter goes on serving.
    """
    original, newest = await find_fit(LocalStore(), source, target), (await backend.store.list())[-1].step
    if newest > 0 or original.step == 0:
        raise ConfigError(
            f"step {original.step} of run {source.run!r} can't be forked into run {target.run!r}, whose newest step is "
            f"{newest}; allowed once it is registered: a trained step, into a run that is at step 0; for any other, "
            f"choose a new run name and fork before it is registered"
        )
    async with staged_fork(LocalStore(), source, original, backend.spec.run) as checkpoint:
        await backend.store.commit(checkpoint)
    backend.position.step = None  # the trainer still holds the fresh adapter
    return await _catch_up(backend)


async def _catch_up(backend: Backend) -> PublishedPolicy:
    """Mend what a failed step or a dead trainer left: put the trainer back on the newest stored step, and serve it."""
    backend.recovery.require()
    await backend.store.ready()
    served = backend.route.current().policy
    if not backend.trainer.alive:
        _log.warning("the trainer's process has ended; it is started again from the newest stored step")
        backend.position.step = None
    if backend.position.step == served.step:
        return served
    newest = (await backend.store.list())[-1]
    if newest.step != backend.position.step:
        await backend.trainer.start(backend.spec.trainer, newest.directory)
        backend.position.step = newest.step
    if newest.step > served.step:
        _log.warning("step %d was stored but not served; publishing it before step %d", newest.step, newest.step + 1)
        policy = await publish(backend, newest)
        await backend.store.settle()
        backend.route.flip(policy)
        await publish_elsewhere(backend.parts.elsewhere, policy.name, newest)
    return backend.route.current().policy


def _describe(backend: Backend, directory: Path, result: StepResult, step: int) -> Checkpoint:
    result.probe.write(directory / PROBE)
    return write_manifest(
        directory,
        run=backend.spec.run.name,
        step=step,
        base_model=backend.base_identity,
        parent=step - 1,
        updated=result.updated,
        metrics=dict(result.metrics),
        versions=dict(backend.trainer_info.versions),
    )


async def _behaviour(
    backend: Backend, previous: PublishedPolicy, policy: PublishedPolicy, probe: Probe
) -> dict[str, float]:
    """How the engine's answers moved beside the trainer's. A metric: the route has already moved, on the proof."""
    if Capability.SCORE not in backend.parts.engine_capabilities:
        return {}
    try:
        before = await backend.engine.score(previous.name, probe.tokens)
        after = await backend.engine.score(policy.name, probe.tokens)
    except RunError as error:
        _log.warning("step %d is served, but its probe could not be scored: %s", policy.step, error)
        return {}
    seen = behaviour(probe, before, after)
    figures = {
        "publish/beta": seen.beta,
        "publish/beta_standard_error": seen.standard_error,
        "publish/parity": seen.parity,
    }
    # too few scored tokens give an infinite error; metrics are finite numbers
    return {name: value for name, value in figures.items() if math.isfinite(value)}


async def _retain(backend: Backend) -> None:
    """Free what the retention policy lets go. The step is served by now: what can't be freed is no reason to fail."""
    try:
        await backend.store.retain(backend.route.current().served)
    except StoreError as error:
        _log.warning("old steps could not be removed: %s", error)


def _figures(backend: Backend, policy: PublishedPolicy) -> dict[str, float]:
    spans = {f"publish/{name}_s": seconds for name, seconds in policy.seconds.items()}
    return backend.store.metrics() | spans | {"publish/proved": float(policy.proof.kind is not ProofKind.NONE)}


@contextmanager
def _stage(timings: Timings, backend: Backend, name: str, step: int) -> Iterator[None]:
    """Time a stage, and say in any error where on the line it happened."""
    with timings.span(name):
        try:
            yield
        except RunError as error:
            error.stage = error.stage or name
            error.run = error.run or backend.spec.run.name
            error.step = step if error.step is None else error.step
            raise
