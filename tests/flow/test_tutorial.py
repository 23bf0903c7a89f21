"""The programs of the tutorial and of the how-to pages, as they stand there, one after the other in an empty folder."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL = DOCS / "tutorial" / "your-own-agent.md"
PAGES = (TUTORIAL, *sorted((DOCS / "how-to").glob("*.md")))
EXCERPTS = {"adopt", "environment", "wandb"}
"""Pages whose blocks need what an empty folder has not (an environment, a foreign run, a W&B server): the tests of
their subjects do what they show."""
LEARNED = 1.3
"""How many times the first three steps' mean reward the last three's is to be. Seen: 0.38, then 0.73."""
BLOCK = re.compile(r'^```python(?: title="(.+?)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def programs(page: Path) -> dict[str, str]:
    """File name to its code; blocks of one name follow one another."""
    found: dict[str, str] = {}
    for name, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        found[name] = found.get(name, "") + code + "\n"
    return found


def run(folder: Path, name: str, code: str) -> str:
    (folder / name).write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, name], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_program_has_a_name_and_can_be_parsed(page: Path) -> None:
    for name, code in programs(page).items():
        assert name.endswith(".py") or page.stem in EXCERPTS, f"a block of {page.name} has no title: nothing runs it"
        ast.parse(code)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_the_programs_do_what_their_page_says(tmp_path: Path) -> None:
    tutorial = programs(TUTORIAL)
    said = run(tmp_path, "agent.py", tutorial.pop("agent.py"))
    steps = [(float(reward), proved) for reward, proved in re.findall(r"reward ([\d.]+), proved (\d)", said)]
    assert len(steps) == 8 and {proved for _, proved in steps} == {"1"}
    rewards = [reward for reward, _ in steps]
    assert sum(rewards[-3:]) > LEARNED * sum(rewards[:3]), rewards
    looked = run(tmp_path, "look.py", tutorial.pop("look.py"))
    assert len(looked.splitlines()) == 10
    asked = run(tmp_path, "ask.py", tutorial.pop("ask.py"))
    assert [line.partition(":")[0] for line in asked.splitlines()] == ["quiz@8", "quiz@1"]
    assert not tutorial, "a program that nothing runs"
    told = {
        name: run(tmp_path, name, code)
        for page in PAGES
        if page != TUTORIAL
        for name, code in programs(page).items()
        if name
    }
    assert told["resume.py"].splitlines() == ["goes on after step 8", "the fork goes on after step 2"]
    assert told["lease.py"].strip() == "quiz@8"
    assert "groups were judged" in told["judge.py"]
    assert told["supervised.py"].splitlines()[-1] == "The cat."
    assert "16 trajectories" in told["history.py"]


@pytest.mark.heavy
def test_the_programs_pass_a_strict_type_check(tmp_path: Path) -> None:
    """The names that users import are typed: `py.typed`, and no `Any` where a rollout is written."""
    files = {name: code for page in PAGES for name, code in programs(page).items() if name}
    for name, code in files.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "--config-file", "", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
