"""Contract of a trainer.

Intent. A trainer holds one frozen base model, one LoRA adapter and its optimizer, and improves the adapter by one
step per batch. It knows nothing of engines, stores or routes, and it never writes a manifest.

Who calls, and how often. Core hosts a trainer in a worker process of its own and calls `start`, then `step` and
`save` once each per training step, in that order; never two calls at once. `start` may be called again at any time:
it resets weights and optimizer to `resume_from` exactly (or to a fresh adapter), keeping the base model loaded
where the spec is unchanged.

Algorithm. `StepConfig` says how a step learns. A trainer follows every field of it, or refuses the step before any
work: it never leaves one out in silence. A step may be several optimizer updates; outside it is one.

Cancellation. A cancelled `step` ends at the next microbatch, before the last optimizer update: weights and optimizer
are as they were. After that update has begun it is finished.

Failure. A `step` that raises leaves weights and optimizer as they were, bit for bit.

Another trainer's checkpoint. A run may go on with another trainer, so `start` takes an adapter that any trainer has
saved, exactly. The metadata of optimizer.safetensors has an entry ``layout``, a name for how the state is laid out. A
trainer goes on with a state whose layout it knows; with any other its optimizer starts afresh, and it logs a warning
that says so.

Determinism. On one CPU machine the same seed, state and batch give a bit-identical adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from art_core.base_model import ModelInfo
from art_core.batch import TrainBatch
from art_core.config import LoRAConfig
from art_core.step import StepConfig, StepResult
from art_core.supervised import EncodedChat, EncodeRequest


@dataclass(frozen=True)
class TrainerSpec:
    """What a trainer is started with."""

    base_model: str
    """Local directory or hub name."""
    lora: LoRAConfig
    device_ids: tuple[int, ...] | None = None
    """GPUs to use; None: the trainer's choice."""
    chat_template: str | None = None
    """Overrides the model's own Jinja template. What was sampled is trained on as it was sampled, so a template only
    shows which chats the run is about: core refuses an engine and a trainer that have not the same."""


@dataclass(frozen=True)
class TrainerInfo:
    """What a started trainer holds."""

    model: ModelInfo
    versions: Mapping[str, str] = field(default_factory=dict)
    """Distribution name to version, recorded in every manifest."""


class Trainer(Protocol):
    """Improves one adapter; see the module's contract."""

    async def start(self, spec: TrainerSpec, resume_from: Path | None) -> TrainerInfo:
        """Load the base model and the adapter.

        Args:
            spec: Base model and adapter shape.
            resume_from: A checkpoint directory that a trainer's `save` wrote (adapter and optimizer files); None: a
                fresh adapter, equal to the base. Without optimizer files the optimizer starts afresh.

        Raises:
            ConfigError: Base model missing or not a causal LM, or a LoRA target that matches nothing.
            CheckpointCorruptError: The files don't fit the base model.
            TrainerStartError: Anything else.
        """
        ...

    async def step(self, batch: TrainBatch, config: StepConfig) -> StepResult:
        """Improve the adapter by one batch; no update where the batch has no usable advantage.

        A KL penalty gives advantages too. `config.kl_ref_adapter_path` is then the directory of the reference policy's
        adapter, in PEFT's layout and of any origin, or None for the base model; core has put a reference step's there.

        Raises:
            TrainerError: It is offloaded.
            BatchError: Token ids outside the vocabulary, a sequence longer than the context, or a missing logprob
                where the config does not allow that.
            CapabilityError: The config asks for what this trainer can't do.
            CheckpointCorruptError: The reference adapter's files are damaged, or don't fit the base model.
            NonFiniteLossError: Loss or gradient is not finite.
            OutOfMemoryError: It did not fit.
        """
        ...

    async def save(self, directory: Path) -> None:
        """Write adapter_config.json, adapter_model.safetensors (PEFT layout) and optimizer.safetensors, labelled.

        Args:
            directory: An existing empty directory; the files need not be fsynced.

        Raises:
            CheckpointError: It can't be written; names the path and the system's reason.
        """
        ...

    async def offload(self) -> None:
        """Give device memory back: base, adapter and optimizer live in host memory until `onload`. Idempotent.

        Meanwhile `step` is a TrainerError that changes nothing, `save` writes what it would have written before, and
        `start` takes the memory again first. A call that fails leaves the state whole, and can be made again.

        Raises:
            CapabilityError: The trainer does not declare OFFLOAD.
        """
        ...

    async def onload(self) -> None:
        """Take device memory again, bit for bit as before. Idempotent, also where nothing was offloaded.

        Raises:
            CapabilityError: The trainer does not declare OFFLOAD.
            OutOfMemoryError: The device is full; the trainer stays offloaded.
        """
        ...

    async def stop(self) -> None:
        """Free everything; idempotent."""
        ...


class SupervisedTrainer(Trainer, Protocol):
    """What a trainer that declares `Capability.SUPERVISED` offers besides: it has a tokenizer, core has none."""

    async def encode(self, request: EncodeRequest) -> Sequence[EncodedChat]:
        """Render chats by the chat template, turn them into tokens, and mark what is to be learnt.

        Trained are the tokens of the assistant turns asked for, up to the one that ends the turn; not the role's
        header, which stands in every prompt. A chat is one sequence as long as what the template writes for later
        turns goes on from what it wrote for earlier ones, else several. It is not cut to the context.

        Args:
            request: Chats, in order, and how to render them.

        Returns:
            Sequences in the order of the chats; each chat has at least one.

        Raises:
            TokenizationError: The model has no chat template, or the template refuses a chat; says which.
        """
        ...
