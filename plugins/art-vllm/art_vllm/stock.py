"""What a server must be like that somebody else runs, found out by asking it; every refusal says how to start it.

A stock server differs from ours in defaults that nothing shows: it may report logprobs of another distribution than it
sampled, cut the distribution by the model's `generation_config.json`, or take no adapters at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art_core.adapter_file import adaptable_modules
from art_core.config import Timeouts
from art_core.engine_server import EngineServer
from art_core.environment.spec import misfit
from art_core.errors import ConfigError, EngineError, EngineStartError, nearest
from art_core.protocols.engine import EngineSpec
from art_vllm.argument import EXTENSION
from art_vllm.failures import refusal
from art_vllm.options import VllmOptions
from art_vllm.requirement import ENVIRONMENT

NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sampling as the model's distribution is."""

_SILENT = {"temperature": 1.0, "top_p": 1.0}
"""What a rollout's request always says; the rest is the server's choice."""
_HOT = {**NEUTRAL, "temperature": 2.0}
_CLOSE = 0.05
"""Nats by which two answers of one distribution may differ: other requests in the same pass change the last bits."""


@dataclass(frozen=True)
class Served:
    """The base model as the server lists it."""

    context_tokens: int
    root: Path
    """The model's directory as the server calls it, or its hub name."""


async def healthy(server: EngineServer, timeout_s: float, timeouts: Timeouts) -> None:
    """Wait until the server answers.

    Raises:
        EngineStartError: It did not in time.
    """
    last = ""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    response = await server.ask("GET", "/health", None, timeouts.connect_s)
                    if response.status_code == 200:
                        return
                    last = f"status {response.status_code}"
                except EngineError as error:
                    last = str(error)
                await asyncio.sleep(timeouts.health_s)
    except TimeoutError as error:
        raise EngineStartError(
            f"the vLLM server at {server.base_url} was not healthy within {timeout_s:g} s: {last}; start it, or "
            f"correct vllm_runtime['server_url']",
            stage="start",
        ) from error


async def inspect(server: EngineServer, options: VllmOptions, spec: EngineSpec, timeouts: Timeouts) -> Served:
    """Refuse a server that can't serve what is asked for.

    Args:
        server: It, healthy.
        options: `runtime` and `max_loras` are used.
        spec: What it is to serve.
        timeouts: For its answers.

    Raises:
        ConfigError: It names what is wrong and the flag or variable to start the server with.
    """
    served = await _base(server, spec.base_name, timeouts)
    if (await server.ask("GET", "/v1/load_lora_adapter", None, timeouts.connect_s)).status_code == 404:
        raise _wrong(
            server,
            "has no route to load adapters with",
            "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment",
        )
    await _require_sampling(server, spec.base_name, timeouts)
    info = await server.ask("GET", "/server_info?config_format=json", None, timeouts.load_adapter_s)
    config: dict[str, Any] = info.json()["vllm_config"] if info.is_success else {}
    if config:
        _require_adapters(server, config["lora_config"], options, spec)
    if options.runtime.worker_extension:
        await _require_extension(server, config, timeouts)
    return served


async def require_vocabulary(server: EngineServer, name: str, size: int, timeouts: Timeouts) -> None:
    """Refuse a base model with fewer tokens than ours.

    Args:
        server: It.
        name: The base model's.
        size: Of our vocabulary.
        timeouts: For its answer.

    Raises:
        ConfigError: The last of our tokens is none of its.
    """
    request = {"model": name, "prompt": [size - 1], "max_tokens": 1}
    response = await server.ask("POST", "/v1/completions", request, timeouts.score_s)
    if response.status_code == 400 and "out of vocabulary" in response.text:
        raise _wrong(
            server,
            f"serves another base model under the name {name!r}: it has no token {size - 1}",
            "start it with the base model that is trained here",
        )


