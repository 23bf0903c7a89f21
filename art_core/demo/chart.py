"""The report's plots, as SVG without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from art_core.demo.progress import STAGES

_SERIES = ("#2f7ed8", "#f28e2b", "#3aa655", "#b07aa1", "#d9a400", "#e15759", "#17a2b8", "#9c755f", "#7f8c8d")
"""Readable on white and on near-black."""


def rewards_chart(history: Sequence[Mapping[str, Any]]) -> str:
    """Mean reward by step; ``history`` is one record of metrics per training step."""
    import pygal

    chart = pygal.Line(
        **_options(),
        range=(0, 1.05),
        y_labels=[0, 0.25, 0.5, 0.75, 1],
        print_values=True,
        show_legend=False,
        dots_size=4,
    )
    chart.value_formatter = lambda value: f"{value:.2f}"
    chart.add("mean reward", _column(history, "train/reward"))
    return _svg(chart, history)


def stages_chart(history: Sequence[Mapping[str, Any]]) -> str:
    """Seconds by stage, stacked; stages that never took a hundredth of a second are left out."""
    import pygal

    chart = pygal.StackedBar(**_options(), legend_at_bottom=False, truncate_legend=-1)
    chart.value_formatter = lambda value: f"{value:g}"
    for stage in STAGES:
        seconds = _column(history, f"time/step_{stage}_s")
        if max(seconds) >= 0.01:
            chart.add(stage, seconds)
    return _svg(chart, history)


def speed_chart(history: Sequence[Mapping[str, Any]]) -> str:
    """Generated tokens per second, over all rollouts of a step together."""
    import pygal

    chart = pygal.Bar(**_options(), print_values=True, show_legend=False)
    chart.value_formatter = lambda value: f"{value:.0f}"
    chart.add("tokens/s", _column(history, "throughput/generated_tokens_per_s"))
    return _svg(chart, history)


def _column(history: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [record.get(key, 0.0) for record in history]


def _options() -> dict[str, Any]:
    return {
        "style": _style(),
        "js": [],
        "width": 900,
        "height": 320,
        "margin": 12,
        "margin_right": 44,
        "max_scale": 6,
        "min_scale": 2,
    }


def _style() -> Any:
    """Colours are the page's own, so that the plots follow its light and its dark form."""
    from pygal.style import Style

    text, line = "var(--text)", "var(--line)"
    return Style(
        background="transparent",
        plot_background="transparent",
        foreground=text,
        foreground_strong=text,
        foreground_subtle=line,
        guide_stroke_color=line,
        major_guide_stroke_color=line,
        guide_stroke_dasharray="1,0",
        major_guide_stroke_dasharray="1,0",
        colors=_SERIES,
        value_colors=(text,) * len(_SERIES),
        font_family="system-ui, sans-serif",
        label_font_size=14,
        major_label_font_size=14,
        legend_font_size=14,
        value_font_size=13,
    )


def _svg(chart: Any, history: Sequence[Mapping[str, Any]]) -> str:
    every = 1 + len(history) // 25
    chart.x_labels = [str(r["step"]) if i % every == 0 else "" for i, r in enumerate(history)]
    chart.x_title = "step"
    chart.no_data_text = "no data"
    chart.add_xml_filter(_without_scripts)
    text: str = chart.render(is_unicode=True, disable_xml_declaration=True)
    return text


def _without_scripts(root: Any) -> Any:
    """The plot is read, not run: drop the configuration that pygal writes for its JavaScript."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == "script" or not isinstance(child.tag, str):
                parent.remove(child)
    return root
