"""What a part declares, and what happens to what it does not."""

from __future__ import annotations

import pytest

from art_core.capability import FULL, UNSUPPORTED, Capabilities, Capability, Degree, since
from art_core.errors import CapabilityError


def test_what_is_declared_is_there_in_any_degree() -> None:
    capabilities = Capabilities({Capability.SCORE: FULL, Capability.SLEEP: since("0.32")})
    assert Capability.SCORE in capabilities
    assert Capability.SLEEP in capabilities
    capabilities.require(Capability.SLEEP, "engine 'mine'")


def test_what_is_not_named_and_what_is_denied_are_both_absent() -> None:
    capabilities = Capabilities({Capability.SLEEP: UNSUPPORTED})
    assert Capability.SLEEP not in capabilities
    assert Capability.OFFLOAD not in capabilities


def test_a_version_belongs_to_its_degree() -> None:
    assert since("0.32").degree is Degree.SINCE
    assert since("0.32").version == "0.32"
    assert FULL.version is None


def test_a_refusal_names_the_part_the_wish_and_what_is_declared_instead() -> None:
    capabilities = Capabilities(
        {Capability.SCORE: FULL, Capability.SLEEP: UNSUPPORTED, Capability.OPTIMIZER_STATE: FULL}
    )
    with pytest.raises(CapabilityError) as raised:
        capabilities.require(Capability.SLEEP, "engine 'mine'")
    assert str(raised.value) == ("engine 'mine' does not declare capability 'sleep'; declared: optimizer_state, score")


def test_a_part_without_any_capability_says_so() -> None:
    with pytest.raises(CapabilityError, match="declared: none"):
        Capabilities().require(Capability.SCORE, "engine 'mine'")


def test_a_declaration_is_final() -> None:
    given = {Capability.SCORE: FULL}
    capabilities = Capabilities(given)
    given[Capability.SLEEP] = FULL
    assert Capability.SLEEP not in capabilities
    with pytest.raises(TypeError):
        capabilities.declared[Capability.SLEEP] = FULL  # type: ignore[index]
