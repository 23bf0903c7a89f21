"""What an interpreter is, asked of itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from art_core.config import Timeouts
from art_core.errors import ConfigError

_QUESTION = """
import importlib.util, json, platform, sys, sysconfig
lacks = [each for each in ("venv", "ensurepip") if importlib.util.find_spec(each) is None]
print(json.dumps(dict(executable=sys.executable, version=platform.python_version(), tag=sys.implementation.cache_tag,
    platform=sysconfig.get_platform(), lacks=lacks)))
"""


@dataclass(frozen=True)
class Python:
    """An interpreter that environments can be built with."""

    executable: str
    version: str
    """For example ``"3.11.7"``."""
    tag: str
    """For example ``"cpython-311"``."""
    platform: str
    """For example ``"linux-x86_64"``."""


def describe_python(command: str | None) -> Python:
    """Ask an interpreter what it is.

    Args:
        command: A path or a command; None: this process's own.

    Raises:
        ConfigError: There is none, it does not answer, or it can't make virtual environments.
    """
    found = sys.executable if command is None else shutil.which(Path(command).expanduser())
    if found is None:
        raise ConfigError(f"there is no interpreter {command!r}; give the path of one, or leave --python out")
    try:
        done = subprocess.run(
            [found, "-I", "-c", _QUESTION],
            capture_output=True,
            text=True,
            timeout=Timeouts.interpreter_query_s,
            check=True,
        )
        answer = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(f"{found} does not answer as an interpreter of Python 3 does: {error}") from error
    if answer.pop("lacks"):
        raise ConfigError(
            f"{found} can't make virtual environments (its modules venv and ensurepip are not whole); install them "
            f"(on Debian: apt install python3-venv), or name another interpreter with --python"
        )
    return Python(**answer)
