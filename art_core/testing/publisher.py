"""What a publisher promises: `art_core.protocols.publisher`, a test each, on an engine that the kit brings."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, Checkpoint, StoredCheckpoint
from art_core.config import PartOptions
from art_core.errors import ArtError, CheckpointCorruptError, PublishError, StaleWeightsError
from art_core.local_store import LocalStore
from art_core.part import PublisherPart
from art_core.policy import ProofKind
from art_core.protocols.publisher import Publisher
from art_core.step import Probe
from art_core.testing.adapter import AdapterShape
from art_core.testing.condition import until
from art_core.testing.memory_engine import Fault, MemoryEngine, logprobs, slot_of
from art_core.testing.promise import promised, refused
from art_core.testing.shelf import Shelf

PROVING = Capabilities({Capability.WEIGHT_PROOF: FULL, Capability.SCORE: FULL})
SCORING = Capabilities({Capability.SCORE: FULL})
PLAIN = Capabilities()
DECLARED = {"weight_proof": PROVING, "score only": SCORING, "nothing": PLAIN}


class PublisherBench:
    """A publisher under test, its engine, and two stored steps of a run.

    Args:
        part: The part.
        options: Its options.
        steps: Steps 0 and 1 (and what else the tests publish), stored.
    """

    def __init__(self, part: PublisherPart, options: PartOptions, steps: list[StoredCheckpoint]) -> None:
        self._part = part
        self._options = options
        self.engine = MemoryEngine()
        self.steps = steps

    def publisher(self, capabilities: Capabilities) -> Publisher:
        """A publisher for an engine that declares those."""
        return self._part.create(self._options, self.engine, capabilities)

    async def served(self, publisher: Publisher) -> Publisher:
        """The publisher with step 0 published as ``kit@0``."""
        await publisher.publish("kit@0", self.steps[0])
        return publisher


@pytest.mark.asyncio(loop_scope="session")
class PublisherCase:
    """Fixture that the author of a publisher gives: `part`, and `options` where the defaults don't do."""

    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> PublisherPart:
        """The part under test, as the plugin registers it."""
        raise NotImplementedError("override the fixture `part`: return load_part('publisher', '<your part>')")

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, part: PublisherPart) -> PartOptions:
        """The part's options; the defaults unless overridden."""
        return part.options()

    @pytest_asyncio.fixture(loop_scope="session")
    async def bench(self, part: PublisherPart, options: PartOptions, tmp_path: Path) -> PublisherBench:
        """A publisher's bench, nothing published yet."""
        return PublisherBench(part, options, await steps(tmp_path))


class PublisherProofs(PublisherCase):
    """Tests of what is published and what is said of it."""

    @pytest.mark.parametrize("declared", DECLARED)
    async def test_a_published_step_is_loaded_from_its_place(self, bench: PublisherBench, declared: str) -> None:
        """`publish` loads the step under the public name, from the stored directory, beside what serves already."""
        publisher = await bench.served(bench.publisher(DECLARED[declared]))
        policy = await publisher.publish("kit@1", bench.steps[1])
        promised((policy.name, policy.stored) == ("kit@1", bench.steps[1]), "the policy is of what was published")
        expected = {f"kit@{number}": bench.steps[number].directory for number in (0, 1)}
        adapters = (await bench.engine.health()).adapters
        promised(adapters == expected, "the step is loaded from its place beside the others", dict(adapters))

    async def test_a_weight_proof_is_taken_where_the_engine_gives_one(self, bench: PublisherBench) -> None:
        """An engine with WEIGHT_PROOF: the proof is of the weights, with both digests."""
        publisher = await bench.served(bench.publisher(PROVING))
        proof = (await publisher.publish("kit@1", bench.steps[1])).proof
        promised(proof.kind is ProofKind.WEIGHTS, "the proof is of the weights", proof)
        promised(proof.slot_digest and proof.slot_digest == proof.expected_digest, "its digests are equal", proof)

    async def test_no_more_is_claimed_than_the_engine_can_show(self, bench: PublisherBench) -> None:
        """Without WEIGHT_PROOF no proof of weights is claimed; without SCORE none at all."""
        publisher = await bench.served(bench.publisher(SCORING))
        scored = (await publisher.publish("kit@1", bench.steps[1])).proof
        promised(scored.kind is not ProofKind.WEIGHTS, "no weight proof without WEIGHT_PROOF", scored)
        other = await bench.publisher(PLAIN).publish("other@1", bench.steps[1])
        promised(other.proof.kind is ProofKind.NONE, "no proof where the engine can show nothing", other.proof)

    async def test_stale_weights_are_refused_by_the_weight_proof(self, bench: PublisherBench) -> None:
        """The engine serves other weights than the checkpoint's: StaleWeightsError; nothing of it stays loaded."""
        publisher = await bench.served(bench.publisher(PROVING))
        bench.engine.fault = Fault.STALE
        with refused(StaleWeightsError, "publish refuses stale weights"):
            await publisher.publish("kit@1", bench.steps[1])
        await nothing_left(bench, publisher, PROVING)

    async def test_stale_weights_are_never_proved_by_their_answers(self, bench: PublisherBench) -> None:
        """Without WEIGHT_PROOF stale weights are refused or published unproved, never proved."""
        publisher = await bench.served(bench.publisher(SCORING))
        bench.engine.fault = Fault.STALE
        try:
            proof = (await publisher.publish("kit@1", bench.steps[1])).proof
        except StaleWeightsError:
            await nothing_left(bench, publisher, SCORING)
            return
        promised(proof.kind is ProofKind.NONE, "stale weights are never claimed to be proved", proof)

    @pytest.mark.parametrize("declared", DECLARED)
    async def test_a_name_that_stands_for_another_place_is_refused(self, bench: PublisherBench, declared: str) -> None:
        """The engine's own list says that the name stands for another directory: StaleWeightsError."""
        publisher = await bench.served(bench.publisher(DECLARED[declared]))
        bench.engine.fault = Fault.ELSEWHERE
        with refused(StaleWeightsError, "publish refuses a name that stands for another directory"):
            await publisher.publish("kit@1", bench.steps[1])
        await nothing_left(bench, publisher, DECLARED[declared])


