"""A server of our own: its process, and what it says once it serves."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

from art_core.config import Environment, Timeouts
from art_core.engine_server import EngineServer, launch_server
from art_core.errors import EngineStartError, EngineUnavailableError
from art_core.process import Child, ProcessError
from art_core.protocols.engine import EngineSpec
from art_vllm.argument import server_arguments, server_variables
from art_vllm.failures import refusal, start_cause
from art_vllm.options import VllmOptions
from art_vllm.preflight import plan

_log = logging.getLogger("art.engine")
_PROGRESS_S = 10.0
_LOG_LINES = 4000
_PREFIX = re.compile(r"^(\(\w+ pid=\d+\) )?([A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d )?(\[[\w.]+:\d+\] )?")


@dataclass(frozen=True)
class Launched:
    """A server of ours that answers."""

    server: EngineServer
    api_key: str
    hello: dict[str, Any]
    """What `art_vllm.door` announced."""


async def launch(options: VllmOptions, spec: EngineSpec, timeouts: Timeouts) -> Launched:
    """Start vLLM's server and have it generate a token.

    Args:
        options: How it runs.
        spec: What it serves.
        timeouts: `engine_start_s` and those of `EngineServer` are used.

    Raises:
        ConfigError: It can't work here; nothing was launched.
        EngineStartError: It did not come up; the message names the cause where the log does.
    """
    planned = await asyncio.to_thread(plan, options, spec, Environment.read())
    api_key = secrets.token_urlsafe(32)
    settings = {
        "base_model": spec.base_model,
        "api_key": api_key,
        "argv": server_arguments(options, spec, cuda=planned.cuda),
        "variables": server_variables(options, spec, planned.visible, cuda=planned.cuda),
    }
    command = [planned.python, "-P", "-m", "art_vllm.server"]
    child, base_url = await launch_server("vllm", command, settings, spec.log_path, {})
    server = EngineServer("vllm", base_url, {"Authorization": f"Bearer {api_key}"}, child, timeouts)
    try:
        hello = await _ready(child, timeouts.engine_start_s)
        await _generate(server, spec.base_name, timeouts.engine_start_s)
    except BaseException as error:
        await child.stop(0)
        if isinstance(error, ProcessError | EngineUnavailableError):
            cause = start_cause(child.log_tail(_LOG_LINES)) or "see its log"
            raise EngineStartError(f"engine 'vllm' did not start: {cause}. {error}", stage="start") from error
        raise
    return Launched(server, api_key, hello)


async def _ready(child: Child, timeout_s: float) -> dict[str, Any]:
    """Wait for the server, and say now and then how far it is: it takes a minute, or several."""
    ready, start = asyncio.ensure_future(child.ready(timeout_s)), time.monotonic()
    try:
        while not (await asyncio.wait({ready}, timeout=_PROGRESS_S))[0]:
            _log.info("vLLM is starting, %.0f s so far%s", time.monotonic() - start, said(child.log_tail(1)))
        _log.info("vLLM serves after %.0f s", time.monotonic() - start)
        return ready.result()
    finally:
        ready.cancel()


def said(line: str) -> str:
    """A line of vLLM's log, as the end of ours: without process, time and place; nothing where it says nothing."""
    text = _PREFIX.sub("", line).strip()
    return f": {text}" if text else ""


async def _generate(server: EngineServer, name: str, timeout_s: float) -> None:
    """Have one token generated: some models load, and end the engine at their first request."""
    request = {"model": name, "prompt": [0], "max_tokens": 1, "logprobs": 1}
    response = await server.ask("POST", "/v1/completions", request, timeout_s)
    if response.is_error:
        raise EngineUnavailableError(str(refusal(response, "generate its first token")))
