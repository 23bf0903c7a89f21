"""The engine's process: SGLang's engine with ART's routes in front.

Run as ``python -m art_sglang.serve.server <socket fd> <settings fd> <scratch directory>`` by `art_sglang.engine`, which
bound the socket. SGLang's own processes import this module again, so it does nothing when it is merely imported.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import uvicorn
from packaging.specifiers import SpecifierSet
from pydantic import TypeAdapter

from art_core.adapter_file import adaptable_modules
from art_core.base_model import ModelInfo, local_directory
from art_core.engine_front import application
from art_core.errors import ArtError, ConfigError, EngineStartError, to_wire
from art_core.process import announce, attach_owner
from art_sglang.library import ENVIRONMENT

_log = logging.getLogger("art.engine")
_INFO = TypeAdapter(ModelInfo)


@dataclass(frozen=True)
class Settings:
    """What the owner asks for."""

    arguments: dict[str, Any]
    """SGLang's."""
    api_key: str
    base_model: str
    base_name: str
    lora_rank: int
    max_loras: int
    chat_template: str | None
    chat_template_kwargs: dict[str, Any]


def main() -> None:
    """Serve until the owner stops or ends."""
    scratch, socket_fd, settings_fd = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    attach_owner(private=scratch)
    with os.fdopen(settings_fd, "rb") as file:
        settings = Settings(**json.load(file))
    try:
        require_library(str(settings.arguments["device"]))
        app = start(settings, scratch)
    except ArtError as error:
        announce({"error": to_wire(error)})
        raise SystemExit(1) from error
    end_with_children()
    config = uvicorn.Config(
        app,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=75,  # Above the gateway's idle limit, so that none is closed under a request being sent.
    )
    with socket.socket(fileno=socket_fd) as listener:
        uvicorn.Server(config).run(sockets=[listener])


def require_library(device: str) -> None:
    """Refuse an interpreter that holds another SGLang, or can't run it, before it is imported.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        ConfigError: Says what to do about it.
    """
    fits = ENVIRONMENT.library["sglang"]
    try:
        found = version("sglang")
    except PackageNotFoundError as error:
        raise ConfigError(f"{sys.executable} holds no SGLang; try: art env create sglang") from error
    if not SpecifierSet(fits).contains(found):
        raise ConfigError(f"{sys.executable} holds SGLang {found}; needed: {fits}; try: art env create sglang")
    if device == "cpu" and find_spec("sgl_kernel") is None:
        raise ConfigError(
            f"SGLang {found} can't be imported on a CPU: its packages hold no CPU kernels (no module 'sgl_kernel'). "
            "It runs with stand-ins for what it never calls there: see 'On a CPU' in the README of art-sglang; or "
            "choose another engine"
        )


def start(settings: Settings, scratch: Path) -> Any:
    """Start SGLang's processes, and make the application that announces itself once it serves.

    Raises:
        ConfigError: The base model can't be found, or SGLang knows no such argument.
        EngineStartError: SGLang does not come up.
    """
    base = locate(settings.base_model)
    sites = adaptable_modules(base)
    try:
        from art_sglang.serve.front import SglangFront
        from art_sglang.serve.runtime import Runtime
        from art_sglang.serve.serving import Serving, ServingConfig

        runtime = Runtime.start(settings.arguments, sites, settings.chat_template, scratch)
    except ArtError:
        raise
    except Exception as error:
        _log.exception("SGLang does not come up")
        raise EngineStartError(f"SGLang does not come up: {type(error).__name__}: {error}", stage="start") from error
    info = runtime.info(settings.base_model, base)
    config = ServingConfig(
        base_name=settings.base_name,
        sites=sites,
        lora_rank=settings.lora_rank,
        max_loras=settings.max_loras,
        vocab_size=info.vocab_size,
        context_tokens=info.context_tokens,
        scratch=scratch,
    )

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        await runtime.warm_up()
        # SGLang's way to end is to wait for its requests; whoever sends SIGTERM has decided otherwise
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        announce({"model": _INFO.dump_python(info, mode="json")})
        yield

    return application(SglangFront(Serving(runtime, config), settings.chat_template_kwargs), settings.api_key, lifespan)


def locate(base_model: str) -> Path:
    """The local directory of a model, downloaded first where it is a hub name.

    Raises:
        ConfigError: It is neither a local directory nor a reachable hub name.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    path = local_directory(base_model)
    if path is not None:
        return path
    try:
        return Path(snapshot_download(base_model, ignore_patterns=["original/*", "*.bin", "*.pth"]))
    except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"base model {base_model!r} is neither a local directory nor a hub name that can be reached; give a "
            f"local directory in Hugging Face layout, or a hub name that is cached or online ({reason})"
        ) from error


def end_with_children() -> None:
    """From now on this whole process group ends as soon as one of SGLang's processes does.

    SGLang looks once a second, and answers its clients in the meantime.
    """
    children = multiprocessing.active_children()

    def watch() -> None:
        wait([child.sentinel for child in children])
        ended = [f"{child.name} ({child.pid}): {child.exitcode}" for child in children if not child.is_alive()]
        _log.error("a process of SGLang has ended, and all of it ends; name, id and exit code: %s", ", ".join(ended))
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="art-children").start()


if __name__ == "__main__":
    main()
