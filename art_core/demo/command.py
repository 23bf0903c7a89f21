"""What `art demo` does around the loop: find the place, run, write the report, and end well on Ctrl-C."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path

from rich.console import Console

from art_core.demo.place import find_place, read_history
from art_core.demo.progress import Progress
from art_core.demo.report import finding, require_libraries, write_report
from art_core.demo.run import DemoSettings, run_demo
from art_core.errors import ConfigError, PluginError, RunError

INTERRUPTED = 130
"""128 + SIGINT: what a shell expects of a command that Ctrl-C ended."""


def run_command(settings: DemoSettings, path: Path | None, console: Console) -> int:
    """Run the demo to its report.

    Args:
        settings: What was asked for.
        path: A root, an old run's directory, or None for a fresh root.
        console: Where to print.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.

    Raises:
        ArtError: It failed.
    """
    require_libraries()
    progress, place = Progress(console), find_place(path)
    resume = f"to go on: art demo --path {shlex.quote(str(place.path))}"
    try:
        result = asyncio.run(run_demo(settings, place, progress))
    except (ConfigError, PluginError):
        if path is None and not any(place.root.iterdir()):
            place.root.rmdir()  # made a moment ago for a run that could not begin
        raise
    except KeyboardInterrupt:
        progress.say("interrupted; engine and trainer are stopped, and every committed step is kept")
        progress.say(resume)
        return INTERRUPTED
    except RunError:
        progress.say(f"every committed step is kept; {resume}")
        raise
    report = write_report(place, result, read_history(place))
    progress.say(finding(result.before, result.after))
    progress.say(f"served: {result.served}")
    progress.say(f"report: {report}")
    progress.say(resume)
    return 0
