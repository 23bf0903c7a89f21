"""What may be in the repository: small files, pins without addresses, links that lead somewhere, tests that run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.architecture.source import PROJECTS, ROOT, name, repository_files

LIMIT_BYTES = 1 << 20
LINK = re.compile(r"(?<!!)\[[^\]\[]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def pins() -> dict[str, str]:
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#")
    return {canonicalize_name(package): version for package, _, version in (line.partition("==") for line in lines)}


def requirements() -> list[Requirement]:
    """Every direct dependency of core, its extras and the plugins."""
    found: list[str] = []
    for path in PROJECTS:
        project = tomllib.loads(path.read_text())["project"]
        found += project.get("dependencies", [])
        found += [line for extra in project.get("optional-dependencies", {}).values() for line in extra]
    return [Requirement(line) for line in found]


def our_own() -> set[str]:
    return {tomllib.loads(path.read_text())["project"]["name"] for path in PROJECTS}


def anchors(page: Path) -> set[str]:
    """What a heading's link looks like on the pages of a code host."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken


def test_every_file_is_small() -> None:
    large = {name(path): path.stat().st_size for path in repository_files() if path.stat().st_size > LIMIT_BYTES}
    assert not large, f"files over {LIMIT_BYTES} bytes: {large}"


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    direct = [each for each in requirements() if each.name not in our_own()]
    assert direct
    wrong = {str(each): pins().get(canonicalize_name(each.name)) for each in direct}
    wrong = {each: pin for each, pin in wrong.items() if pin is None or pin not in Requirement(each).specifier}
    assert not wrong, f"constraints.txt must pin each of these to a version it allows: {wrong}"


def test_every_direct_dependency_has_its_reason() -> None:
    page = (ROOT / "docs" / "decisions" / "0000-dependencies.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w-]+", page))
    assert [each.name for each in requirements() if each.name not in {*named, *our_own()}] == []


def test_every_benchmark_is_listed_with_its_question() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+\.py)` \| \w", page, re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "benchmarks").glob("*.py")}


def test_every_pin_is_a_public_version_of_a_package() -> None:
    """No local version such as ``+cpu`` either: those exist on one index only."""
    assert pins()
    assert [line for line in pins().items() if not re.fullmatch(r"\d[\w.]*", line[1])] == []


def test_no_pinned_set_names_an_address() -> None:
    sets = [
        path
        for path in repository_files()
        if re.search(r"(constraints|requirements)[^/]*\.txt$|/env/[^/]+\.txt$", path.as_posix())
        or path.name in {"Makefile", "pyproject.toml"}
        or path.parent.name == ".ci"
    ]
    assert {"constraints.txt", "Makefile", "pyproject.toml"} <= {name(path) for path in sets}
    address = re.compile(r"[a-z]+://|--(extra-)?index-url|--find-links|--trusted-host", re.IGNORECASE)
    found = [f"{name(path)}: {line}" for path in sets for line in path.read_text().splitlines() if address.search(line)]
    assert not found, f"packages and versions only: {found}"


def test_every_link_between_pages_leads_somewhere() -> None:
    pages = [path for path in repository_files() if path.suffix == ".md"]
    assert pages
    broken = {name(page): links for page in pages if (links := broken_links(page))}
    assert not broken, broken


def test_every_test_file_is_one_that_make_runs() -> None:
    """`make test` passes the folders of tests/ to pytest, so a test at its top would never run."""
    assert list((ROOT / "tests").glob("test_*.py")) == []
    misnamed = [
        name(path)
        for path in (ROOT / "tests").rglob("*.py")
        if not path.name.startswith("test_") and re.search(r"^(async )?def test_", path.read_text(), re.MULTILINE)
    ]
    assert not misnamed, f"pytest collects test_*.py only: {misnamed}"


PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_is_a_whole_distribution(plugin: Path) -> None:
    """What its wheel must hold, and a word of it on the project's own page."""
    settings = tomllib.loads((plugin / "pyproject.toml").read_text(encoding="utf-8"))
    project, package = settings["project"], plugin.name.replace("-", "_")
    assert (project["name"], project["readme"], project["license"]) == (plugin.name, "README.md", "Apache-2.0")
    assert project["license-files"] == ["LICENSE"], "its wheel must carry the license: license-files = ['LICENSE']"
    license_text = (ROOT / "LICENSE").read_bytes()
    assert (plugin / "LICENSE").read_bytes() == license_text, "ln -s ../../LICENSE LICENSE"
    assert (plugin / package / "py.typed").is_file()
    assert list(project["entry-points"]["art_core"]) == [plugin.name.removeprefix("art-")]
    assert f"`{plugin.name}`" in (ROOT / "README.md").read_text(encoding="utf-8")
