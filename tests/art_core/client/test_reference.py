"""The client's page of the reference names what there is."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import art
from art.local import LocalBackend
from art_core.client.fork import ForkArgs
from art_core.client.group import BatchArgs, GroupArgs
from art_core.client.log import SECTIONS
from art_core.local import LocalBackendArgs

PAGE = (Path(__file__).resolve().parents[3] / "docs/reference/client.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"\w+", PAGE))
OBVIOUS = {"Backend", "History", "LoRAConfig", "LocalTrainResult", "Messages", "MessagesAndChoices", "Tools"} | {
    "TrainConfig",
    "TrainResult",
    "TrainSFTConfig",
}
"""Types that a user meets as arguments and results of what is on the page."""


def test_every_name_of_art_is_on_the_page() -> None:
    assert set(art.__all__) - OBVIOUS - WORDS == set()


def test_every_keyword_that_differs_is_on_the_page() -> None:
    known = {"enable_expert_replay", "verbose", "prefix", "from_s3_bucket"}  # accepted and not used, or refused
    keywords = {*LocalBackendArgs.__annotations__, *ForkArgs.__annotations__, *GroupArgs.__annotations__} - known
    assert keywords - WORDS == set()
    assert "batch_size" in BatchArgs.__annotations__ and "batch_size" in WORDS


def test_the_sections_are_listed_exactly() -> None:
    listed = re.search(r"if it has one of\s+`([a-z_ \n]+)`", PAGE)
    assert listed is not None
    assert set(listed[1].split()) == SECTIONS


REFERENCE = re.findall(
    r"\w+",
    """
    dev current_trajectory no_capture gather_trajectories gather_trajectory_groups trajectory_group_batches Backend
    LocalTrainResult LoRAConfig LocalServingUnavailableError MegatronRuntimeConfig MegatronTopologyConfig
    MetricDefinition PipelineAutotuneConfig PipelineRuntimeConfig PIPELINE_RL_DASHBOARD_DEFAULT_METRICS
    PIPELINE_RL_METRIC_DEFINITIONS PIPELINE_RL_SCORE_METRICS get_megatron_runtime_config get_tokenizer
    init_megatron_runtime_config ServerlessBackend ServerlessTrainResult Messages MessagesAndChoices Tools Model
    TrainableModel retry TrainSFTConfig TrainConfig TrainResult Trajectory TrajectoryGroup tokenize tensorize trajectory
    trajectory_group capture_yielded_trajectory yield_trajectory
    """,
)
"""What `openpipe-art` 0.5.23 exports at its top level."""

OWNERS = {
    "model": art.TrainableModel,
    "trajectory": art.Trajectory,
    "group": art.TrajectoryGroup,
    "backend": LocalBackend,
}


def rows() -> Iterator[tuple[str, str]]:
    """Every name of the table, with what is said of it."""
    table = PAGE[PAGE.index("## Every name") :]
    for names, said in re.findall(r"^\| (`.+`) \| (.+?) \|$", table, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", names):
            yield name, said.partition(":")[0]


def exists(name: str) -> bool:
    owner, _, rest = name.partition(".")
    if owner in OWNERS:
        return rest in OWNERS[owner].__dict__ or hasattr(OWNERS[owner], rest) or rest in fields(OWNERS[owner])
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute) or bool(importlib.import_module(name))
    except ModuleNotFoundError:
        return False


def fields(owner: type) -> set[str]:
    return set(getattr(owner, "model_fields", {}))


@pytest.mark.parametrize(("name", "said"), list(rows()))
def test_every_name_of_the_table_is_what_it_says(name: str, said: str) -> None:
    assert said in ("yes", "not yet", "no")
    assert exists(name) == (said == "yes")


def test_the_table_has_every_name_of_the_reference_and_of_ours() -> None:
    listed = [name for name, _ in rows()]
    assert len(listed) == len(set(listed))
    assert {f"art.{name}" for name in REFERENCE} - set(listed) == set()
    assert {f"art.{name}" for name in art.__all__} - set(listed) == {"art.History"}, "our own alone"
