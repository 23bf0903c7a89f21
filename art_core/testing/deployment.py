"""What a publisher that serves nothing here promises: a step is brought elsewhere, under an address of its own."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import pytest_asyncio

from art_core.capability import Capabilities
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, StoredCheckpoint
from art_core.config import PartOptions
from art_core.errors import CheckpointCorruptError, PublishError
from art_core.local_store import LocalStore
from art_core.part import PublisherPart
from art_core.policy import ProofKind, PublishedPolicy
from art_core.protocols.publisher import Publisher
from art_core.testing.adapter import AdapterShape
from art_core.testing.promise import promised, refused
from art_core.testing.shelf import Shelf
from art_core.testing.store.bench import Objects, Outage, added

if TYPE_CHECKING:
    from art_core.protocols.engine import InferenceEngine

RUN = "läufer 日本 100%?#&+"


@pytest.mark.asyncio(loop_scope="session")
class DeploymentCase:
    """Fixtures that the author gives: `part`, `objects`, `outage`, and `options` where the defaults don't do."""

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

    @pytest.fixture(scope="class")
    @classmethod
    def objects(cls) -> Objects:
        """Every file that the place holds, past the publisher."""
        raise NotImplementedError("override the fixture `objects`: a mapping of names to bytes, e.g. DirectoryObjects")

    @pytest.fixture(scope="class")
    @classmethod
    def outage(cls) -> Outage:
        """Makes the place fail for a block."""
        raise NotImplementedError("override the fixture `outage`: a function that gives a context manager")

    @pytest.fixture
    def publisher(self, part: PublisherPart, options: PartOptions) -> Publisher:
        """A publisher, made without an engine, as `deploy_model` makes it."""
        return made(part, options)

    @pytest_asyncio.fixture(loop_scope="session")
    async def step(self, tmp_path: Path) -> StoredCheckpoint:
        """Step 7 of a run of the test's own, stored; its name is not ASCII."""
        return await stored(tmp_path, f"{tmp_path.name} {RUN}", 7)


class DeploymentAddresses(DeploymentCase):
    """Tests of what is published, and under which address."""

    async def test_it_says_that_it_serves_nothing_here(self, part: PublisherPart) -> None:
        """`PublisherPart.serves` is False, so that no run takes it for the one that the route follows."""
        promised(not part.serves, "the part says that it serves nothing here", part.serves)

    async def test_the_step_is_there_and_its_address_is_told(
        self, publisher: Publisher, step: StoredCheckpoint, objects: Objects
    ) -> None:
        """`publish` brings the adapter's files there byte for byte, and says under which name and where it answers."""
        before = set(objects)
        policy = await publisher.publish("kit@7", step)
        promised(policy.stored == step, "the policy is of what was published", policy.stored)
        promised(policy.name and policy.base_url, "the policy says its name and its address there", policy)
        require_there(objects, before, step)

    async def test_no_proof_is_claimed_without_its_figures(self, publisher: Publisher, step: StoredCheckpoint) -> None:
        """What nobody has read back from the place is not proved."""
        proof = (await publisher.publish("kit@7", step)).proof
        shown = proof.slot_digest is not None and proof.slot_digest == proof.expected_digest
        promised(proof.kind is ProofKind.NONE or shown, "no proof is claimed without its figures", proof)

    async def test_publishing_again_gives_the_same_address_and_adds_nothing(
        self, publisher: Publisher, part: PublisherPart, options: PartOptions, step: StoredCheckpoint, objects: Objects
    ) -> None:
        """At the next start the newest step is published again: by another object, to the same address."""
        first = await publisher.publish("kit@7", step)
        before = dict(objects)
        for again in (publisher, made(part, options)):
            promised(address(await again.publish("kit@7", step)) == address(first), "its address stays the same")
        promised(dict(objects) == before, "publishing again adds nothing", added(objects, before))

    async def test_a_step_of_equal_weights_has_its_own_address(self, publisher: Publisher, tmp_path: Path) -> None:
        """A step in which nothing was learnt has its predecessor's weights, and an address of its own."""
        run = f"{tmp_path.name} equal"
        steps = [await stored(tmp_path, run, number) for number in (1, 2)]
        addresses = {address(await publisher.publish(f"kit@{each.step}", each)) for each in steps}
        promised(len(addresses) == 2, "each step has an address of its own", addresses)

    async def test_runs_of_like_names_are_told_apart(self, publisher: Publisher, tmp_path: Path) -> None:
        """Runs are their project and their name together, whatever characters the place allows in names."""
        names = [
            ("p", "läufer"),
            ("p", "l ufer"),
            ("p", "l_ufer"),
            ("p 2", "läufer"),
            ("p:2", "läufer"),
        ]
        steps = [await stored(tmp_path, f"{tmp_path.name} {run}", 1, project=project) for project, run in names]
        addresses = {address(await publisher.publish("kit@1", each)) for each in steps}
        promised(len(addresses) == len(names), "runs of like names have addresses of their own", addresses)

    async def test_a_later_step_leaves_the_earlier_one_alone(
        self, publisher: Publisher, tmp_path: Path, objects: Objects
    ) -> None:
        """An address stands for one step for ever: it may be pinned by whoever uses it."""
        run, before = f"{tmp_path.name} later", set(objects)
        first = await stored(tmp_path, run, 1, AdapterShape(1))
        await publisher.publish("kit@1", first)
        mine = {key: objects[key] for key in added(objects, before)}
        await publisher.publish("kit@2", await stored(tmp_path, run, 2, AdapterShape(2)))
        promised(all(objects.get(key) == mine[key] for key in mine), "a later step leaves the earlier one alone")

    async def test_another_checkpoint_at_the_same_address_is_refused(
        self, publisher: Publisher, tmp_path: Path, objects: Objects
    ) -> None:
        """Another checkpoint under that run and step is a PublishError, and what stands there stays."""
        run = f"{tmp_path.name} other"
        await publisher.publish("kit@7", await stored(tmp_path, run, 7, AdapterShape(1)))
        before = dict(objects)
        other = await stored(tmp_path / "elsewhere", run, 7, AdapterShape(2))
        with refused(PublishError, "publish refuses another checkpoint at an address that is taken"):
            await publisher.publish("kit@7", other)
        promised(dict(objects) == before, "what stands at an address stays", added(objects, before))


