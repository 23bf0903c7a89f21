"""Contract of a publisher.

Intent. A publisher brings a stored step to where it is served, and proves as far as it can that what is served is
what was stored. It never moves the route: the loop does, once `publish` has returned.

Who calls, and how often. The loop, once per step, after `commit`; and at resume, for the newest stored step.
`retract` once per step that has drained. Never two calls at once.

Elsewhere. A run may have several publishers, one of which serves; the text above is about that one. The others
(`PublisherPart.serves` is False) bring a step to another place once it is the default: `publish` is called with a step
that is served already, beside those of other publishers, and again at the next start. They take the engine that they
are made with for nothing (it may be None), answer with the step's name and address there, and are never asked to
retract by the loop. An address stands for one step of one run for ever: publishing the step again gives it again, and
another checkpoint is refused there.

Failure. A `publish` that raises leaves nothing of the step loaded, and can be called again with the same step.
"""

from __future__ import annotations

from typing import Protocol

from art_core.checkpoint import StoredCheckpoint
from art_core.policy import PublishedPolicy


class Publisher(Protocol):
    """Brings stored steps to the engine; see the module's contract."""

    async def publish(self, name: str, stored: StoredCheckpoint) -> PublishedPolicy:
        """Load and prove a stored step.

        Args:
            name: Public name, ``<model>@<step>``, not in use.
            stored: The step.

        Raises:
            CheckpointCorruptError: Its files differ from its manifest.
            StaleWeightsError: The engine serves other weights than the checkpoint's; nothing stays loaded.
            PublishError: The engine refused or died.
        """
        ...

    async def retract(self, policy: PublishedPolicy) -> None:
        """Stop serving a drained step; idempotent."""
        ...
