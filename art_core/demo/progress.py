"""What `art demo` says while it runs: one line a step, on a terminal and in a log file alike."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from art_core.demo.evaluation import Evaluation

STAGES = ("generate", "batch", "train", "save", "manifest", "commit", "publish", "settle", "flip", "behaviour")
"""The spans of one step, in the order in which they pass."""
_SHOWN_S = 0.05
"""A stage shorter than this is left out of the line; the report has them all."""


class Progress:
    """Prints plain lines; colour only where the output is a terminal.

    Args:
        console: Where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str, style: str = "") -> None:
        """One line, as it is: no markup, no wrapping."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def evaluated(self, when: str, evaluation: Evaluation) -> None:
        """The line about held-out prompts.

        Args:
            when: For example ``"before training"``.
            evaluation: What was answered.
        """
        self.say(
            f"held out, {when}: reward {evaluation.sampled:.2f} sampled, {evaluation.greedy:.2f} greedy "
            f"(answered by {evaluation.model})"
        )

    def step(self, served: str, metrics: Mapping[str, float]) -> None:
        """The line of one step.

        Args:
            served: The name that answers from now on, ``<model>@<step>``.
            metrics: The step's metrics.
        """
        reward = metrics["train/reward"]
        stages = {stage: metrics.get(f"time/step_{stage}_s", 0.0) for stage in STAGES}
        times = " ".join(f"{stage} {seconds:.1f}s" for stage, seconds in stages.items() if seconds >= _SHOWN_S)
        line = Text(f"reward {reward:.2f} ")
        line.append("█" * round(20 * reward) + "·" * (20 - round(20 * reward)), style="green")
        line.append(f"  served {served} ")
        line.append(proof(metrics), style="green" if metrics.get("publish/proved") else "yellow")
        line.append(f"  {sum(stages.values()):.1f}s: {times}", style="dim")
        self._console.print(line, soft_wrap=True)


def proof(metrics: Mapping[str, float]) -> str:
    """In words, how far it was shown that the served weights are the trained ones."""
    word = "proved" if metrics.get("publish/proved") else "unproved"
    beta = metrics.get("publish/beta")
    return word if beta is None else f"{word}, β {beta:.2f}"
