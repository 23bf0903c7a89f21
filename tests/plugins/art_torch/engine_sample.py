"""What the torch engine's tests share: adapters, requests, and the answers that transformers and PEFT give."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from art_torch.engine import TorchEngine
from art_torch.serve.reply import Choice
from art_torch.serve.request import Job
from art_torch.serve.sequence import Sampling
from art_torch.serve.serving import Serving
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from art_core.base_model import BaseIdentity
from art_core.checkpoint import Manifest, StoredCheckpoint
from art_core.protocols.engine import Endpoint
from tests.staged import FILES


def write_adapter(base: Path, directory: Path, seed: int, **config: Any) -> Path:
    """Write a PEFT adapter whose B is not zero, large enough to change every logprob."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    model.save_pretrained(directory)
    return directory


def prompt(length: int, seed: int = 0) -> list[int]:
    """A prompt of random tokens."""
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def job(model: str, *prompts: list[int], n: int = 1, stream: bool = False, **sampling: Any) -> Job:
    """A job that samples as given."""
    wanted = Sampling(**{"max_tokens": 8, "logprobs": 0, **sampling})
    return Job("text", model, list(prompts), [wanted] * len(prompts), n, stream, False, True, False)


async def answer(serving: Serving, wanted: Job) -> list[Choice]:
    """Run a job to its end."""
    with serving.run(wanted) as run:
        choices = [Choice() for _ in run.sequences]
        async for update in run.updates():
            choices[update.sequence.choice].add(update)
        for sequence, choice in zip(run.sequences, choices, strict=True):
            choice.prompt_scored = sequence.prompt_scored
    return choices


def ids(choice: Choice) -> list[int]:
    """The tokens that were sampled."""
    return [token.token for token in choice.tokens]


@dataclass
class Reference:
    """The base and its adapters as transformers and PEFT compute them, one sequence at a time."""

    base: Path
    adapters: dict[str, Path]
    models: dict[str, Any] = field(default_factory=dict)

    def model(self, name: str) -> Any:
        """The model under one of the names ``base``, or an adapter's."""
        if name not in self.models:
            model = AutoModelForCausalLM.from_pretrained(self.base)
            if name in self.adapters:
                model = PeftModel.from_pretrained(model, self.adapters[name])
            self.models[name] = model.eval()
        return self.models[name]

    @torch.no_grad()
    def logprobs(self, name: str, tokens: list[int], temperature: float = 1.0) -> np.ndarray:
        """(T - 1, vocabulary): row t is about token t + 1."""
        logits = self.model(name)(torch.tensor([tokens])).logits[0, :-1]
        return (logits / temperature).log_softmax(-1).numpy()

    def sampled(self, name: str, prompt: list[int], choice: Choice, temperature: float = 1.0) -> np.ndarray:
        """Logprobs of a choice's tokens."""
        rows = self.logprobs(name, prompt + ids(choice), temperature)[len(prompt) - 1 :]
        return rows[np.arange(len(rows)), ids(choice)]


@dataclass(frozen=True)
class EngineServer:
    """A started engine, and a client with its key."""

    engine: TorchEngine
    endpoint: Endpoint
    client: httpx.AsyncClient

    async def post(self, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
        """Make a request and check its status."""
        response = await self.client.post(path, json={"model": "base", **body})
        assert response.status_code == status, response.text
        data: dict[str, Any] = response.json()
        return data

    def stored(self, directory: Path) -> StoredCheckpoint:
        """A checkpoint over a directory of adapter files; the engine reads nothing else of it."""
        manifest = Manifest(run="r", step=1, base_model=BaseIdentity(name="tiny", digest="0"), files=FILES)
        return StoredCheckpoint(directory, manifest)
