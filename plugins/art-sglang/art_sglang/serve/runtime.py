"""SGLang in this process: its engine, and the few calls that ART makes of it. All that knows SGLang's names is here.

Its own HTTP server is not started: none of its administrative routes exists, and no request can name an adapter but
through the table in front.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self

import msgspec
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion
from sglang.srt.managers.io_struct import (
    GenerateReqInput,
    LoadLoRAAdapterReqInput,
    RpcReqInput,
    UnloadLoRAAdapterReqInput,
    sock_recv,
    sock_send,
)
from sglang.srt.parser.template_manager import TemplateManager
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.common import SUPPORTED_LORA_TARGET_MODULES

from art_core.adapter_file import Site
from art_core.base_model import BaseIdentity, ModelInfo, base_digest
from art_core.errors import ConfigError, EngineError, nearest
from art_sglang.serve.packing import Layout
from art_sglang.serve.scheduler import METHOD, Filled, run_scheduler

TAP = "art.tap"
"""Key of an ASGI scope: a callable that sees what SGLang generates for this request before it is written out."""


class _Engine(Engine):  # type: ignore[misc]
    run_scheduler_process_func = staticmethod(run_scheduler)


class _Explicit:
    """A model's name is a name: nothing in it selects an adapter, `lora_path` alone does."""

    def _resolve_lora_path(self, request_model: str, explicit_lora_path: str | None) -> str | None:
        return explicit_lora_path


