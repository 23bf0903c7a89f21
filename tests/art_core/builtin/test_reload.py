"""Publication by loading: what is proved, what is refused, and what a failure leaves behind.

The engine is `numpy_engine`: real tensors in real slots behind the contract, and five engines that each break it in
one of the ways that engines have been seen to.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from art_core.builtin import reload
from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import ADAPTER, StoredCheckpoint
from art_core.config import Timeouts
from art_core.errors import (
    CheckpointCorruptError,
    ConfigError,
    EngineUnavailableError,
    PublishError,
    StaleWeightsError,
)
from art_core.part import PublisherPart
from art_core.policy import ProofKind, PublishedPolicy
from art_core.protocols.engine import LoadedAdapter
from tests.art_core.builtin.numpy_engine import BROKEN, NumpyEngine, Run

WEIGHTS = Capabilities({Capability.WEIGHT_PROOF: FULL, Capability.SCORE: FULL})
SCORE = Capabilities({Capability.SCORE: FULL})
NOTHING = Capabilities()

SMALL, LARGE = 2e-5, 1e-2
"""Random walk of the adapter per step: the probe moves by about 2e-4 and 0.1 nats."""


def publisher(engine: NumpyEngine, capabilities: Capabilities, **options: object) -> ReloadPublisher:
    return ReloadPublisher(ReloadOptions.parse(dict(options)), engine, capabilities)


async def publish(each: ReloadPublisher, stored: StoredCheckpoint) -> PublishedPolicy:
    return await each.publish(f"agent@{stored.step}", stored)


async def publish_steps(each: ReloadPublisher, run: Run, count: int) -> list[PublishedPolicy]:
    return [await publish(each, run.train()) for _ in range(count)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "checkpoints", LARGE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_the_right_weights_are_proved_at_every_precision(run: Run, dtype: str) -> None:
    policies = await publish_steps(publisher(NumpyEngine(dtype), WEIGHTS, require_proof=True), run, 3)
    for policy in policies:
        assert policy.proof.kind is ProofKind.WEIGHTS
        assert policy.proof.slot_digest == policy.proof.expected_digest
        assert set(policy.seconds) == {"verify", "load", "prove"}
    assert len({policy.proof.slot_digest for policy in policies}) == 3


async def test_an_engine_that_times_its_digests_has_them_in_the_figures(run: Run) -> None:
    class Telling(NumpyEngine):
        async def load_adapter(self, name: str, checkpoint: StoredCheckpoint) -> LoadedAdapter:
            return replace(await super().load_adapter(name, checkpoint), proof_s=0.25)

    policies = await publish_steps(publisher(Telling(), WEIGHTS), run, 1)
    assert policies[0].seconds["digest"] == 0.25


@pytest.mark.parametrize("engine_type", BROKEN)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", [SMALL, LARGE])
async def test_wrong_weights_are_found_by_their_digest(
    tmp_path: Path, engine_type: type[NumpyEngine], dtype: str, change: float
) -> None:
    run, engine = Run(tmp_path, change), engine_type(dtype)
    each = publisher(engine, WEIGHTS)
    healthy = NumpyEngine(dtype)
    for _ in range(2):  # two good steps, so that there is another one to be confused with
        stored = run.train()
        await publish(publisher(healthy, WEIGHTS), stored)
    engine.slots, engine.paths = healthy.slots, healthy.paths
    stored = run.train()
    with pytest.raises(StaleWeightsError, match="the previous step goes on serving") as caught:
        await publish(each, stored)
    error = caught.value
    assert (error.stage, error.run, error.step) == ("publish", "run", 2)
    expected = (await healthy.load_adapter("elsewhere", stored)).expected_digest
    assert expected is not None and expected[:12] in str(error)
    assert "agent@2" not in engine.slots
    assert "agent@1" in engine.slots


@pytest.mark.parametrize("change", [SMALL, LARGE])
async def test_the_right_weights_are_proved_by_their_answers(tmp_path: Path, change: float) -> None:
    policies = await publish_steps(publisher(NumpyEngine(), SCORE), Run(tmp_path, change), 4)
    assert [policy.proof.kind for policy in policies] == [ProofKind.NONE] + [ProofKind.BEHAVIOUR] * 3
    assert "slope 1 ±" in policies[1].proof.detail


@pytest.mark.parametrize("engine_type", BROKEN)
@pytest.mark.parametrize("change", [SMALL, LARGE])
async def test_wrong_weights_are_found_by_their_answers(
    tmp_path: Path, engine_type: type[NumpyEngine], change: float
) -> None:
    run, engine, healthy = Run(tmp_path, change), engine_type(), NumpyEngine()
    await publish_steps(publisher(healthy, SCORE), run, 2)
    engine.slots, engine.paths = healthy.slots, healthy.paths
    with pytest.raises(StaleWeightsError, match="did not move as the trainer's did: slope"):
        await publish(publisher(engine, SCORE), run.train())
    assert set(engine.slots) == {"agent@0", "agent@1"}


async def test_in_half_precision_answers_prove_nothing_and_that_is_said_once(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    each = publisher(NumpyEngine("bfloat16"), SCORE)
    with caplog.at_level(logging.WARNING, "art.publisher"):
        policies = await publish_steps(each, run, 4)
    assert {policy.proof.kind for policy in policies} == {ProofKind.NONE}
    assert "the probe has no power: slope" in policies[1].proof.detail
    assert len(caplog.records) == 1
    assert "step 1 is served unproved" in caplog.text


@pytest.mark.parametrize(("dtype", "capabilities"), [("bfloat16", SCORE), ("float32", NOTHING)])
async def test_what_can_not_be_proved_is_refused_where_proof_is_required(
    run: Run, dtype: str, capabilities: Capabilities
) -> None:
    engine = NumpyEngine(dtype)
    await publish(publisher(engine, capabilities), run.train())
    with pytest.raises(PublishError, match=r"require_proof.*weight_proof") as caught:
        await publish(publisher(engine, capabilities, require_proof=True), run.train())
    assert caught.value.step == 1
    assert set(engine.slots) == {"agent@0"}


async def test_without_the_parent_in_the_engine_answers_can_not_be_compared(run: Run) -> None:
    """A resumed run; or a run whose last step could not be published."""
    run.train()
    policy = await publish(publisher(NumpyEngine(), SCORE), run.train())
    assert policy.proof.kind is ProofKind.NONE
    assert "no previous step" in policy.proof.detail


async def test_a_step_that_changed_nothing_is_expected_to_answer_alike(run: Run) -> None:
    engine = NumpyEngine()
    each = publisher(engine, SCORE)
    await publish_steps(each, run, 2)
    same = await publish(each, run.train(updated=False))
    assert same.proof.kind is ProofKind.BEHAVIOUR
    run.files = {name: tensor.copy() for name, tensor in run.files.items()}
    stored = run.train(updated=False)
    broken = AnotherLoad(slots=engine.slots, paths=engine.paths, instead=engine.slots["agent@0"])
    with pytest.raises(StaleWeightsError, match="slope 0 ±"):
        await publish(publisher(broken, SCORE), stored)


class AnotherLoad(NumpyEngine):
    """Fills the slot with given tensors."""

    def __init__(self, *, instead: dict[str, np.ndarray], **fields: dict) -> None:
        super().__init__(**fields)
        self.instead = instead

    def fill(self, name: str, checkpoint: StoredCheckpoint) -> dict[str, np.ndarray]:
        return self.instead


async def test_answers_that_are_not_numbers_disprove(run: Run) -> None:
    engine = NumpyEngine()
    await publish_steps(publisher(engine, SCORE), run, 1)
    broken = {name: np.full_like(tensor, np.nan) for name, tensor in engine.slots["agent@0"].items()}
    other = AnotherLoad(slots=engine.slots, paths=engine.paths, instead=broken)
    with pytest.raises(StaleWeightsError, match="slope nan"):
        await publish(publisher(other, SCORE), run.train())


class Misnamed(NumpyEngine):
    """Lists the name with another directory, or not at all."""

    def __init__(self, listed: Path | None) -> None:
        super().__init__()
        self.listed = listed

    async def load_adapter(self, name: str, checkpoint: StoredCheckpoint) -> LoadedAdapter:
        loaded = await super().load_adapter(name, checkpoint)
        del self.paths[name]
        if self.listed is not None:
            self.paths[name] = self.listed
        return loaded


@pytest.mark.parametrize("listed", [None, Path("/elsewhere/0000")])
async def test_a_name_that_stands_for_another_directory_is_refused(run: Run, listed: Path | None) -> None:
    engine = Misnamed(listed)
    with pytest.raises(StaleWeightsError, match=f"stands for {listed or 'nothing'} in the engine"):
        await publish(publisher(engine, WEIGHTS), run.train())
    assert not engine.slots


async def test_a_directory_reached_through_a_link_is_the_same(run: Run, tmp_path: Path) -> None:
    stored = run.train()
    (tmp_path / "link").symlink_to(stored.directory.parent)
    engine = Misnamed(tmp_path / "link" / "0000")
    assert (await publish(publisher(engine, WEIGHTS), stored)).proof.kind is ProofKind.WEIGHTS


class Silent(NumpyEngine):
    """Declares weight_proof and gives no digest."""

    async def load_adapter(self, name: str, checkpoint: StoredCheckpoint) -> LoadedAdapter:
        await super().load_adapter(name, checkpoint)
        return LoadedAdapter(name)


async def test_a_declared_digest_that_is_not_given_is_refused(run: Run) -> None:
    engine = Silent()
    with pytest.raises(PublishError, match="gave no slot_digest"):
        await publish(publisher(engine, WEIGHTS), run.train())
    assert not engine.slots


async def test_changed_files_are_found_before_anything_is_loaded(run: Run) -> None:
    engine, stored = NumpyEngine(), run.train()
    file = stored.directory / ADAPTER
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointCorruptError, match="sha256"):
        await publish(publisher(engine, WEIGHTS), stored)
    assert not engine.slots


async def test_a_dead_engine_is_a_failed_publication_with_its_cause(run: Run) -> None:
    engine = NumpyEngine(dead=True)
    with pytest.raises(PublishError, match="has died") as caught:
        await publish(publisher(engine, WEIGHTS), run.train())
    assert isinstance(caught.value.__cause__, EngineUnavailableError)
    assert (caught.value.stage, caught.value.run, caught.value.step) == ("publish", "run", 0)


class DiesInLoad(NumpyEngine):
    """Dies when a load has taken effect, and comes back with the slot filled when `dead` is cleared."""

    async def load_adapter(self, name: str, checkpoint: StoredCheckpoint) -> LoadedAdapter:
        await super().load_adapter(name, checkpoint)
        self.dead = True
        raise EngineUnavailableError("the engine has died")


async def test_what_a_failure_could_not_unload_does_not_block_the_next_attempt(run: Run) -> None:
    engine, stored = DiesInLoad(), run.train()
    with pytest.raises(PublishError) as caught:
        await publish(publisher(engine, WEIGHTS), stored)
    assert "could not be unloaded after this" in caught.value.__cause__.__notes__[0]
    assert "agent@0" in engine.slots
    again = NumpyEngine(slots=engine.slots, paths=engine.paths)
    assert (await publish(publisher(again, WEIGHTS), stored)).proof.kind is ProofKind.WEIGHTS


class Slow(NumpyEngine):
    """Loads at once, and answers when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded, self.answer = asyncio.Event(), asyncio.Event()

    async def load_adapter(self, name: str, checkpoint: StoredCheckpoint) -> LoadedAdapter:
        loaded = await super().load_adapter(name, checkpoint)
        self.loaded.set()
        await self.answer.wait()
        return loaded


