"""Publisher `wandb`: a step's adapter as an artifact that W&B Inference serves. It serves nothing here itself."""

from __future__ import annotations

from art_core.capability import Capabilities
from art_core.checkpoint import Checkpoint, StoredCheckpoint, verify
from art_core.errors import PublishError, StoreError
from art_core.local_store import in_thread
from art_core.policy import Proof, ProofKind, PublishedPolicy
from art_core.protocols.engine import InferenceEngine
from art_core.run_key import RunKey
from art_core.timing import Timings
from art_wandb.client import WandbClient, alias
from art_wandb.name import artifact_name, project_name
from art_wandb.options import WandbPublisherOptions
from art_wandb.store import WandbStore, require_same
from art_wandb.version import BASE_MODEL, DEPLOYED


class WandbPublisher:
    """See the module's text; the contract is `art_core.protocols.publisher`.

    Args:
        options: Which account, and what W&B Inference calls the base model.
        engine: Not used: W&B Inference serves.
        capabilities: Not used.
    """

    def __init__(
        self, options: WandbPublisherOptions, engine: InferenceEngine | None, capabilities: Capabilities
    ) -> None:
        self._options = options
        self._store = WandbStore(options)
        self._client = WandbClient(options)

    async def publish(self, name: str, stored: StoredCheckpoint) -> PublishedPolicy:
        """Bring a step's adapter to W&B, where it is not there already, and mark it as one to serve."""
        timings, run = Timings(), run_of(stored)
        with timings.span("verify"):
            await in_thread(verify, stored.directory, stored.manifest)
        try:
            with timings.span("load"):
                address = await self._deploy(run, stored)
        except StoreError as error:
            raise PublishError(
                f"step {stored.step} could not be brought to W&B Inference: {error}", run=stored.run, step=stored.step
            ) from error
        proof = Proof(
            ProofKind.NONE, detail="W&B holds the checkpoint's files; what W&B Inference serves it does not say"
        )
        return PublishedPolicy(address, stored, proof, timings.seconds, self._options.inference_base_url)

    async def retract(self, policy: PublishedPolicy) -> None:
        """Take the mark away again; the artifact stays, because it may be the store's copy. Idempotent."""
        run = run_of(policy.stored)
        version = await self._store.adapter(run, policy.step)
        if version is not None and version.metadata.get(DEPLOYED):
            await self._client.mark(run, version, {DEPLOYED: False}, [])

    async def _deploy(self, run: RunKey, stored: StoredCheckpoint) -> str:
        version = await self._store.adapter(run, stored.step)
        if version is None:
            checkpoint = Checkpoint(stored.directory, stored.manifest)
            version = await self._store.add_adapter(run, checkpoint, dropped=False)
        require_same(run, version, stored.manifest)
        base, name = self._options.base_model or stored.manifest.base_model.name, alias(stored.step)
        marks = {BASE_MODEL: base, DEPLOYED: True}
        if name not in version.aliases or not marks.items() <= dict(version.metadata).items():
            await self._client.mark(run, version, marks, [name])
        place = f"{await self._client.entity()}/{project_name(run.project)}/{artifact_name(run.run)}"
        return f"wandb-artifact:///{place}:{name}"


def run_of(stored: StoredCheckpoint) -> RunKey:
    """The run that a stored step stands in: ``<root>/<project>/models/<run>/checkpoints/0007``."""
    return RunKey(stored.directory.parents[3].name, stored.run)
