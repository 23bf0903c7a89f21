"""Entry point of the W&B store, publisher and observer. Light: the SDK is imported in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

from art_core.hookspecs import hookimpl
from art_core.part import StorePart, missing_modules
from art_wandb.options import WandbStoreOptions
from art_wandb.store import WandbStore


@hookimpl
def art_register_stores(register: Callable[[StorePart], None]) -> None:
    """Register the W&B store. W&B can't create-if-absent, so it declares nothing."""
    register(StorePart(name="wandb", options=WandbStoreOptions, usable=_usable, create=WandbStore))


def _usable() -> str | None:
    return missing_modules("wandb", fix="pip install art-wandb")
