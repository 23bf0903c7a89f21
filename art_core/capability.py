"""What a part can do: declared, tested by the conformance kit, refused where undeclared.

Core never asks which plugin a part comes from; it asks for a capability. A capability has a degree, because
"yes from version 0.32" is a different promise from "yes".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from art_core.errors import CapabilityError


class Capability(StrEnum):
    """Everything a part may declare."""

    WEIGHT_PROOF = "weight_proof"
    """Engine: digests the tensors in an adapter's slot, so that a publication can be proved exactly."""
    SCORE = "score"
    """Engine: returns logprobs of given tokens under a named adapter."""
    STREAM_TOKEN_IDS = "stream_token_ids"
    """Engine: streamed chunks carry the sampled token ids."""
    SLEEP = "sleep"
    """Engine: gives its device memory back and takes it again."""
    OFFLOAD = "offload"
    """Trainer: gives its device memory back and takes it again."""
    OPTIMIZER_STATE = "optimizer_state"
    """Trainer: saves and resumes optimizer state exactly."""
    SUPERVISED = "supervised"
    """Trainer: turns chats into tokens by its model's tokenizer and template, and learns from them."""
    CREATE_IF_ABSENT = "create_if_absent"
    """Store: of several concurrent commits of one step exactly one wins, without a lease."""


class Degree(StrEnum):
    """How far a capability goes."""

    UNSUPPORTED = "unsupported"
    SINCE = "since"
    FULL = "full"


@dataclass(frozen=True)
class Support:
    """A degree, with the version of the part's library from which it holds (for ``SINCE``)."""

    degree: Degree
    version: str | None = None


UNSUPPORTED = Support(Degree.UNSUPPORTED)
FULL = Support(Degree.FULL)


def since(version: str) -> Support:
    """Supported from that version of the part's library on."""
    return Support(Degree.SINCE, version)


@dataclass(frozen=True)
class Capabilities:
    """What one part declares; anything not named is unsupported."""

    declared: Mapping[Capability, Support] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "declared", MappingProxyType(dict(self.declared)))

    def __contains__(self, capability: Capability) -> bool:
        return self.declared.get(capability, UNSUPPORTED).degree is not Degree.UNSUPPORTED

    def require(self, capability: Capability, part: str) -> None:
        """Refuse, before any work, what the part does not declare.

        Args:
            capability: What is about to be asked.
            part: Kind and name for the message, e.g. ``"engine 'mine'"``.

        Raises:
            CapabilityError: It is not declared.
        """
        if capability not in self:
            can = ", ".join(sorted(c for c in self.declared if c in self)) or "none"
            raise CapabilityError(f"{part} does not declare capability {capability.value!r}; declared: {can}")
