"""The W&B process as its owner sees it: what becomes of a call when it dies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from art_wandb.process import WandbProcess

from art_core.errors import StoreUnavailableError
from art_core.testing.condition import LONGEST_S

DIES = """#!{python}
import os, sys
socket = int(sys.argv[4])
os.read(socket, 1 << 16)
os.write(socket, {answer!r})
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("answer", [b"", b'{"call": 1, "res'])
def test_a_process_that_dies_in_the_middle_of_an_answer_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    """A process of the test's own stands in, because ours can't be killed between two bytes on purpose."""
    dies = tmp_path / "dies"
    dies.write_text(DIES.format(python=sys.executable, answer=answer))
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))
    process = WandbProcess()
    with pytest.raises(StoreUnavailableError, match=r"the W&B process is gone: .*was killed by SIGKILL"):
        process.call_here("now", LONGEST_S, {})
    connection = process._connection
    assert connection is not None and connection._gone.wait(LONGEST_S)
    assert not connection._directory.exists()
