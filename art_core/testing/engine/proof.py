"""What an engine promises of weights: digests, damaged files, scores, and what it does not declare."""

from __future__ import annotations

import numpy as np
import pytest

from art_core.capability import Capability
from art_core.errors import CapabilityError, CheckpointCorruptError, NoRouteError
from art_core.protocols.engine import LoadedAdapter
from art_core.testing.adapter import DAMAGES, AdapterShape
from art_core.testing.engine.bench import BASE, EngineBench, EngineCase, alike
from art_core.testing.promise import need, promised, refused


class EngineProofs(EngineCase):
    """Tests of capabilities, and of adapters that don't fit."""

    async def test_the_slot_holds_what_the_files_say(self, bench: EngineBench) -> None:
        """WEIGHT_PROOF: the slot's digest is the expected one, whatever the rank; without it both are None."""
        for number, rank in enumerate((1, 4, 8), 1):
            loaded = await self._load(bench, f"rank@{number}", AdapterShape(number, rank=rank))
            slot, expected = loaded.slot_digest, loaded.expected_digest
            await bench.unload(loaded.name)
            if Capability.WEIGHT_PROOF in bench.capabilities:
                promised(slot is not None and slot == expected, f"slot digest == expected (rank {rank})", loaded)
            else:
                promised((slot, expected) == (None, None), "without WEIGHT_PROOF there are no digests", loaded)

    async def test_a_digest_is_of_the_weights_and_not_of_the_name(self, bench: EngineBench) -> None:
        """WEIGHT_PROOF: one adapter under two names has one digest; another seed or scale has another."""
        need(bench.capabilities, Capability.WEIGHT_PROOF)
        digests = {}
        shapes = {
            "a@1": AdapterShape(1),
            "b@2": AdapterShape(1),
            "c@3": AdapterShape(2),
            "d@4": AdapterShape(1, alpha=4),
        }
        for name, shape in shapes.items():
            digests[name] = (await self._load(bench, name, shape)).slot_digest
            await bench.unload(name)
        promised(digests["a@1"] == digests["b@2"], "the same adapter has the same digest under any name", digests)
        promised(digests["c@3"] != digests["a@1"], "another adapter has another digest", digests)
        promised(digests["d@4"] != digests["a@1"], "another scale (alpha / rank) has another digest", digests)

    @pytest.mark.parametrize("damage", DAMAGES)
    async def test_a_damaged_adapter_is_refused_and_nothing_changes(self, bench: EngineBench, damage: str) -> None:
        """Files that don't fit the base model or aren't safetensors are a CheckpointCorruptError."""
        await bench.load("good@1", 1)
        before, listed = await bench.fingerprint("good@1"), (await bench.engine.health()).adapters
        stored = await bench.shelf.store(AdapterShape(2))
        DAMAGES[damage](stored.directory)
        for _ in range(bench.endpoint.max_adapters + 1):  # a slot lost each time would show
            with refused(CheckpointCorruptError, f"load_adapter refuses {damage}"):
                await bench.engine.load_adapter("bad@1", stored)
        promised((await bench.engine.health()).adapters == listed, "a refused adapter is not listed")
        promised(
            alike(bench, await bench.fingerprint("good@1"), before), "a refused adapter changes no other's weights"
        )
        await bench.load("after@1", 2)

    async def test_score_gives_a_logprob_per_token_and_0_for_the_first(self, bench: EngineBench) -> None:
        """`score`: per sequence, T float32 logprobs; entry 0 is 0, the others are below 0."""
        need(bench.capabilities, Capability.SCORE)
        sequences = [np.asarray(bench.tokens(length, length), np.int32) for length in (1, 2, 17, 40)]
        scored = await bench.engine.score(BASE, sequences)
        seen = [(row.dtype.name, row.shape) for row in scored]
        promised(seen == [("float32", each.shape) for each in sequences], "score gives T float32 a sequence", seen)
        promised(all(row[0] == 0 for row in scored), "entry 0 is 0", [row[0] for row in scored])
        rest = np.concatenate([row[1:] for row in scored])
        promised(np.isfinite(rest).all() and (rest < 0).all(), "the others are finite logprobs", rest)

    async def test_score_is_normalised_at_temperature_1(self, bench: EngineBench) -> None:
        """`score` gives natural-log probabilities: over a token's alternatives they sum to at most 1."""
        need(bench.capabilities, Capability.SCORE)
        prompt, vocabulary = bench.tokens(6), bench.endpoint.model.vocab_size
        tokens = range(vocabulary) if vocabulary <= 512 else bench.tokens(64, 1)
        rows = await bench.engine.score(BASE, [np.asarray([*prompt, token], np.int32) for token in {*tokens}])
        total = float(np.exp([row[-1] for row in rows]).sum())
        exact = abs(total - 1) <= 10 * bench.tolerance_nats if vocabulary <= 512 else total <= 1.01
        promised(exact, "score's probabilities of all next tokens sum to 1", total)

    async def test_score_of_a_name_that_is_not_loaded_is_refused(self, bench: EngineBench) -> None:
        """`score` of a name that is not loaded is a NoRouteError."""
        need(bench.capabilities, Capability.SCORE)
        with refused(NoRouteError, "score refuses a name that is not loaded"):
            await bench.engine.score("nobody@1", [np.asarray([1, 2], np.int32)])

    async def test_what_is_not_declared_is_refused(self, bench: EngineBench) -> None:
        """SCORE and SLEEP, where undeclared, are a CapabilityError."""
        if Capability.SCORE not in bench.capabilities:
            with refused(CapabilityError, "score is refused where SCORE is not declared"):
                await bench.engine.score(BASE, [np.asarray([1, 2], np.int32)])
        if Capability.SLEEP not in bench.capabilities:
            for level in (1, 2):
                with refused(CapabilityError, "sleep is refused where SLEEP is not declared"):
                    await bench.engine.sleep(level)
            with refused(CapabilityError, "wake is refused where SLEEP is not declared"):
                await bench.engine.wake()

    @pytest.mark.parametrize("level", [1, 2])
    async def test_adapters_answer_after_wake_as_before(self, bench: EngineBench, level: int) -> None:
        """SLEEP: after `wake` loaded adapters and the base answer as before."""
        need(bench.capabilities, Capability.SLEEP)
        await bench.load("asleep@1", 1)
        before = {name: await bench.fingerprint(name) for name in (BASE, "asleep@1")}
        await bench.engine.sleep(level)
        await bench.engine.wake()
        for name, fingerprint in before.items():
            same = alike(bench, await bench.fingerprint(name), fingerprint)
            promised(same, f"after sleep({level}) and wake {name!r} answers as before")

    async def _load(self, bench: EngineBench, name: str, shape: AdapterShape) -> LoadedAdapter:
        loaded = await bench.engine.load_adapter(name, await bench.shelf.store(shape))
        promised(loaded.name == name, "load_adapter returns the name it was given", loaded.name)
        return loaded