async def test_a_cancelled_publication_leaves_nothing_loaded_and_can_be_made_again(run: Run) -> None:
    engine, stored = Slow(), run.train()
    each = publisher(engine, WEIGHTS)
    task = asyncio.create_task(publish(each, stored))
    async with asyncio.timeout(Timeouts().load_adapter_s):
        await engine.loaded.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not engine.slots
    engine.answer.set()
    assert (await publish(each, stored)).proof.kind is ProofKind.WEIGHTS


async def test_publishing_a_served_step_again_does_not_touch_it(run: Run) -> None:
    engine, stored = NumpyEngine(), run.train()
    each = publisher(engine, WEIGHTS)
    await publish(each, stored)
    with pytest.raises(PublishError, match="'agent@0' is published already"):
        await publish(each, stored)
    assert set(engine.slots) == {"agent@0"}


async def test_a_restarted_engine_gets_its_steps_again(run: Run) -> None:
    engine, stored = NumpyEngine(), run.train()
    each = publisher(engine, WEIGHTS)
    await publish(each, stored)
    engine.slots.clear()
    engine.paths.clear()
    assert (await publish(each, stored)).proof.kind is ProofKind.WEIGHTS


async def test_retract_unloads_once_and_for_all(run: Run) -> None:
    engine = NumpyEngine()
    each = publisher(engine, WEIGHTS)
    first, second = await publish_steps(each, run, 2)
    await each.retract(first)
    await each.retract(first)
    assert set(engine.slots) == {"agent@1"}
    engine.dead = True
    with pytest.raises(PublishError, match="'agent@1' could not be unloaded"):
        await each.retract(second)
    engine.dead = False
    await each.retract(second)
    assert not engine.slots
    assert (await publish(each, second.stored)).step == 1


def test_it_registers_under_its_name_and_refuses_unknown_options() -> None:
    parts: list[PublisherPart] = []
    reload.art_register_publishers(parts.append)
    (part,) = parts
    assert part.name == part.options.part == "reload"
    with pytest.raises(ConfigError, match="require_proof"):
        part.options.parse({"require_prof": True})
    with pytest.raises(ConfigError, match="beta_tolerance"):
        part.options.parse({"beta_tolerance": 1.5})