class _Chat(_Explicit):
    """And SGLang's own way of writing logprobs, for those that it leaves out of streams."""

    _process_streaming_logprobs: Callable[[dict[str, Any], int, int], Any]

    def openai_logprobs(self, content: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
        written: dict[str, Any] = self._process_streaming_logprobs(content, begin, end).model_dump()
        return written


class Runtime:
    """A started SGLang.

    Args:
        engine: It.
        template: Jinja chat template that replaces the model's own.
        scratch: A directory for files that SGLang wants to read.
    """

    def __init__(self, engine: Any, template: str | None, scratch: Path) -> None:
        self._engine = engine
        self._manager: Any = engine.tokenizer_manager
        self._calls = ThreadPoolExecutor(1, "art-scheduler-call")
        """One thread: the socket to the scheduler is not to be shared, and its answers come in order."""
        self._manager.generate_request = _tapped(self._manager.generate_request)
        templates = _templates(engine, template, scratch)
        kind: Any = self._manager.serving_chat_class
        self.chat: Any = type("Chat", (_Chat, kind), {})(self._manager, templates)
        self.text: Any = type("Text", (_Explicit, OpenAIServingCompletion), {})(self._manager, templates)

    @classmethod
    def start(cls, arguments: dict[str, Any], sites: dict[str, Site], template: str | None, scratch: Path) -> Self:
        """Start SGLang's processes and wait until the model is loaded.

        Args:
            arguments: SGLang's.
            sites: The base model's adaptable modules.
            template: Jinja chat template that replaces the model's own.
            scratch: A directory for files that SGLang wants to read.

        Raises:
            ConfigError: This version of SGLang knows no such argument.
        """
        known = [field.name for field in msgspec.structs.fields(ServerArgs)]
        for name in arguments:
            if name not in known:
                raise ConfigError(f"this version of SGLang has no argument {name!r}; {nearest(name, known)}")
        kinds = {name.rpartition(".")[2] for name in sites}
        targets = sorted(kinds & set(SUPPORTED_LORA_TARGET_MODULES))
        return cls(_Engine(server_args=ServerArgs(**arguments, lora_target_modules=targets)), template, scratch)

    @property
    def layout(self) -> Layout:
        """How the base model, and with it every slot, is spread."""
        config = self._manager.model_config
        return Layout(config.dtype, self._engine.server_args.tp_size, config.get_total_num_kv_heads())

    def info(self, name: str, directory: Path) -> ModelInfo:
        """What is served.

        Args:
            name: The base model's name, as it was given.
            directory: Where its files are.
        """
        config = self._manager.model_config
        (scheduler, *_) = self._engine._scheduler_init_result.scheduler_infos
        return ModelInfo(
            identity=BaseIdentity(name=name, digest=base_digest(directory)),
            vocab_size=config.vocab_size,
            context_tokens=min(config.context_len, scheduler["max_total_num_tokens"]),
            chat_template=self._manager.tokenizer.chat_template,
            dtype=str(config.dtype).removeprefix("torch."),
        )

    async def load(self, key: str, directory: Path) -> None:
        """Have SGLang read an adapter.

        Raises:
            EngineError: It refuses.
        """
        answer = await self._manager.load_lora_adapter(
            LoadLoRAAdapterReqInput(lora_name=key, lora_path=str(directory), pinned=False)
        )
        if not answer.success:
            raise EngineError(f"SGLang refuses the adapter: {answer.error_message}", stage="load")

    async def fill_slot(self, key: str) -> list[Filled]:
        """Put an adapter where requests find it; what is there then, rank by rank.

        Raises:
            EngineError: It does not fit.
        """
        lora_id = self._manager.lora_registry.get_all_adapters()[key].lora_id
        reports = await asyncio.get_running_loop().run_in_executor(self._calls, self._call_scheduler, lora_id)
        errors = {report["error"] for report in reports if "error" in report}
        if errors:
            raise EngineError(f"SGLang can't serve the adapter: {'; '.join(sorted(errors))}", stage="load")
        return [Filled(**report) for report in reports]

    async def unload(self, key: str) -> None:
        """Have SGLang forget an adapter that no request uses.

        Raises:
            EngineError: It refuses.
        """
        answer = await self._manager.unload_lora_adapter(UnloadLoRAAdapterReqInput(lora_name=key))
        if not answer.success:
            raise EngineError(f"SGLang does not unload {key!r}: {answer.error_message}", stage="unload")
        # what SGLang keeps of it is the way back in for a request that names it
        self._manager.lora_ref_cache.pop(key, None)

    def directories(self) -> dict[str, Path]:
        """SGLang's own list: its name of an adapter to the directory that it read."""
        return {key: Path(each.lora_path) for key, each in self._manager.lora_registry.get_all_adapters().items()}

    async def score(self, key: str | None, sequences: Sequence[list[int]]) -> list[list[float]]:
        """Logprobs of given tokens, but for each sequence's first.

        Raises:
            EngineError: SGLang refuses a sequence.
        """
        return list(await asyncio.gather(*(self._score(key, tokens) for tokens in sequences)))

    async def warm_up(self) -> None:
        """Generate a token: what SGLang makes at its first request is made now."""
        async with aclosing(self._generate(input_ids=[0], sampling_params={"max_new_tokens": 1})) as answers:
            async for _ in answers:
                pass

    async def _score(self, key: str | None, tokens: list[int]) -> list[float]:
        wanted = {"max_new_tokens": 0, "temperature": 1.0}
        keywords = {"return_logprob": True, "logprob_start_len": 0, "lora_path": key}
        try:
            async with aclosing(self._generate(input_ids=tokens, sampling_params=wanted, **keywords)) as answers:
                answer = await anext(answers)
        except ValueError as error:
            raise EngineError(f"SGLang does not score {len(tokens)} tokens: {error}", stage="score") from error
        return [logprob for logprob, *_ in answer["meta_info"]["input_token_logprobs"][1:]]

    def _generate(self, **keywords: Any) -> Any:
        return self._manager.generate_request(GenerateReqInput(**keywords), None)

    def _call_scheduler(self, lora_id: str) -> list[dict[str, Any]]:
        sock_send(self._engine.send_to_rpc, RpcReqInput(method=METHOD, parameters={"lora_id": lora_id}))
        reports: list[dict[str, Any]] = json.loads(sock_recv(self._engine.send_to_rpc).message)
        return reports


def _tapped(generate: Callable[..., Any]) -> Callable[..., AsyncIterator[dict[str, Any]]]:
    """SGLang's `generate_request`, seen by the tap of the HTTP request that it is for."""

    async def generate_request(wanted: Any, request: Any = None) -> AsyncIterator[dict[str, Any]]:
        tap = None if request is None else request.scope.get(TAP)
        if tap is not None:
            wanted.return_prompt_token_ids = True
        async with aclosing(generate(wanted, request)) as contents:
            async for content in contents:
                if tap is not None:
                    tap(content)
                yield content

    return generate_request


def _templates(engine: Any, template: str | None, scratch: Path) -> Any:
    """SGLang's templates with the Jinja template in force: the given one, else the model's own.

    SGLang guesses a template of its own from words in the model's path; prompts would then be other tokens than the
    trainer's and than those of other engines.
    """
    found: Any = engine.template_manager
    tokenizer = engine.tokenizer_manager.tokenizer
    wanted = template if template is not None else tokenizer.chat_template
    if wanted is None or (template is None and found.chat_template_name is None):
        return found
    path = scratch / "chat_template.jinja"
    path.write_text(wanted)
    made = TemplateManager()
    made.load_chat_template(engine.tokenizer_manager, str(path), engine.server_args.model_path)
    tokenizer.chat_template = wanted  # SGLang's reader of files changes it: an escaped line break becomes one
    return made
