"""A part with a library of its own that is built in seconds: one wheel for pip, one distribution of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from art_core.environment import EnvironmentSpec
from tests.wheel import Wheel

QUIVER = Wheel("quiver", "2.1", "ARROWS = 3\n")
"""The library."""
OURS = Wheel("art-bow", "1.0", "import quiver\nDRAWN = quiver.ARROWS\n", requires="quiver>=2")
"""The plugin that needs it."""

PLUGIN = """
from pathlib import Path
from art_core.config import HostedOptions
from art_core.environment import EnvironmentSpec
from art_core.hookspecs import hookimpl
from art_core.part import TrainerPart

class Options(HostedOptions):
    part = "bow"

SPEC = EnvironmentSpec(
    name="bow", requirements={"cpu": Path(__file__).with_name("cpu.txt")}, distributions=DISTRIBUTIONS,
    library={"quiver": ">=2"}, modules=["quiver"], space_bytes=1,
)

@hookimpl
def art_register_trainers(register):
    register(TrainerPart(name="bow", options=Options, environment=SPEC, create=create))

def create(options):
    import quiver
    from tests.numpy_trainer import NumpyTrainer
    return NumpyTrainer({"quiver": quiver.ARROWS})
"""
"""Code of the plugin as a whole: the numpy trainer, which looks at the library."""


def install_plugin(site: Path, *lines: str, ours: Sequence[str] = ("art-bow",)) -> None:
    """Install the plugin into a folder, with its pinned set beside its module."""
    code = PLUGIN.replace("DISTRIBUTIONS", repr(ours))
    Wheel("art-bow", code=code, requires="quiver>=2", plugin="bow").install(site)
    write_set(site / "cpu.txt", *(lines or ("quiver==2.1",)))


def write_set(path: Path, *lines: str) -> Path:
    """Write a pinned set."""
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def bow(root: Path, *lines: str, **fields: object) -> EnvironmentSpec:
    """The part's spec, its pinned set in a folder."""
    values = {
        "name": "bow",
        "requirements": {"cpu": write_set(root / "cpu.txt", *(lines or ("# what it needs", "quiver==2.1")))},
        "distributions": ["art-bow"],
        "library": {"quiver": ">=2"},
        "modules": ["quiver"],
        "space_bytes": 1 << 20,
    }
    return EnvironmentSpec(**{**values, **fields})  # type: ignore[arg-type]


def index(patch: pytest.MonkeyPatch, directory: Path) -> None:
    """Make a folder of wheels the user's package index, by the user's own settings of pip."""
    for name in [each for each in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT")]:
        patch.delenv(name, raising=False)
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(directory))