async def _base(server: EngineServer, name: str, timeouts: Timeouts) -> Served:
    response = await server.ask("GET", "/v1/models", None, timeouts.connect_s)
    if response.status_code in (401, 403):
        raise _wrong(server, "asks for another key", "correct vllm_runtime['api_key']")
    try:
        cards = {card["id"]: card for card in response.json()["data"] if not card["parent"]}
        served = {each: Served(card["max_model_len"], Path(card["root"])) for each, card in cards.items()}
    except (ValueError, KeyError, TypeError) as error:
        what = f"does not list its models as vLLM does: {response.text[:200]!r} (status {response.status_code})"
        raise _wrong(server, what, "correct vllm_runtime['server_url']") from error
    if name not in served:
        what = f"does not serve {name!r}, {nearest(name, served)}"
        raise _wrong(server, what, f"start it with --served-model-name {name}")
    return served[name]


async def _require_sampling(server: EngineServer, name: str, timeouts: Timeouts) -> None:
    """What it says of one prompt's next token: as the model has it, hotter, and as a rollout asks for it."""
    own, hot, silent = [await _next(server, name, each, timeouts) for each in (NEUTRAL, _HOT, _SILENT)]
    if _alike(own, hot):
        raise _wrong(
            server,
            "gives the same logprobs at every temperature, and training needs those of the distribution that was "
            "sampled",
            "start it with --logprobs-mode processed_logprobs",
        )
    if not _alike(own, silent):
        raise _wrong(
            server,
            "samples otherwise than requests ask for, as the model's generation_config.json has it",
            "start it with --generation-config vllm",
        )


async def _next(server: EngineServer, name: str, sampling: Mapping[str, float], timeouts: Timeouts) -> dict[str, float]:
    request = {"model": name, "prompt": [0], "max_tokens": 1, "logprobs": 20, "return_tokens_as_token_ids": True}
    response = await server.ask("POST", "/v1/completions", {**request, **sampling}, timeouts.score_s)
    if response.is_error:
        raise refusal(response, "generate a token with 20 logprobs")
    found: dict[str, float] = response.json()["choices"][0]["logprobs"]["top_logprobs"][0]
    return found


def _alike(left: Mapping[str, float], right: Mapping[str, float]) -> bool:
    return all(abs(left[token] - right[token]) < _CLOSE for token in left.keys() & right.keys())


def _require_adapters(
    server: EngineServer, lora: Mapping[str, Any] | None, options: VllmOptions, spec: EngineSpec
) -> None:
    """Only a server in development mode shows this; of others the first load says most of it."""
    if lora is None:
        raise _wrong(server, "takes no adapters", "start it with --enable-lora")
    for value, needed, flag in (
        (lora["max_lora_rank"], spec.lora_rank, "--max-lora-rank"),
        (lora["max_loras"], options.max_loras, "--max-loras"),
    ):
        if value < needed:
            raise _wrong(server, f"runs with {flag} {value}; {needed} is needed", f"start it with {flag} {needed}")
    modules = lora["target_modules"]
    if options.runtime.score and (modules is None or "lm_head" in modules):
        names = {name.rpartition(".")[2] for name in adaptable_modules(Path(spec.base_model))}
        raise _wrong(
            server,
            "has a head that takes adapters, and would end when it scores beside other requests",
            f"start it with --lora-target-modules {' '.join(sorted(names))}, or leave score out",
        )


async def _require_extension(server: EngineServer, config: Mapping[str, Any], timeouts: Timeouts) -> None:
    """Look before it is called: a method that the worker lacks would end somebody's server."""
    version = (await server.ask("GET", "/version", None, timeouts.connect_s)).json()["version"]
    if reason := misfit(ENVIRONMENT, {"vllm": version}):
        raise _wrong(server, f"is of a version whose slots can't be read: {reason}", "leave worker_extension out")
    if not config or config["parallel_config"]["worker_extension_cls"] != EXTENSION:
        raise _wrong(
            server,
            "does not show our worker extension",
            f"start it with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls {EXTENSION}, or leave worker_extension "
            f"out",
        )


def _wrong(server: EngineServer, what: str, step: str) -> ConfigError:
    return ConfigError(f"the vLLM server at {server.base_url} {what}; {step}")
