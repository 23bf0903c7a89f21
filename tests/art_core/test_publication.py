"""Several publishers: one serves, the others bring a step elsewhere, and each stands for itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from art_core.builtin.reload import ReloadOptions
from art_core.capability import Capabilities
from art_core.checkpoint import StoredCheckpoint
from art_core.config import Environment
from art_core.errors import ConfigError, PluginContractError, PublishError
from art_core.part import PublisherPart
from art_core.plugins import Plugins
from art_core.policy import Proof, ProofKind, PublishedPolicy
from art_core.publication import make_publishers, publication_metrics, publish_elsewhere, select_publishers
from art_core.selection import OwnOptions
from tests.staged import stage_step


class Elsewhere:
    """A publisher that serves nothing here."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.published: list[str] = []

    async def publish(self, name: str, stored: StoredCheckpoint) -> PublishedPolicy:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.published.append(name)
        return PublishedPolicy(f"far/{name}", stored, Proof(ProofKind.NONE), base_url="https://far/v1")

    async def retract(self, policy: PublishedPolicy) -> None: ...


def part(name: str, made: object, *, serves: bool = False) -> PublisherPart:
    class Options(OwnOptions):
        part = name

    create: Any = lambda *_: made  # noqa: E731
    return PublisherPart(name=name, options=Options, create=create, serves=serves)


def chosen(selection: Any, named: str | None = None) -> list[str]:
    return [each.part.name for each in select_publishers(Plugins(), selection, Environment(publisher=named))]


def test_one_of_them_serves_and_stands_first() -> None:
    assert chosen(None) == chosen("reload") == chosen([ReloadOptions()]) == ["reload"]
    far = part("far", Elsewhere())
    assert chosen([far, "reload"]) == ["reload", "far"]
    assert chosen(None, "reload, wandb") == ["reload", "wandb"]


@pytest.mark.parametrize(
    ("selection", "seen"),
    [
        ([], "none, of which 0 serve"),
        ([part("far", Elsewhere())], "'far', of which 0 serve"),
        (["reload", part("near", Elsewhere(), serves=True)], "'reload', 'near', of which 2 serve"),
        (["reload", part("far", Elsewhere()), part("far", Elsewhere())], "'reload', 'far', 'far', of which 1 serve"),
    ],
)
def test_none_or_two_that_serve_or_one_twice_are_refused(selection: Any, seen: str) -> None:
    with pytest.raises(ConfigError, match=f"the publishers are {seen}; allowed: each once, and exactly one"):
        chosen(selection)


def test_each_is_held_to_the_contract() -> None:
    selected = select_publishers(Plugins(), ["reload", part("far", object())], Environment())
    with pytest.raises(PluginContractError, match="what publisher 'far' creates does not keep the contract Publisher"):
        make_publishers(selected, cast(Any, None), Capabilities())


async def test_one_that_fails_undoes_nothing_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    staged = stage_step(tmp_path / "r", 3)
    stored = StoredCheckpoint(staged.directory, staged.manifest)
    refusing, broken = Elsewhere(PublishError("no such team")), Elsewhere(KeyError("oops"))
    good = Elsewhere()
    found = await publish_elsewhere({"refusing": refusing, "good": good, "broken": broken}, "m@3", stored)
    assert good.published == ["m@3"]
    assert found["good"].policy is not None
    assert (found["good"].policy.name, found["good"].policy.base_url) == ("far/m@3", "https://far/v1")
    assert found["refusing"].error is refusing.error
    assert isinstance(found["broken"].error, PublishError)
    assert "publisher 'broken' failed: KeyError: 'oops'" in str(found["broken"].error)
    assert "step 3 is served, but publisher 'refusing' does not have it: no such team" in caplog.text
    metrics = publication_metrics(found)
    assert {name: metrics[f"publish/to_{name}"] for name in found} == {"refusing": 0.0, "good": 1.0, "broken": 0.0}
    assert await publish_elsewhere({}, "m@3", stored) == {}
