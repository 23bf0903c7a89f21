"""Stage 6's result: a step that an engine serves, and what proves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from art_core.checkpoint import StoredCheckpoint


class ProofKind(StrEnum):
    """What was shown of a publication, strongest first."""

    WEIGHTS = "weights"
    """The tensors in the engine's adapter slot are the checkpoint's, bit for bit after the engine's cast."""
    BEHAVIOUR = "behaviour"
    """The engine's logprobs moved as the trainer's did: slope within 0.2 of 1, measured with power."""
    NONE = "none"
    """Neither could be shown; published, marked unproved."""


@dataclass(frozen=True)
class Proof:
    """What held when a step was published, and the figures; never more than was shown."""

    kind: ProofKind
    slot_digest: str | None = None
    """Digest of the tensors in the engine's slot (weights proof)."""
    expected_digest: str | None = None
    """Digest of the checkpoint's tensors after the same cast and packing (weights proof)."""
    detail: str = ""
    """One sentence for people."""


@dataclass(frozen=True)
class Behaviour:
    """How the engine's answers moved beside the trainer's, on the step's probe."""

    beta: float
    """Slope of (engine now - engine previous) on (trainer after - trainer before); 1 is perfect, 0 is stale."""
    standard_error: float
    parity: float
    """Mean absolute difference, engine now against trainer after; nats."""
    precision: float
    """Mean absolute difference, engine previous against trainer before; nats. What the pair can resolve, whatever
    was loaded since."""
    expected_error: float
    """Standard error that the slope has where the right step is served; above about 0.1 the probe has no power."""
    tokens: int


@dataclass(frozen=True)
class PublishedPolicy:
    """A stored step that an engine serves under a name of its own."""

    name: str
    """Public name, ``<model>@<step>``, also the adapter's name in the engine; elsewhere, its name there."""
    stored: StoredCheckpoint
    proof: Proof
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Where the publication's time went: ``verify``, ``load`` and ``prove``, one after the other; ``digest``, the
    part of ``load`` that the engine's two digests took, where it says so."""
    base_url: str | None = None
    """Where the name answers; None: at the run's gateway."""

    @property
    def step(self) -> int:
        """The training step."""
        return self.stored.step
