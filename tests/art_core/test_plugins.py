"""Finding, loading and checking plugins, with real distributions written into a folder on sys.path."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from art_core.errors import (
    PluginConflictError,
    PluginContractError,
    PluginLoadError,
    PluginNotFoundError,
)
from art_core.plugins import Plugins

GOOD = """
from art_core.builtin.file import FileStoreOptions
from art_core.hookspecs import hookimpl
from art_core.part import StorePart

class Options(FileStoreOptions):
    part = "{name}"

@hookimpl
def art_register_stores(register):
    register(StorePart(name="{name}", options=Options, priority={priority}, create=lambda options: None{extra}))
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(site: Path, name: str, code: str, distribution: str | None = None) -> None:
    """Write a module and the metadata of a distribution that offers it as plugin `name`."""
    distribution = distribution or f"art-{name}"
    module = f"plugin_{distribution.replace('-', '_')}_{site.name.replace('-', '_')}"
    (site / f"{module}.py").write_text(code)
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[art_core]\n{name} = {module}\n")
    importlib.invalidate_caches()


def good(name: str, priority: int = 0, extra: str = "") -> str:
    return GOOD.format(name=name, priority=priority, extra=extra)


def test_a_part_is_loaded_by_name_and_nothing_else_is_imported(site: Path) -> None:
    install(site, "mine", good("mine"))
    install(site, "broken", "raise RuntimeError('boom')")
    assert Plugins().part("store", "mine").name == "mine"


def test_an_unknown_name_suggests_the_nearest(site: Path) -> None:
    install(site, "tape", good("tape"))
    with pytest.raises(PluginNotFoundError, match=r"store 'tap' is not installed; did you mean 'tape'.*art-tap"):
        Plugins().part("store", "tap")


def test_a_plugin_of_another_kind(site: Path) -> None:
    with pytest.raises(PluginNotFoundError, match=r"offers no engine; it offers: store$"):
        Plugins().part("engine", "file")


def test_a_broken_plugin_says_why(site: Path) -> None:
    install(site, "broken", "raise RuntimeError('boom')")
    with pytest.raises(PluginLoadError, match=r"'broken' \(art-broken\).*RuntimeError: boom"):
        Plugins().part("store", "broken")


def test_two_distributions_of_one_name_conflict(site: Path) -> None:
    install(site, "twice", good("twice"), "art-one")
    install(site, "twice", good("twice"), "art-two")
    with pytest.raises(PluginConflictError, match="art-one, art-two"):
        Plugins().part("store", "twice")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (good("other"), "has name 'other'"),
        (good("bad", extra=", contract_version=99"), "contract_version 99"),
        (good("bad").replace("StorePart(", "dict("), "registers dict as store"),
        (good("bad").replace("art_register_stores(register)", "art_register_stores(registrar)"), "registrar"),
        (good("bad").replace("art_register_stores", "art_register_shops"), "art_register_shops"),
    ],
)
def test_what_breaks_the_contract_is_refused(site: Path, code: str, message: str) -> None:
    install(site, "bad", code)
    plugins = Plugins()
    for _ in range(2):  # a refused plugin stays refused
        with pytest.raises(PluginContractError, match=message):
            plugins.part("store", "bad")


def test_the_best_part_has_the_highest_priority_and_broken_neighbours_do_not_matter(site: Path) -> None:
    install(site, "high", good("high", priority=1000))
    install(site, "broken", "raise RuntimeError('boom')")
    plugins = Plugins()
    assert plugins.best("store").name == "high"
    reports = {report.name: report for report in plugins.report()}
    assert (
        reports["broken"].error == "PluginLoadError: plugin 'broken' (art-broken) can't be imported: RuntimeError: boom"
    )
    assert reports["high"].error is None and reports["high"].distribution == "art-high"
    assert {"file", "reload"} <= reports.keys()


def test_listing_plugins_imports_no_heavy_library() -> None:
    code = "import sys; from art_core.plugins import Plugins; Plugins().report(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
