"""Publisher `reload`: load the stored step under a name of its own, and prove that the engine serves it.

Verify the files against the manifest, load them, ask the engine which directory the name stands for, then prove:
by the digest of the tensors in the engine's slot where the engine declares `WEIGHT_PROOF`; else by its answers on the
step's probe where it declares `SCORE` and they have power (fp32); else not at all, and the policy says so.

Which adapters are loaded is asked of the engine every time: what this object remembers may be older than the engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from art_core.capability import Capabilities, Capability
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, PROBE, StoredCheckpoint, verify
from art_core.config import PartOptions
from art_core.errors import EngineError, PublishError, StaleWeightsError
from art_core.hookspecs import hookimpl
from art_core.part import PublisherPart
from art_core.policy import Behaviour, Proof, ProofKind, PublishedPolicy
from art_core.proof import behaviour
from art_core.protocols.engine import InferenceEngine, LoadedAdapter
from art_core.step import Probe
from art_core.timing import Timings

_log = logging.getLogger("art.publisher")


class ReloadOptions(PartOptions):
    """Options of the publisher `reload`."""

    part: ClassVar[str] = "reload"
    require_proof: bool = False
    """Refuse what can't be proved. Step 0, and the first step of a resumed run, have no previous step to compare
    answers with: only an engine with `weight_proof` can prove those."""
    beta_tolerance: float = Field(default=0.2, gt=0, lt=1)
    """Behaviour proof: accepted distance of the slope from 1, and largest standard error it may have."""
    max_standard_error: float = Field(default=0.1, gt=0)
    """Behaviour proof: standard error to be expected of the right step, above which the probe has no power."""
    max_parity: float = Field(default=1e-3, gt=0)
    """Behaviour proof: mean difference of engine and trainer on the previous step, nats, above which the probe has
    no power."""


class ReloadPublisher:
    """See the module's text; the contract is `art_core.protocols.publisher`.

    Args:
        options: What to accept as proof.
        engine: The engine that serves.
        capabilities: What it declares.
    """

    def __init__(self, options: ReloadOptions, engine: InferenceEngine, capabilities: Capabilities) -> None:
        self._options = options
        self._engine = engine
        self._capabilities = capabilities
        self._published: set[str] = set()
        self._warned = False

    async def publish(self, name: str, stored: StoredCheckpoint) -> PublishedPolicy:
        """Load and prove a stored step."""
        timings = Timings()
        names = {ADAPTER, ADAPTER_CONFIG} | (stored.manifest.files.keys() & {PROBE})
        verifying = asyncio.to_thread(verify, stored.directory, stored.manifest, names)
        with _engine_errors(f"step {stored.step} could not be published as {name!r}", stored):
            with timings.span("verify"):  # the engine answers while the files are read
                free = self._require_free(name, stored)
                for outcome in await asyncio.gather(verifying, free, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        raise outcome
            try:
                with timings.span("load"):
                    loaded = await self._engine.load_adapter(name, stored)
                with timings.span("prove"):
                    proof = await self._prove(name, stored, loaded)
            except BaseException as error:
                # shielded: a cancelled load may have taken effect, and the name must not stay loaded
                await asyncio.shield(self._forget(name, error))
                raise
        self._published.add(name)
        digest = {} if loaded.proof_s is None else {"digest": loaded.proof_s}
        return PublishedPolicy(name, stored, proof, timings.seconds | digest)

    async def retract(self, policy: PublishedPolicy) -> None:
        """Unload a drained step; idempotent, and not torn by cancellation."""
        with _engine_errors(f"{policy.name!r} could not be unloaded", policy.stored):
            await asyncio.shield(self._engine.unload_adapter(policy.name))
        self._published.discard(policy.name)

    async def _require_free(self, name: str, stored: StoredCheckpoint) -> None:
        """Refuse a name that serves; clear one that a failed publication left while the engine did not answer."""
        if name not in (await self._engine.health()).adapters:
            return
        if name in self._published:
            raise PublishError(
                f"{name!r} is published already; retract it before publishing step {stored.step} again",
                **_where(stored),
            )
        await self._engine.unload_adapter(name)

    async def _forget(self, name: str, error: BaseException) -> None:
        try:
            await self._engine.unload_adapter(name)
        except EngineError as second:
            error.add_note(f"{name!r} could not be unloaded after this: {second}")

    async def _prove(self, name: str, stored: StoredCheckpoint, loaded: LoadedAdapter) -> Proof:
        adapters = (await self._engine.health()).adapters
        if name not in adapters or not _same(adapters[name], stored.directory):
            seen = str(adapters[name]) if name in adapters else "nothing"
            raise _stale(f"{name!r} stands for {seen} in the engine, not for {stored.directory}", stored)
        if Capability.WEIGHT_PROOF in self._capabilities:
            return _weights(name, stored, loaded)
        if Capability.SCORE not in self._capabilities:
            return self._unproved("the engine declares neither weight_proof nor score", stored)
        probe = stored.probe()
        previous = f"{name.rpartition('@')[0]}@{stored.manifest.parent}"
        if probe is None or previous not in adapters:
            return self._unproved("there is no previous step in the engine to compare its answers with", stored)
        return await self._compare(previous, name, stored, probe)

    async def _compare(self, previous: str, name: str, stored: StoredCheckpoint, probe: Probe) -> Proof:
        """The behaviour proof. Written so that a NaN among the answers disproves."""
        before = await self._engine.score(previous, probe.tokens)
        after = await self._engine.score(name, probe.tokens)
        seen, options = behaviour(probe, before, after), self._options
        if not (seen.precision <= options.max_parity and seen.expected_error <= options.max_standard_error):
            return self._unproved(f"the probe has no power: {_figures(seen)}", stored)
        if not (abs(seen.beta - 1) <= options.beta_tolerance and seen.standard_error <= options.beta_tolerance):
            raise _stale(
                f"the engine's answers under {name!r} did not move as the trainer's did: {_figures(seen)}; accepted: "
                f"slope 1 ± {options.beta_tolerance:g}, known as exactly",
                stored,
            )
        return Proof(ProofKind.BEHAVIOUR, detail=f"the engine's answers moved as the trainer's did: {_figures(seen)}")

    def _unproved(self, reason: str, stored: StoredCheckpoint) -> Proof:
        if self._options.require_proof:
            raise PublishError(
                f"step {stored.step} can't be proved and require_proof is set: {reason}; use an engine that declares "
                f"weight_proof, or set require_proof=False",
                **_where(stored),
            )
        # step 0 is the base model: its lack of proof is no news, and must not use up the one warning
        if not self._warned and stored.step > 0:
            self._warned = True
            _log.warning("step %d is served unproved: %s (said once)", stored.step, reason)
        return Proof(ProofKind.NONE, detail=reason)


def _weights(name: str, stored: StoredCheckpoint, loaded: LoadedAdapter) -> Proof:
    """Compare what the engine read back from its slot with what the files must become in it."""
    slot, expected = loaded.slot_digest, loaded.expected_digest
    if slot is None or expected is None:
        missing = "slot_digest" if slot is None else "expected_digest"
        raise PublishError(
            f"the engine declares weight_proof but gave no {missing} for {name!r}; this is a defect of its plugin",
            **_where(stored),
        )
    if slot != expected:
        raise _stale(
            f"the engine's slot of {name!r} holds other weights than step {stored.step}'s checkpoint: slot "
            f"{slot[:12]}, expected {expected[:12]}",
            stored,
        )
    return Proof(ProofKind.WEIGHTS, slot, expected, f"the slot of {name!r} holds the checkpoint's tensors")


@contextmanager
def _engine_errors(what: str, stored: StoredCheckpoint) -> Iterator[None]:
    """Turn an engine's failure into a publication's; what says that the weights are wrong stays as it is."""
    try:
        yield
    except StaleWeightsError:
        raise
    except EngineError as error:
        message = f"{what}: {error}; the previous step goes on serving, publish again once the engine answers"
        raise PublishError(message, **_where(stored)) from error


def _stale(what: str, stored: StoredCheckpoint) -> StaleWeightsError:
    return StaleWeightsError(
        f"{what}; it is unloaded again and the previous step goes on serving; publish step {stored.step} again, and "
        f"if that repeats restart the engine",
        **_where(stored),
    )


def _where(stored: StoredCheckpoint) -> dict[str, Any]:
    return {"stage": "publish", "run": stored.run, "step": stored.step}


def _same(seen: Path, expected: Path) -> bool:
    return seen.resolve() == expected.resolve()


def _figures(seen: Behaviour) -> str:
    return (
        f"slope {seen.beta:.3g} ± {seen.standard_error:.2g} (expected ± {seen.expected_error:.2g}), parity "
        f"{seen.parity:.2g} nats, precision {seen.precision:.2g} nats, {seen.tokens} tokens"
    )


@hookimpl
def art_register_publishers(register: Callable[[PublisherPart], None]) -> None:
    """Register `reload`."""
    register(PublisherPart(name="reload", options=ReloadOptions, create=ReloadPublisher))
