"""`LocalBackend` before anything is started: what it tells observers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import art
from art.local import LocalBackend
from art_core.errors import ConfigError, PluginNotFoundError
from tests.art_core.rollout import group
from tests.installed import install

OBSERVER = """
from art_core.hookspecs import hookimpl

told = []

@hookimpl
def art_on_log(run, record):
    told.append((run, record.step))

@hookimpl
def art_on_close(run):
    told.append((run, "end"))
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two observers, ``board`` and ``paper``."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    install(site, "board", OBSERVER)
    install(site, "paper", OBSERVER)
    return site


def module(site: Path, name: str) -> ModuleType:
    return sys.modules[f"plugin_art_{name}_{site.name}"]


def trainable(name: str, **options: Any) -> art.TrainableModel[None]:
    return art.TrainableModel(name=name, project="p", base_model="b", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"durable": "both"}, "durable is 'both'; allowed: 'local', 'remote'"),
        ({"durable": None}, "durable is None; allowed: 'local', 'remote'"),
        ({"retention": 5}, r"retention is 5; allowed: a art_core\.retention\.Retention, or None"),
        ({"retention": {"latest": 2}}, "retention is {'latest': 2}; allowed"),
        ({"timeouts": 3.0}, "timeouts is 3.0; allowed"),
        ({"stor": "x"}, "LocalBackend has no option 'stor'; did you mean 'store'"),
    ],
)
def test_what_can_not_be_meant_is_refused(options: dict[str, Any], said: str) -> None:
    """At once, and not at the first step that would be kept, or that nobody copies."""
    with pytest.raises(ConfigError, match=said):
        LocalBackend(**options)


async def test_remote_without_a_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ART_STORE", raising=False)
    with pytest.raises(ConfigError, match="durable is 'remote', but steps are copied nowhere; give store="):
        await trainable("m").register(LocalBackend(path=tmp_path, engine="torch", trainer="torch", durable="remote"))
    assert list(tmp_path.iterdir()) == []


async def test_observers_by_name_for_all_models_and_for_one(tmp_path: Path, site: Path) -> None:
    backend = LocalBackend(path=tmp_path, observers=["board"])
    first, second = trainable("first", report_metrics=["board", "paper"]), trainable("second")
    for model in (first, second):
        await backend.register(model)
        await model.log([group(1.0)], step=3)
    assert module(site, "board").told == [("first", 3), ("second", 3)]
    assert module(site, "paper").told == [("first", 3)]


async def test_a_reporter_that_is_not_installed_is_said_and_an_observer_that_is_not_is_refused(
    tmp_path: Path, site: Path
) -> None:
    model = trainable("first", report_metrics=["bord"])
    with pytest.warns(UserWarning, match=r"report_metrics: .*'bord' is not installed; did you mean 'board'.*history"):
        await LocalBackend(path=tmp_path).register(model)
    await model.log([group(1.0)], step=3)
    with pytest.raises(PluginNotFoundError, match="observer 'bord' is not installed"):
        LocalBackend(path=tmp_path, observers=["bord"])


async def test_observers_are_told_of_the_end_once_however_often_a_backend_is_closed(tmp_path: Path, site: Path) -> None:
    async with LocalBackend(path=tmp_path, observers=["board"]) as backend:
        await backend.register(trainable("first"))
        await backend.close()
    assert module(site, "board").told.count(("first", "end")) == 1
