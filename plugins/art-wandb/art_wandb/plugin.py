"""Entry point of the W&B store, publisher and observer. Light: the SDK is imported in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

from art_core.hookspecs import hookimpl
from art_core.part import PublisherPart, StorePart, missing_modules
from art_core.run import LogRecord
from art_wandb import observer
from art_wandb.options import WandbPublisherOptions, WandbStoreOptions
from art_wandb.publisher import WandbPublisher
from art_wandb.store import WandbStore


@hookimpl
def art_register_stores(register: Callable[[StorePart], None]) -> None:
    """Register the W&B store. W&B can't create-if-absent, so it declares nothing."""
    register(StorePart(name="wandb", options=WandbStoreOptions, usable=_usable, create=WandbStore))


@hookimpl
def art_register_publishers(register: Callable[[PublisherPart], None]) -> None:
    """Register the publisher for W&B Inference; it serves nothing here."""
    register(
        PublisherPart(name="wandb", options=WandbPublisherOptions, usable=_usable, create=WandbPublisher, serves=False)
    )


@hookimpl
def art_on_log(run: str, record: LogRecord) -> None:
    """Tell W&B what `model.log` has written."""
    observer.log(run, record)


@hookimpl
def art_on_close(run: str) -> None:
    """End the run in W&B."""
    observer.close(run)


def _usable() -> str | None:
    return missing_modules("wandb", fix="pip install art-wandb")
