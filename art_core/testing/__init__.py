"""The conformance kit: subclass one class a contract, give its fixtures, run pytest.

    from art_core.testing import EngineConformance

    class TestMine(EngineConformance):
        @pytest.fixture(scope="class")
        @classmethod
        def part(cls): return load_part("engine", "mine")

        @pytest.fixture(scope="class")
        @classmethod
        def base_model(cls): return Path("path/to/a/small/llama")

A test is a promise of the contract: its name and its message say which. What a part declares is tested; what it does
not declare must be refused. The classes know no part by name and excuse none. Needs the extra ``art-core[testing]``.
"""

from art_core.testing.deployment import DeploymentAddresses, DeploymentFailures
from art_core.testing.engine.adapter import EngineAdapters
from art_core.testing.engine.answer import EngineAnswers
from art_core.testing.engine.life import EngineLife
from art_core.testing.engine.proof import EngineProofs
from art_core.testing.publisher import PublisherFailures, PublisherProofs
from art_core.testing.store.bench import DirectoryObjects, Objects, Outage
from art_core.testing.store.commit import StoreCommits
from art_core.testing.store.copy import StoreCopies
from art_core.testing.store.deletion import StoreDeletions
from art_core.testing.store.name import StoreNames
from art_core.testing.store.outage import StoreOutages
from art_core.testing.store.race import StoreRaces
from art_core.testing.trainer.handover import TrainerHandovers
from art_core.testing.trainer.parity import TrainerParity
from art_core.testing.trainer.resume import TrainerResumes
from art_core.testing.trainer.state import TrainerLife, TrainerStates
from art_core.testing.trainer.step import TrainerSteps
from art_core.testing.trainer.supervised import TrainerChats

__all__ = [
    "DeploymentAddresses",
    "DeploymentConformance",
    "DeploymentFailures",
    "DirectoryObjects",
    "EngineAdapters",
    "EngineAnswers",
    "EngineConformance",
    "EngineLife",
    "EngineProofs",
    "Objects",
    "Outage",
    "PublisherConformance",
    "PublisherFailures",
    "PublisherProofs",
    "StoreCommits",
    "StoreConformance",
    "StoreCopies",
    "StoreDeletions",
    "StoreNames",
    "StoreOutages",
    "StoreRaces",
    "TrainerConformance",
    "TrainerHandovers",
    "TrainerLife",
    "TrainerParity",
    "TrainerResumes",
    "TrainerStates",
    "TrainerSteps",
]


class EngineConformance(EngineLife, EngineProofs, EngineAdapters, EngineAnswers):
    """Every promise of `art_core.protocols.engine`. Fixtures: `part`, `base_model`; `options` has a default.

    pytest runs base classes from the last to the first, so the tests that end the engine come last.
    """


class TrainerConformance(
    TrainerLife, TrainerHandovers, TrainerStates, TrainerResumes, TrainerParity, TrainerChats, TrainerSteps
):
    """Every promise of `art_core.protocols.trainer`. Fixtures: `part`, `base_model`; `options` has a default."""


class StoreConformance(StoreOutages, StoreRaces, StoreDeletions, StoreCopies, StoreNames, StoreCommits):
    """Every promise of `art_core.protocols.store`. Fixtures: `part`, `objects`; defaults: `options`, `outage`."""


class PublisherConformance(PublisherFailures, PublisherProofs):
    """Every promise of `art_core.protocols.publisher`. Fixture: `part`; `options` has a default.

    A publisher that serves nothing here has promises of its own: `DeploymentConformance`.
    """


class DeploymentConformance(DeploymentFailures, DeploymentAddresses):
    """Every promise of `art_core.protocols.publisher` for one that serves nothing here.

    Fixtures: `part`, `objects`, `outage`; `options` has a default.
    """