class PublisherFailures(PublisherCase):
    """Tests of failures and of `retract`."""

    @pytest.mark.parametrize("name", [ADAPTER, ADAPTER_CONFIG])
    async def test_files_that_differ_from_the_manifest_are_refused(self, bench: PublisherBench, name: str) -> None:
        """Files that differ from their manifest in one byte are a CheckpointCorruptError, and are not loaded."""
        publisher = await bench.served(bench.publisher(PROVING))
        path = bench.steps[1].directory / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with refused(CheckpointCorruptError, f"publish refuses a changed byte in {name}"):
            await publisher.publish("kit@1", bench.steps[1])
        path.write_bytes(whole)
        await nothing_left(bench, publisher, PROVING)

    @pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LATE, Fault.DEAD])
    async def test_a_failing_engine_is_a_publish_error(self, bench: PublisherBench, fault: Fault) -> None:
        """The engine refuses or dies: PublishError; nothing of the step stays loaded, and it can be published again."""
        publisher = await bench.served(bench.publisher(PROVING))
        bench.engine.fault = fault
        with refused(PublishError, f"publish where {fault.value}"):
            await publisher.publish("kit@1", bench.steps[1])
        await nothing_left(bench, publisher, PROVING)

    async def test_a_cancelled_publish_leaves_nothing_loaded(self, bench: PublisherBench) -> None:
        """A `publish` that is cancelled while the engine loads leaves nothing of the step loaded."""
        publisher = await bench.served(bench.publisher(PROVING))
        bench.engine.fault = Fault.HANGS
        call = asyncio.ensure_future(publisher.publish("kit@1", bench.steps[1]))
        loading = bench.engine.loading
        await until(lambda: loading.is_set() or call.done(), "the engine is asked to load the step")
        call.cancel()
        outcome = (await asyncio.gather(call, return_exceptions=True))[0]
        promised(isinstance(outcome, asyncio.CancelledError), "a cancelled publish raises CancelledError", outcome)
        await nothing_left(bench, publisher, PROVING)

    async def test_retract_unloads_that_step_and_is_idempotent(self, bench: PublisherBench) -> None:
        """`retract` stops serving a step, however often it is called, and no other."""
        publisher = await bench.served(bench.publisher(PROVING))
        policy = await publisher.publish("kit@1", bench.steps[1])
        await publisher.retract(policy)
        await publisher.retract(policy)
        names = set((await bench.engine.health()).adapters)
        promised(names == {"kit@0"}, "retract unloads that step only", names)
        await publisher.publish("kit@1", bench.steps[1])

    async def test_a_name_in_use_is_not_published_over(self, bench: PublisherBench) -> None:
        """`publish` takes a name not in use: a published one is refused and goes on serving its own step."""
        publisher = await bench.served(bench.publisher(PROVING))
        with refused(ArtError, "publish refuses a name that serves another step"):
            await publisher.publish("kit@0", bench.steps[1])
        adapters = (await bench.engine.health()).adapters
        promised(adapters == {"kit@0": bench.steps[0].directory}, "the step goes on serving", dict(adapters))


async def nothing_left(bench: PublisherBench, publisher: Publisher, declared: Capabilities) -> None:
    """After a failed publication of step 1: it is not loaded, step 0 is, and once the engine is well it can be."""
    bench.engine.fault = Fault.NONE
    names = set((await bench.engine.health()).adapters)
    promised("kit@1" not in names, "a publish that raises leaves nothing of the step loaded", names)
    promised("kit@0" in names, "a failed publication leaves the served step alone", names)
    policy = await publisher.publish("kit@1", bench.steps[1])
    proved = policy.proof.kind is ProofKind.WEIGHTS
    promised(proved or Capability.WEIGHT_PROOF not in declared, "after a failure the same step can be published")


async def steps(root: Path) -> list[StoredCheckpoint]:
    """Steps 0 and 1 of a run below a directory, stored."""
    base = root / "base"
    base.mkdir()
    config = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    (base / "config.json").write_text(json.dumps(config))
    shelf, store = Shelf(root / "run", base), LocalStore()
    shelf.run.mkdir()
    first = shelf.stage(0, AdapterShape(1))
    second = shelf.stage(1, AdapterShape(2), probe(first, shelf.stage(1, AdapterShape(2))))
    return [await store.commit(shelf.run, checkpoint) for checkpoint in (first, second)]


def probe(before: Checkpoint, after: Checkpoint) -> Probe:
    """What a trainer would say of a step between two checkpoints, were its model the kit's stand-in."""
    tokens_T = np.arange(1, 33, dtype=np.int32)
    scored_T = np.arange(32) > 0
    said = [logprobs(slot_of(checkpoint.directory), tokens_T) for checkpoint in (before, after)]
    return Probe((tokens_T,), (scored_T,), (said[0],), (said[1],))
