"""Keywords of `_experimental_fork_checkpoint`, turned into where the fork comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from art_core.client.keyword import check_keywords
from art_core.client.model import Model
from art_core.errors import CapabilityError, ConfigError
from art_core.fork import ForkSource


class ForkArgs(TypedDict, total=False):
    """Keywords of `_experimental_fork_checkpoint`."""

    from_project: str | None
    """Project of the model that is forked; the new model's own unless given."""
    from_path: str | Path | None
    """Root of all runs that holds it; the backend's own unless given."""
    not_after_step: int | None
    """The newest step up to this one; None: the newest of all."""
    verbose: bool
    """Accepted and ignored: use the loggers named ``art``."""
    from_s3_bucket: None
    """Not implemented."""
    prefix: None
    """Not implemented."""


def fork_source(model: Model[Any], from_model: str, root: Path, options: ForkArgs) -> ForkSource:
    """Where a fork comes from.

    Args:
        model: The new model.
        from_model: Run name of the one that is forked.
        root: The backend's root of all runs.
        options: As given.

    Raises:
        ConfigError: A keyword is unknown, or the step below 0.
        CapabilityError: A keyword is not implemented.
    """
    check_keywords("_experimental_fork_checkpoint", options, ForkArgs.__annotations__, ())
    for key in ("from_s3_bucket", "prefix"):
        if options.get(key) is not None:
            raise CapabilityError(
                f"_experimental_fork_checkpoint({key}={options.get(key)!r}) is not implemented: only directories can "
                f"be forked; leave it out, and give from_path where the run is not below the backend's own path"
            )
    step = options.get("not_after_step")
    if step is not None and step < 0:
        raise ConfigError(f"not_after_step is {step}; allowed: 0 or more")
    return ForkSource(
        Path(options.get("from_path") or root).absolute(),
        options.get("from_project") or model.project,
        from_model,
        step,
    )
