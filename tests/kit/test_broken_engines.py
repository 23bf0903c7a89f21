"""Seven engines that serve other weights than they were given, on the real torch server: none gets past publication.

One server process a precision makes all the faults (`tests/kit/broken/server.py`). Three real steps are trained on a
tiny random model, at a learning rate that moves a token's logprob by 0.001 nats, as 5e-6 moves a real model's.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from art_torch.engine import TorchEngine
from art_torch.options import TorchEngineOptions, TorchTrainerOptions
from art_torch.trainer import TorchTrainer
from safetensors.numpy import load_file, save_file

from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import PROBE, StoredCheckpoint, write_manifest
from art_core.config import LoRAConfig
from art_core.errors import StaleWeightsError
from art_core.local_store import LocalStore
from art_core.policy import ProofKind
from art_core.process import Child
from art_core.protocols.engine import EngineSpec
from art_core.protocols.trainer import TrainerSpec
from art_core.route import RouteTable
from art_core.run import RunDirectory
from art_core.step import StepConfig
from art_core.testing.batch import BatchShape, make_batch

SERVER = Path(__file__).parent / "broken" / "server.py"
FAULTS = ("no-op", "previous", "another", "base", "scale", "half", "swapped")
PROVING = Capabilities({Capability.WEIGHT_PROOF: FULL, Capability.SCORE: FULL})
SCORING = Capabilities({Capability.SCORE: FULL})
LORA = LoRAConfig(rank=8, alpha=16.0)
STEP = StepConfig(learning_rate=1e-3, max_grad_norm=1.0)
SHARPER = 16.0

launch = Child.launch


async def launch_faulty(argv: Sequence[str], **settings: Any) -> Child:
    """`Child.launch`, with the faulty server in place of the engine's own."""
    place = argv.index("art_torch.serve.server")
    return await launch([*argv[: place - 1], str(SERVER), *argv[place + 1 :]], **settings)


@pytest.fixture(scope="module")
def sharp_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger logits; a fresh random one's are so flat that bf16 hardly rounds its logprobs."""
    directory = tmp_path_factory.mktemp("sharp") / "model"
    shutil.copytree(tiny_model, directory)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= np.float32(SHARPER)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture(scope="module")
async def steps(sharp_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[StoredCheckpoint]:
    """Steps 1 to 3 of a run, trained and stored, each with its probe."""
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    trainer, store, stored = TorchTrainer(TorchTrainerOptions(device="cpu")), LocalStore(), []
    info = await trainer.start(TrainerSpec(str(sharp_model), LORA), None)
    for step in (1, 2, 3):
        result = await trainer.step(make_batch(info.model, BatchShape(step, groups=4)), STEP)
        directory = run.stage()
        await trainer.save(directory)
        result.probe.write(directory / PROBE)
        checkpoint = write_manifest(
            directory, run=run.path.name, step=step, base_model=info.model.identity, parent=step - 1
        )
        stored.append(await store.commit(run.path, checkpoint))
    await trainer.stop()
    return stored


@pytest.fixture(scope="module")
async def engines(
    sharp_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mapping[str, TorchEngine]]:
    """A faulty engine in fp32 and one in bf16."""
    root = tmp_path_factory.mktemp("faulty")
    made = {
        dtype: TorchEngine(TorchEngineOptions(device="cpu", dtype=dtype, cpu_threads=1))  # type: ignore[arg-type]
        for dtype in ("float32", "bfloat16")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Child, "launch", launch_faulty)
        specs = [EngineSpec(str(sharp_model), "base-model", LORA.rank, root / f"{dtype}.log") for dtype in made]
        await asyncio.gather(*(engine.start(spec) for engine, spec in zip(made.values(), specs, strict=True)))
    yield made
    await asyncio.gather(*(engine.stop() for engine in made.values()))


@dataclass
class Line:
    """Publisher and route of one model, with steps 1 and 2 published and step 2 the default."""

    model: str
    engine: TorchEngine
    publisher: ReloadPublisher
    route: RouteTable

    async def publish(self, stored: StoredCheckpoint) -> ProofKind:
        """What the loop does with a stored step: publish, then flip."""
        policy = await self.publisher.publish(self.route.public_name(stored.step), stored)
        self.route.flip(policy)
        return policy.proof.kind

    async def loaded(self) -> set[str]:
        """The engine's adapters."""
        return set((await self.engine.health()).adapters)


@pytest.fixture
async def line(
    engines: Mapping[str, TorchEngine], steps: list[StoredCheckpoint], request: pytest.FixtureRequest
) -> AsyncIterator[Line]:
    """The model of a fault on the engine of a precision, as far as step 2."""
    dtype, model, capabilities = request.param
    engine = engines[dtype]
    made = Line(model, engine, ReloadPublisher(ReloadOptions(), engine, capabilities), RouteTable(model, "base-model"))
    for stored in steps[:2]:
        await made.publish(stored)
    assert made.route.current().policy.step == 2
    yield made
    for name in await made.loaded():
        await engine.unload_adapter(name)


def cases(capabilities: Capabilities, *dtypes: str, models: Sequence[str] = FAULTS) -> list[Any]:
    return [pytest.param((dtype, m, capabilities), id=f"{m}-{dtype}") for dtype in dtypes for m in models]


@pytest.mark.parametrize("line", cases(PROVING, "float32", "bfloat16"), indirect=True)
async def test_the_weight_proof_catches_it_before_the_flip(line: Line, steps: list[StoredCheckpoint]) -> None:
    with pytest.raises(StaleWeightsError, match="holds other weights than step 3"):
        await line.publish(steps[2])
    assert line.route.current().policy.step == 2
    assert await line.loaded() == {f"{line.model}@1", f"{line.model}@2"}


@pytest.mark.parametrize("line", cases(SCORING, "float32"), indirect=True)
async def test_without_weight_proof_beta_catches_it_in_fp32(line: Line, steps: list[StoredCheckpoint]) -> None:
    with pytest.raises(StaleWeightsError, match="did not move as the trainer's did: slope"):
        await line.publish(steps[2])
    assert line.route.current().policy.step == 2
    assert await line.loaded() == {f"{line.model}@1", f"{line.model}@2"}


@pytest.mark.parametrize("line", cases(SCORING, "bfloat16"), indirect=True)
async def test_without_weight_proof_bf16_is_reported_as_unproved(line: Line, steps: list[StoredCheckpoint]) -> None:
    assert await line.publish(steps[2]) is ProofKind.NONE
    assert "no power" in line.route.current().policy.proof.detail


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (("float32", "sound", PROVING), ProofKind.WEIGHTS),
        (("bfloat16", "sound", PROVING), ProofKind.WEIGHTS),
        (("float32", "sound", SCORING), ProofKind.BEHAVIOUR),
        (("bfloat16", "sound", SCORING), ProofKind.NONE),
    ],
    indirect=["line"],
    ids=["weights-float32", "weights-bfloat16", "behaviour-float32", "none-bfloat16"],
)
async def test_the_same_server_without_a_fault_is_published(
    line: Line, steps: list[StoredCheckpoint], kind: ProofKind
) -> None:
    assert await line.publish(steps[2]) is kind
    assert line.route.current().policy.step == 3