class DeploymentFailures(DeploymentCase):
    """Tests of failures and of `retract`."""

    @pytest.mark.parametrize("damage", ["changed", "cut", "missing", "a link"])
    @pytest.mark.parametrize("name", [ADAPTER, ADAPTER_CONFIG])
    async def test_files_that_differ_from_the_manifest_go_nowhere(
        self, publisher: Publisher, step: StoredCheckpoint, objects: Objects, name: str, damage: str
    ) -> None:
        """Files that differ from their manifest are a CheckpointCorruptError, and nothing of them is brought there."""
        before, path = set(objects), step.directory / name
        whole = path.read_bytes()
        _damage(path, damage)
        with refused(CheckpointCorruptError, f"publish refuses {name} that is {damage}"):
            await publisher.publish("kit@7", step)
        promised(not added(objects, before), "nothing of a damaged step is brought there", added(objects, before))
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
        await publisher.publish("kit@7", step)

    async def test_a_place_that_fails_is_a_publish_error(
        self, publisher: Publisher, step: StoredCheckpoint, objects: Objects, outage: Outage
    ) -> None:
        """While the place fails `publish` is a PublishError; afterwards the same call succeeds."""
        before = set(objects)
        with outage(), refused(PublishError, "publish where the place fails"):
            await publisher.publish("kit@7", step)
        await publisher.publish("kit@7", step)
        require_there(objects, before, step)

    async def test_a_cancelled_publish_can_be_made_again(
        self, publisher: Publisher, step: StoredCheckpoint, objects: Objects
    ) -> None:
        """A `publish` that is cancelled before its end raises CancelledError; made again, the step is there, once."""
        before = set(objects)
        call = asyncio.ensure_future(publisher.publish("kit@7", step))
        await asyncio.sleep(0)
        call.cancel()
        outcome = (await asyncio.gather(call, return_exceptions=True))[0]
        ended = isinstance(outcome, asyncio.CancelledError | PublishedPolicy)
        promised(ended, "a cancelled publish raises CancelledError", outcome)
        await publisher.publish("kit@7", step)
        require_there(objects, before, step)

    async def test_the_local_files_stay_as_they_are(self, publisher: Publisher, step: StoredCheckpoint) -> None:
        """The engine that serves the step reads its files at any time."""
        before = {path: path.read_bytes() for path in step.directory.iterdir()}
        policy = await publisher.publish("kit@7", step)
        await publisher.retract(policy)
        after = {path: path.read_bytes() for path in step.directory.iterdir()}
        promised(before == after, "publish and retract leave the local files as they are", [*after])

    async def test_retract_is_idempotent_and_of_that_step_alone(
        self, publisher: Publisher, tmp_path: Path, objects: Objects
    ) -> None:
        """`retract` may be called again, changes no other step, and the step can be published anew."""
        run, before = f"{tmp_path.name} retracted", set(objects)
        first = await publisher.publish("kit@1", await stored(tmp_path, run, 1, AdapterShape(1)))
        mine = {key: objects[key] for key in added(objects, before)}
        before = set(objects)
        second = await publisher.publish("kit@2", await stored(tmp_path, run, 2, AdapterShape(2)))
        for _ in range(2):
            await publisher.retract(second)
        promised(all(objects.get(key) == mine[key] for key in mine), "retract changes no other step")
        again = await publisher.publish("kit@2", second.stored)
        promised(address(again) == address(second) != address(first), "a retracted step can be published anew", again)
        require_there(objects, before, second.stored)


def made(part: PublisherPart, options: PartOptions) -> Publisher:
    """A publisher without an engine."""
    return part.create(options, cast("InferenceEngine", None), Capabilities())


async def stored(
    root: Path, run: str, step: int, shape: AdapterShape | None = None, project: str = "projekt ß = 1"
) -> StoredCheckpoint:
    """A step in its place below a root: ``<root>/<project>/models/<run>/checkpoints/0007``."""
    path, base = root / project / "models" / run, root / "base"
    await asyncio.to_thread(_prepare, path, base)
    checkpoint = await asyncio.to_thread(Shelf(path, base).stage, step, shape or AdapterShape(1))
    return await LocalStore().commit(path, checkpoint)


def _prepare(path: Path, base: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    base.mkdir(exist_ok=True)
    config = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    (base / "config.json").write_text(json.dumps(config))


def address(policy: PublishedPolicy) -> tuple[str, str | None]:
    """Where a policy answers, and under which name."""
    return policy.name, policy.base_url


def require_there(objects: Objects, before: set[str], step: StoredCheckpoint) -> None:
    """The adapter's two files have come to the place, byte for byte, once."""
    came = [objects[key] for key in added(objects, before)]
    for name in (ADAPTER, ADAPTER_CONFIG):
        data = (step.directory / name).read_bytes()
        promised(came.count(data) == 1, f"{name} is there byte for byte, once", f"{came.count(data)} times")


def _damage(path: Path, damage: str) -> None:
    match damage:
        case "changed":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        case "cut":
            os.truncate(path, path.stat().st_size - 1)
        case "missing":
            path.unlink()
        case "a link":
            outside = path.parents[1] / "outside"
            path.rename(outside)
            path.symlink_to(outside)
