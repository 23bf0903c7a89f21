"""What a part's library needs: pinned sets as they are read, and whether an interpreter's packages fit."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from art_core.environment.spec import EnvironmentSpec, differences, misfit, misfit_here, pinned_set
from art_core.errors import PluginContractError
from tests.art_core.environment.case import bow


def test_a_set_is_its_lines_whatever_their_order_and_comments(tmp_path: Path) -> None:
    first = pinned_set(bow(tmp_path, "# by hand", "", "b==2  # for a", 'a==1.0+cpu ; python_version < "4"'), "cpu")
    again = pinned_set(bow(tmp_path, 'a==1.0+cpu; python_version<"4"', "b==2"), "cpu")
    other = pinned_set(bow(tmp_path, "a==1.0+cpu", "b==2"), "cpu")
    assert first.lines == ['a==1.0+cpu; python_version < "4"', "b==2"]
    assert first.digest == again.digest != other.digest
    assert first.versions == {"a": "1.0+cpu", "b": "2"}


@pytest.mark.parametrize("line", ["a", "a>=1", "a==1.*", "a==1,>0", "a===1", "a @ file:///a.whl", "-r other.txt", "??"])
def test_a_line_that_pins_nothing_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(PluginContractError, match=r"cpu\.txt: .*name==version"):
        pinned_set(bow(tmp_path, line), "cpu")


def test_a_set_that_brings_our_own_from_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginContractError, match="pins Art_Bow, which enters by path"):
        pinned_set(bow(tmp_path, "quiver==2.1", "Art_Bow==1.0"), "cpu")


def test_a_set_that_is_not_shipped_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginContractError, match=r"'bow': the pinned set for cpu can't be read: .*gone\.txt"):
        pinned_set(bow(tmp_path, requirements={"cpu": tmp_path / "gone.txt"}), "cpu")


def test_which_library_fits(tmp_path: Path) -> None:
    spec = bow(tmp_path, library={"quiver": ">=2", "Quiver_CPU": "==1.*"})
    assert misfit(spec, {"quiver": "2.1"}) is None
    assert misfit(spec, {"quiver": "1.9", "quiver-cpu": "1.5+avx"}) is None
    assert misfit(spec, {"quiver": "2.1.dev1"}) is None
    assert misfit(spec, {}) == "needs quiver>=2 or Quiver_CPU==1.*; installed: none of it"
    assert misfit(spec, {"quiver": "1.9"}) == "needs quiver>=2 or Quiver_CPU==1.*; installed: quiver 1.9"


def test_this_interpreter_is_looked_at_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert misfit_here(bow(tmp_path, library={"numpy": ">=2"}, modules=["numpy", "loud"])) is None
    assert misfit_here(bow(tmp_path, library={"numpy": ">=2"}, modules=["no_such"])) == "no_such can't be imported"
    old = misfit_here(bow(tmp_path, library={"numpy": "<2"}, modules=["numpy"]))
    assert old == f"needs numpy<2; installed: numpy {version('numpy')}"


def test_what_an_environment_lacks_of_its_set(tmp_path: Path) -> None:
    pinned = pinned_set(bow(tmp_path, "a==1", "B_b==2", 'old==1; python_version < "3.9"', "c==3"), "cpu")
    installed = {"a": "1.0+cpu", "b-b": "2.1"}
    assert differences(pinned, installed, "3.11.7") == ["B_b==2 (installed: 2.1)", "c==3 (installed: none)"]


def test_a_spec_has_defaults_for_what_few_need() -> None:
    spec = EnvironmentSpec(name="a", requirements={}, distributions=(), library={}, modules=())
    assert spec.python == ">=3.11" and spec.space_bytes > 1 << 30
