"""The kit on parts that break a promise or a few: exactly the tests of those promises fail, and say so."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.architecture.source import ROOT

BROKEN = ROOT / "tests" / "kit" / "broken"
DAMAGED = "broken promise: fetch verifies every byte"
STALE = "broken promise: a publish that raises leaves nothing of the step loaded"
FAILING: Mapping[str, Mapping[str, str]] = {
    "engine": {
        "test_a_name_in_use_is_refused_and_nothing_changes": (
            "broken promise: load_adapter refuses 'taken@1', a name in use; it raises EngineError; seen: no error"
        )
    },
    "trainer": {
        "test_a_batch_without_advantage_changes_nothing": (
            "broken promise: a step with nothing to learn leaves adapter and optimizer bit for bit"
        )
    },
    "handover": {
        "test_after_onload_everything_is_as_before": (
            "broken promise: a step after offload and onload is bit for bit as without"
        ),
        "test_handing_over_twice_is_as_once": "broken promise: calls made twice leave the state bit for bit",
        "test_an_offloaded_trainer_saves_and_refuses_steps": (
            "broken promise: a step refused while offloaded leaves weights and optimizer"
        ),
    },
    "store": {
        "test_damage_is_never_given_out[changed]": DAMAGED,
        "test_files_of_two_steps_swapped_are_never_given_out": DAMAGED,
        "test_names_that_are_nearly_the_same_are_different_runs": (
            "broken promise: a run is no other one whose name is nearly the same"
        ),
        "test_a_retry_that_measured_something_else_returns_what_stands": "art_core.errors.CommitConflictError",
        "test_a_killed_delete_leaves_whole_checkpoints_or_none": (
            "broken promise: what a killed delete leaves is listed whole or not at all"
        ),
        "test_sweep_removes_what_is_left_over_and_nothing_else": "broken promise: after a sweep the same is listed",
    },
    "deployment": {
        "test_another_checkpoint_at_the_same_address_is_refused": (
            "broken promise: publish refuses another checkpoint at an address that is taken; it raises PublishError; "
            "seen: no error"
        ),
    },
    "publisher": {
        "test_stale_weights_are_refused_by_the_weight_proof": STALE,
        "test_stale_weights_are_never_proved_by_their_answers": STALE,
        "test_a_name_that_stands_for_another_place_is_refused[weight_proof]": STALE,
        "test_a_name_that_stands_for_another_place_is_refused[score only]": STALE,
        "test_a_name_that_stands_for_another_place_is_refused[nothing]": STALE,
    },
}
"""Broken part to the tests that must fail, and how their messages begin."""


@dataclass(frozen=True)
class Report:
    """What a run of the kit found."""

    failed: Mapping[str, str]
    """Test to message."""
    errors: int
    passed: int


async def run_kit(kind: str, base_model: Path, report: Path) -> Report:
    """Run pytest on one broken part in a process of its own, without any setting, as in somebody else's project."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={ROOT}", f"--junitxml={report}"]
    process = await asyncio.create_subprocess_exec(
        *command,
        *("-p", "no:cacheprovider"),
        str(BROKEN / f"{kind}.py"),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "KIT_BASE_MODEL": str(base_model)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 1, output.decode()
    suite = ElementTree.parse(report).getroot()[0]
    failed, cases = {}, list(suite.iter("testcase"))
    for case in cases:
        failure = case.find("failure")
        if failure is not None:
            failed[case.attrib["name"]] = failure.attrib["message"].removeprefix("Failed: ")
    errors = len(list(suite.iter("error")))
    return Report(failed, errors, len(cases) - len(failed) - errors - len(list(suite.iter("skipped"))))


@pytest.mark.parametrize(
    "kind",
    [
        "store",
        "publisher",
        "deployment",
        pytest.param("engine", marks=pytest.mark.heavy),
        pytest.param("trainer", marks=pytest.mark.heavy),
        pytest.param("handover", marks=pytest.mark.heavy),
    ],
)
async def test_the_broken_promise_is_named_and_no_other(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    report, expected = await run_kit(kind, tiny_model, tmp_path / "report.xml"), FAILING[kind]
    assert report.failed.keys() == expected.keys()
    for test, message in expected.items():
        assert report.failed[test].startswith(message)
    assert report.errors == 0 and report.passed >= 10
