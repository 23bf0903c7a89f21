"""Real distributions for tests: a module and the metadata that offers it as a plugin, written into a folder."""

from __future__ import annotations

import importlib
from pathlib import Path

STORE = """
from art_core.builtin.file import FileStoreOptions
from art_core.hookspecs import hookimpl
from art_core.part import StorePart

class Options(FileStoreOptions):
    part = "{name}"

@hookimpl
def art_register_stores(register):
    register(StorePart(name="{name}", options=Options, priority={priority}, create=lambda options: None{extra}))
"""


def store(name: str, priority: int = 0, extra: str = "") -> str:
    """Code of a plugin with one store; `extra` goes into its part's arguments."""
    return STORE.format(name=name, priority=priority, extra=extra)


def install(site: Path, name: str, code: str, distribution: str | None = None, requires: str | None = None) -> None:
    """Write a module and the metadata of a distribution that offers it as plugin `name`.

    Args:
        site: A folder on the path of the interpreter that shall see it.
        name: The plugin's name.
        code: The module.
        distribution: Default ``art-<name>``.
        requires: A requirement that its metadata declares.
    """
    distribution = distribution or f"art-{name}"
    module = f"plugin_{distribution.replace('-', '_')}_{site.name.replace('-', '_')}"
    (site / f"{module}.py").write_text(code)
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {distribution}", "Version: 1.0"]
    lines += [f"Requires-Dist: {requires}"] if requires else []
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "entry_points.txt").write_text(f"[art_core]\n{name} = {module}\n")
    importlib.invalidate_caches()
