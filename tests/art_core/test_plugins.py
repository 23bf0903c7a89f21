"""Finding, loading and checking plugins, with real distributions written into a folder on sys.path."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from art_core.errors import (
    PluginConflictError,
    PluginContractError,
    PluginLoadError,
    PluginNotFoundError,
    PluginUnusableError,
)
from art_core.plugins import Plugins
from tests.installed import install, store


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_part_is_loaded_by_name_and_nothing_else_is_imported(site: Path) -> None:
    install(site, "mine", store("mine"))
    install(site, "broken", "raise RuntimeError('boom')")
    assert Plugins().part("store", "mine").name == "mine"


def test_an_unknown_name_suggests_the_nearest(site: Path) -> None:
    install(site, "tape", store("tape"))
    with pytest.raises(PluginNotFoundError, match=r"store 'tap' is not installed; did you mean 'tape'.*art-tap"):
        Plugins().part("store", "tap")


def test_an_unknown_name_is_compared_with_parts_of_its_kind(site: Path) -> None:
    """A store is no answer to who misspelt an engine."""
    install(site, "torhc", store("torhc"))
    with pytest.raises(
        PluginNotFoundError, match=r"engine 'torh' is not installed; did you mean 'torch'\? known: "
    ) as e:
        Plugins().part("engine", "torh")
    assert "torhc" not in str(e.value) and "file" not in str(e.value)


def test_a_plugin_of_another_kind(site: Path) -> None:
    with pytest.raises(PluginNotFoundError, match=r"offers no engine; it offers: store$"):
        Plugins().part("engine", "file")


def test_a_broken_plugin_says_why(site: Path) -> None:
    install(site, "broken", "raise RuntimeError('boom')")
    with pytest.raises(PluginLoadError, match=r"'broken' \(art-broken\).*RuntimeError: boom"):
        Plugins().part("store", "broken")


def test_two_distributions_of_one_name_conflict(site: Path) -> None:
    install(site, "twice", store("twice"), "art-one")
    install(site, "twice", store("twice"), "art-two")
    with pytest.raises(PluginConflictError, match="art-one, art-two"):
        Plugins().part("store", "twice")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (store("other"), "has name 'other'"),
        (store("bad", extra=", contract_version=99"), "contract_version 99"),
        (store("bad").replace("StorePart(", "dict("), "registers dict as store"),
        (store("bad").replace("art_register_stores(register)", "art_register_stores(registrar)"), "registrar"),
        (store("bad").replace("art_register_stores", "art_register_shops"), "art_register_shops"),
    ],
)
def test_what_breaks_the_contract_is_refused(site: Path, code: str, message: str) -> None:
    install(site, "bad", code)
    plugins = Plugins()
    for _ in range(2):  # a refused plugin stays refused
        with pytest.raises(PluginContractError, match=message):
            plugins.part("store", "bad")


def test_the_best_part_has_the_highest_priority_and_broken_neighbours_do_not_matter(site: Path) -> None:
    install(site, "high", store("high", priority=1000))
    install(site, "broken", "raise RuntimeError('boom')")
    plugins = Plugins()
    assert plugins.best("store").name == "high"
    reports = {report.name: report for report in plugins.report()}
    assert (
        reports["broken"].error == "PluginLoadError: plugin 'broken' (art-broken) can't be imported: RuntimeError: boom"
    )
    assert reports["high"].error is None and reports["high"].distribution == "art-high"
    assert {"file", "reload"} <= reports.keys()


UNUSABLE = ", usable=lambda: 'no GPU here; try: buy one'"


def test_the_best_part_is_one_that_can_work_here(site: Path) -> None:
    install(site, "big", store("big", priority=1000, extra=UNUSABLE))
    install(site, "mid", store("mid", priority=500))
    plugins = Plugins()
    assert plugins.best("store").name == "mid"
    mine = [each for each in plugins.candidates("store") if each.part.name in ("big", "mid", "file")]
    assert [(each.part.name, each.unusable) for each in mine] == [
        ("big", "no GPU here; try: buy one"),
        ("mid", None),
        ("file", None),
    ]


def test_where_nothing_can_work_each_part_is_named_with_its_reason(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = store("big", extra=UNUSABLE).replace("StorePart", "EnginePart").replace("stores", "engines")
    bool_engine = engine.replace("big", "bool").replace("'no GPU here; try: buy one'", "False")
    failing = engine.replace("big", "failing").replace("'no GPU here; try: buy one'", "1 / 0")
    for name, code in (("big", engine), ("bool", bool_engine), ("failing", failing), ("gone", "import no_such_thing")):
        install(site, name, code)
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    monkeypatch.setenv("ART_CACHE", str(site / "no-environments"))
    plugins = Plugins()
    with pytest.raises(PluginUnusableError) as error:
        plugins.best("engine")
    message = str(error.value)
    assert "big: no GPU here; try: buy one" in message
    assert "bool: its check answered False, not None or a sentence" in message
    assert "failing: its check failed: ZeroDivisionError: division by zero" in message
    assert "torch: not installed: torch; try: pip install art-torch" in message
    assert "gone: PluginLoadError" in message and "no_such_thing" in message


def test_where_nothing_is_installed_broken_plugins_are_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "gone", "import no_such_thing")
    plugins = Plugins()
    monkeypatch.setattr(plugins, "candidates", lambda kind: [])
    with pytest.raises(PluginNotFoundError, match=r"no engine is installed \(broken plugins: gone: .*no_such_thing"):
        plugins.best("engine")


def test_no_neighbour_can_stop_the_listing(site: Path) -> None:
    """Each of these once broke, or could break, a loop over all plugins."""
    install(site, "ends", "raise SystemExit(3)")
    install(site, "ends-late", store("ends-late").replace("    register(", "    raise SystemExit(3)\n    register("))
    install(site, "nameless", store("nameless"))
    (site / "art_nameless-1.0.dist-info" / "METADATA").unlink()
    install(site, "first", store("first"))
    install(site, "second", "", "art-second")
    entries = site / "art_second-1.0.dist-info" / "entry_points.txt"
    entries.write_text(
        (site / "art_first-1.0.dist-info" / "entry_points.txt").read_text().replace("first =", "second =")
    )
    install(site, "nowhere", store("nowhere"))
    (site / "art_nowhere-1.0.dist-info" / "entry_points.txt").write_text("[art_core]\nnowhere = :\n")
    seen = {report.name: report for report in Plugins().report()}
    assert "SystemExit: 3" in (seen["ends"].error or "")
    assert "failed while registering its store: 3" in (seen["ends-late"].error or "")
    assert seen["nameless"].error is None and seen["nameless"].version == "?"
    assert seen["first"].error is None
    assert "is the same module as 'first'" in (seen["second"].error or "")
    assert seen["nowhere"].error is not None
    assert seen["file"].error is None


def test_listing_plugins_imports_no_heavy_library() -> None:
    code = "import sys; from art_core.plugins import Plugins; Plugins().report(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_observer_that_can_not_be_hashed_is_an_observer_too(site: Path) -> None:
    @dataclass
    class Observer:
        seen: int = 0

    plugins = Plugins()
    plugins.manager.register(Observer())
    assert plugins.part("store", "file").name == "file"
