"""Interpreters of their own for parts whose libraries pin what others pin differently.

A plugin ships pinned sets and says what its library is (`EnvironmentSpec`, as `Part.environment`). `art env create`
builds a virtual environment from one, once; `interpreter` says where the library runs, and `missing` why it can't.
"""

from art_core.environment.build import create
from art_core.environment.choice import interpreter, locate, missing
from art_core.environment.inventory import EnvironmentState, check, list_environments, remove
from art_core.environment.spec import EnvironmentSpec

__all__ = [
    "EnvironmentSpec",
    "EnvironmentState",
    "check",
    "create",
    "interpreter",
    "list_environments",
    "locate",
    "missing",
    "remove",
]
