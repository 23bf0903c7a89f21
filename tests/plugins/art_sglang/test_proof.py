"""Steps that the real SGLang serves wrongly are caught before anybody is sent to them, and right ones are not.

The faults are made inside SGLang's scheduler, by a plugin of SGLang's own kind (`fault/`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from art_sglang.engine import SglangEngine
from art_sglang.options import SglangOptions

from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.capability import FULL, Capabilities, Capability
from art_core.errors import StaleWeightsError
from art_core.policy import ProofKind
from art_core.protocols.engine import EngineSpec
from art_core.testing.adapter import AdapterShape
from art_core.testing.shelf import Shelf
from tests.plugins.art_torch.engine_sample import Reference
from tests.plugins.probed_step import ProbedSteps

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]
FAULTS = ["nothing is loaded", "another step", "q and k are swapped", "another scale", "the base answers"]
WEIGHTS = Capabilities(dict.fromkeys((Capability.WEIGHT_PROOF, Capability.SCORE), FULL))
ANSWERS = Capabilities({Capability.SCORE: FULL})


@dataclass
class Bench:
    """A started engine whose next load can be made to go wrong, and steps for it."""

    engine: SglangEngine
    steps: ProbedSteps
    fault: Path
    dtype: str

    async def empty(self) -> None:
        for name in (await self.engine.health()).adapters:
            await self.engine.unload_adapter(name)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
async def bench(
    request: pytest.FixtureRequest,
    sglang_options: SglangOptions,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Bench]:
    root, dtype = tmp_path_factory.mktemp("proof"), request.param
    fault = root / "fault"
    fault.write_text("")
    engine = SglangEngine(sglang_options.model_copy(update={"dtype": dtype}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "fault"), prepend=os.pathsep)
        patch.setenv("ART_TEST_FAULT", str(fault))
        endpoint = await engine.start(EngineSpec(str(tiny_model), "base", 8, root / "engine.log"))
    assert endpoint.model.dtype == dtype
    yield Bench(engine, ProbedSteps(root, tiny_model), fault, dtype)
    await engine.stop()


async def publish_two(bench: Bench, publisher: ReloadPublisher, fault: str) -> ProofKind:
    """Two steps, the second with the fault; the proof of the second."""
    await bench.empty()
    first, second = await bench.steps.next(), await bench.steps.next()
    await publisher.publish(f"m@{first.step}", first)
    bench.fault.write_text(fault)
    try:
        kind = (await publisher.publish(f"m@{second.step}", second)).proof.kind
    except StaleWeightsError:
        left = (await bench.engine.health()).adapters
        assert list(left) == [f"m@{first.step}"], "a disproved step is unloaded, the step before it stays"
        raise
    finally:
        bench.fault.write_text("")
    return kind


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_weight_proof_catches_every_fault(bench: Bench, fault: str) -> None:
    publisher = ReloadPublisher(ReloadOptions(), bench.engine, WEIGHTS)
    with pytest.raises(StaleWeightsError, match="holds other weights"):
        await publish_two(bench, publisher, fault)
    assert await publish_two(bench, publisher, "") is ProofKind.WEIGHTS


@pytest.mark.parametrize("fault", FAULTS)
async def test_answers_catch_every_fault_in_fp32_and_prove_nothing_in_bf16(bench: Bench, fault: str) -> None:
    publisher = ReloadPublisher(ReloadOptions(), bench.engine, ANSWERS)
    if bench.dtype == "bfloat16":
        assert await publish_two(bench, publisher, fault) is ProofKind.NONE
        return
    with pytest.raises(StaleWeightsError, match="did not move as the trainer's did"):
        await publish_two(bench, publisher, fault)
    assert await publish_two(bench, publisher, "") is ProofKind.BEHAVIOUR


async def test_a_slot_that_two_ranks_share_is_proved_whole(
    sglang_options: SglangOptions, tiny_model: Path, tmp_path: Path
) -> None:
    """Each rank reads its share back; the files' shares are computed without SGLang."""
    engine = SglangEngine(sglang_options.model_copy(update={"tensor_parallel_size": 2}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")  # without it SGLang wants a NUMA node a rank
        await engine.start(EngineSpec(str(tiny_model), "base", 8, tmp_path / "engine.log"))
    try:
        shelf, digests = Shelf(tmp_path / "run", tiny_model), set()
        for seed, rank in ((1, 4), (2, 8)):
            stored = await shelf.store(AdapterShape(seed, rank=rank))
            loaded = await engine.load_adapter(f"m@{seed}", stored)
            assert loaded.slot_digest == loaded.expected_digest is not None
            digests.add(loaded.slot_digest)
            reference = Reference(tiny_model, {"m": stored.directory})
            tokens = np.arange(30, dtype=np.int32)
            rows = reference.logprobs("m", tokens.tolist())
            got = (await engine.score(f"m@{seed}", [tokens]))[0]
            np.testing.assert_allclose(got[1:], rows[np.arange(29), tokens[1:]], atol=1e-4)
        assert len(digests) == 2
    finally:
        await engine.stop()
