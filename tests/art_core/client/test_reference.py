"""The client's page of the reference names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import art
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
