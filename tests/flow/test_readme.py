"""The README's program, as it stands there, in an empty folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_the_agent_of_the_readme_learns(tmp_path: Path) -> None:
    """Ten steps. Seen: the mean reward of three steps rises from 0.46 to 0.83; 1.3 times leaves room for chance."""
    match = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    (tmp_path / "agent.py").write_text(match.group(1), encoding="utf-8")
    done = subprocess.run([sys.executable, "agent.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rewards = [float(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(rewards) == 10
    assert sum(rewards[-3:]) > 1.3 * sum(rewards[:3])
