from __future__ import annotations

import html.parser
import re
from pathlib import Path
from typing import Any

import pytest

from art_core.base_model import BaseIdentity
from art_core.checkpoint import MANIFEST, Manifest
from art_core.demo.evaluation import Answers, Evaluation
from art_core.demo.place import Place
from art_core.demo.report import finding, write_report
from art_core.demo.run import DemoResult
from art_core.demo.task import HELD_OUT
from tests.staged import FILES


def evaluation(sampled: float, greedy: float, model: str = "json-facts@0", text: str = "{}") -> Evaluation:
    rows = (Answers(fact.sentence, (text,) * 8, (sampled,) * 8, text, greedy) for fact in HELD_OUT)
    return Evaluation(model, tuple(rows))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            (0.18, 0.84),
            (0.96, 1.0),
            r"0\.18 to 0\.96.*0\.84 to 1\.00\. Greedy answers started high.*about 85%.*sharpening",
        ),
        ((0.10, 0.15), (0.90, 0.95), r"did not start far above.*sampled and greedy answers both rose"),
        ((0.10, 0.40), (0.90, 0.40), r"only sampled answers rose"),
        ((0.50, 0.80), (0.51, 0.80), r"no rise worth the name"),
        ((0.50, 0.80), (0.20, 0.30), r"no rise worth the name"),
    ],
)
def test_the_finding_claims_what_the_figures_show(
    before: tuple[float, float], after: tuple[float, float], expected: str
) -> None:
    assert re.search(expected, finding(evaluation(*before), evaluation(*after)))


def test_an_evaluation_survives_the_runs_state() -> None:
    original = evaluation(0.25, 0.5)
    assert Evaluation.from_json(original.to_json()) == original
    assert (original.sampled, original.greedy) == (0.25, 0.5)


class Page(html.parser.HTMLParser):
    """What a browser would load or run, and the text it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        loading = {"src", "href", "xlink:href", "data", "action", "srcset"}
        self.loads += [value or "" for name, value in attrs if name in loading or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += f" {data} "


@pytest.fixture
def page(tmp_path: Path) -> Page:
    history: list[dict[str, Any]] = [
        {
            "step": step,
            "train/reward": step / 10,
            "time/step_generate_s": 7.5,
            "time/step_train_s": 6.25,
            "throughput/generated_tokens_per_s": 70.0,
            "publish/proved": float(step != 2),
            "publish/beta": 0.5,
        }
        for step in (1, 2, 3)
    ]
    identity = BaseIdentity(name="pypi:some", digest="0" * 64)
    manifest = Manifest(run="r", step=3, base_model=identity, files=FILES, versions={"trainerlib": "9.8.7"})
    place = Place(tmp_path)
    checkpoint = place.directory / "checkpoints" / "0003"
    checkpoint.mkdir(parents=True)
    (checkpoint / MANIFEST).write_text(manifest.model_dump_json())
    evil = '<script src="https://example.org/x.js">alert(1)</script>'
    result = DemoResult("json-facts@3", evaluation(0.1, 0.8, text=evil), evaluation(1.0, 1.0, "json-facts@3"), 5)
    path = write_report(place, result, history)
    assert path == place.directory / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_report_loads_and_runs_nothing(page: Page) -> None:
    assert page.loads == []
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert not re.search(r"@import|url\(", page.text)


def test_the_report_shows_the_whole_run(page: Page) -> None:
    assert page.tags.count("svg") >= 3
    for shown in ("json-facts@3", "0.100", "0.300", "proved, β 0.50", "unproved, β 0.50", "7.50", "6.25"):
        assert shown in page.text, shown
    for shown in ("alert(1)", "Maria turned 31 in May.", "trainerlib", "9.8.7", "pypi:some", "5 (prompts, requests"):
        assert shown in page.text, shown
    for stage in ("generate", "train"):
        assert re.search(rf"\b{stage}\b", page.text)
