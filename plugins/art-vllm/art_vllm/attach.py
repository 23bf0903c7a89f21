"""A stock server that somebody else runs: found, checked, spoken to, and never stopped."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from art_core.base_model import BaseIdentity, ModelInfo, base_digest, local_directory
from art_core.config import Timeouts
from art_core.engine_server import EngineServer
from art_core.errors import ConfigError, EngineError
from art_core.protocols.engine import Endpoint, EngineSpec
from art_vllm.api import Api
from art_vllm.options import Runtime, VllmOptions
from art_vllm.stock import Served, healthy, inspect, require_vocabulary

_log = logging.getLogger("art.engine")
_MEANT = {"dtype", "engine_args", "max_loras", "runtime"}
"""Options that mean something where somebody else runs the server, or are looked into."""


@dataclass(frozen=True)
class Paths:
    """One directory under two names: here, and where the server runs."""

    here: Path | None = None
    there: Path | None = None

    @classmethod
    def of(cls, runtime: Runtime) -> Paths:
        """As options give them."""
        local, server = runtime.local_checkpoint_root, runtime.server_checkpoint_root
        return cls() if local is None or server is None else cls(Path(local).absolute(), Path(server))

    def to_server(self, directory: Path) -> str:
        """What the server calls a directory of ours.

        Raises:
            EngineError: It is outside of what the server sees.
        """
        if self.here is None or self.there is None:
            return str(directory)
        for own, root in ((directory, self.here), (directory.resolve(), self.here.resolve())):
            if own.is_relative_to(root):
                return str(self.there / own.relative_to(root))
        raise EngineError(
            f"checkpoint {directory} is not below vllm_runtime['local_checkpoint_root'], {self.here}, so the server "
            f"can't see it; give a root that holds LocalBackend(path=…)"
        )

    def from_server(self, directory: Path) -> Path:
        """What we call a directory of the server's."""
        if self.here is None or self.there is None or not directory.is_relative_to(self.there):
            return directory
        return self.here / directory.relative_to(self.there)


async def attach(options: VllmOptions, spec: EngineSpec, timeouts: Timeouts) -> tuple[Api, Endpoint, Path]:
    """Find the server and check that it serves what is asked for.

    Args:
        options: Where it is.
        spec: What it must serve; the base model's files must be here too.
        timeouts: For its answers.

    Returns:
        Who asks it, its endpoint and the base model's directory here.

    Raises:
        ConfigError: It serves something else.
        EngineStartError: It did not answer in time.
    """
    runtime, directory = options.runtime, local_directory(spec.base_model)
    if directory is None or spec.chat_template is not None:
        what = "a local directory as base model" if directory is None else "no chat_template: start it with that"
        raise ConfigError(f"a vLLM server that somebody else runs needs {what}")
    if idle := sorted((options.model_fields_set | options.engine_args.keys()) - _MEANT):
        _log.warning("a vLLM that somebody else runs is not told of %s; start it with them", ", ".join(idle))
    url = str(runtime.server_url).rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {runtime.api_key}"} if runtime.api_key else {}
    server = EngineServer("vllm", url, headers, None, timeouts)
    await healthy(server, runtime.health_timeout_s, timeouts)
    served = await inspect(server, options, spec, timeouts)
    model = await asyncio.to_thread(_model, options, spec, directory, served.context_tokens)
    await require_vocabulary(server, spec.base_name, model.vocab_size, timeouts)
    api = Api(server, timeouts, own=False)
    model = replace(model, files_seen=await _require_base(api, served, runtime, model.identity))
    return api, Endpoint(url, runtime.api_key or "", model, options.max_loras), directory


async def _require_base(api: Api, served: Served, runtime: Runtime, own: BaseIdentity) -> bool:
    """Compare the base model's files where they can be seen: by the workers, or here, under our name for them.

    Returns:
        Whether they could be seen.
    """
    paths = Paths.of(runtime)
    here = paths.from_server(served.root)
    if runtime.worker_extension:
        digests = {each["digest"] for each in await api.call_workers("art_base")} - {None}
    elif (paths.there is None or served.root.is_relative_to(paths.there)) and here.is_dir():
        digests = {await asyncio.to_thread(base_digest, here)}
    else:
        return False
    if digests - {own.digest}:
        raise ConfigError(
            f"the vLLM server at {api.server.base_url} serves other files than the base model {own.name!r} has here "
            f"({served.root}: digest {min(digests)[:12]}, here {own.digest[:12]}); start it with the same files"
        )
    return bool(digests)


def _model(options: VllmOptions, spec: EngineSpec, directory: Path, context_tokens: int) -> ModelInfo:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    text: dict[str, Any] = config.get("text_config", config)
    own = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return ModelInfo(
        identity=BaseIdentity(name=spec.base_model, digest=base_digest(directory)),
        vocab_size=text["vocab_size"],
        context_tokens=context_tokens,
        chat_template=_template(directory),
        dtype=own if options.dtype == "auto" else options.dtype,
    )


def _template(directory: Path) -> str | None:
    file, settings = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = json.loads(settings.read_text()).get("chat_template") if settings.is_file() else None
    return template if isinstance(template, str) else None
