"""What the engine computes is what transformers and PEFT compute, whatever else is in the batch."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from art_torch.options import TorchEngineOptions
from art_torch.serve import scheduler
from art_torch.serve.serving import Serving, ServingConfig

from tests.plugins.art_torch.engine_sample import Reference, answer, ids, job, prompt

NAMES = ["base", "a", "b"]


@pytest.fixture(scope="module")
def reference(tiny_model: Path, engine_adapters: dict[str, Path]) -> Reference:
    return Reference(tiny_model, engine_adapters)


async def test_mixed_batch_has_the_logprobs_of_each_model_alone(serving: Serving, reference: Reference) -> None:
    wanted = [(name, prompt(5 + 7 * i, i)) for i, name in enumerate(NAMES * 3)]
    choices = await asyncio.gather(*(answer(serving, job(name, p, max_tokens=12)) for name, p in wanted))
    for (name, p), (choice,) in zip(wanted, choices, strict=True):
        got = [token.logprob for token in choice.tokens]
        np.testing.assert_allclose(got, reference.sampled(name, p, choice), atol=1e-4)


async def test_the_models_differ_enough_to_tell_them_apart(reference: Reference) -> None:
    rows = [reference.logprobs(name, prompt(20)) for name in NAMES]
    assert abs(rows[0] - rows[1]).mean() > 0.01 and abs(rows[0] - rows[2]).mean() > 0.01


async def test_greedy_is_what_transformers_generates(serving: Serving, reference: Reference) -> None:
    wanted = [(name, prompt(6 + 5 * i, 20 + i)) for i, name in enumerate(NAMES * 2)]
    choices = await asyncio.gather(*(answer(serving, job(n, p, temperature=0.0, max_tokens=20)) for n, p in wanted))
    for (name, p), (choice,) in zip(wanted, choices, strict=True):
        inputs = {"input_ids": torch.tensor([p]), "attention_mask": torch.ones(1, len(p), dtype=torch.long)}
        out = reference.model(name).generate(
            **inputs, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert ids(choice) == out[0, len(p) :].tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.7])
async def test_logprobs_are_those_of_the_sampled_distribution(
    serving: Serving, reference: Reference, temperature: float
) -> None:
    p = prompt(9)
    (choice,) = await answer(serving, job("a", p, temperature=temperature, top_p=0.9, logprobs=3))
    np.testing.assert_allclose(
        [token.logprob for token in choice.tokens], reference.sampled("a", p, choice, temperature), atol=1e-4
    )
    rows = reference.logprobs("a", p + ids(choice), temperature)[len(p) - 1 :]
    for row, token in zip(rows, choice.tokens, strict=True):
        assert [t for t, _ in token.top] == np.argsort(-row)[:3].tolist()


async def test_prompt_logprobs_with_rank_and_top(serving: Serving, reference: Reference) -> None:
    p = prompt(30, 3)
    (choice,) = await answer(serving, job("b", p, prompt_logprobs=2, max_tokens=1))
    rows = reference.logprobs("b", p)
    assert len(choice.prompt_scored) == 29
    for row, token, scored in zip(rows, p[1:], choice.prompt_scored, strict=True):
        assert scored.token == token
        assert scored.logprob == pytest.approx(row[token], abs=1e-4)
        assert scored.rank == int((row > row[token]).sum()) + 1
        assert [t for t, _ in scored.top] == np.argsort(-row)[:2].tolist()


async def test_long_prompts_are_computed_in_chunks(
    serving: Serving, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_PREFILL_TOKENS", 7)
    wanted = [("a", prompt(40, 5)), ("base", prompt(33, 6)), ("b", prompt(2, 7))]
    choices = await asyncio.gather(*(answer(serving, job(n, p, prompt_logprobs=0)) for n, p in wanted))
    for (name, p), (choice,) in zip(wanted, choices, strict=True):
        got = [token.logprob for token in (*choice.prompt_scored, *choice.tokens)]
        rows = reference.logprobs(name, p + ids(choice))
        np.testing.assert_allclose(got, rows[np.arange(len(rows)), p[1:] + ids(choice)], atol=1e-4)


async def test_score_is_what_is_served(serving: Serving, reference: Reference) -> None:
    prompts = [prompt(12, 8), prompt(1, 9), prompt(25, 10)]
    scored = await serving.score("a", prompts)
    for p, tokens in zip(prompts, scored, strict=True):
        rows = reference.logprobs("a", p)
        np.testing.assert_allclose([token.logprob for token in tokens], rows[np.arange(len(rows)), p[1:]], atol=1e-4)


async def test_context_can_be_filled_to_the_last_token(serving: Serving, reference: Reference) -> None:
    p = prompt(500, 11)
    (choice,) = await answer(serving, job("base", p, max_tokens=12))
    assert len(choice.tokens) == 12
    np.testing.assert_allclose(
        [token.logprob for token in choice.tokens], reference.sampled("base", p, choice), atol=1e-4
    )


async def test_bfloat16_serves_within_its_precision(
    tiny_model: Path, engine_adapters: dict[str, Path], reference: Reference
) -> None:
    options = TorchEngineOptions(device="cpu", dtype="bfloat16", cpu_threads=1)
    serving = Serving.load(ServingConfig(options, str(tiny_model), "base", lora_rank=8))
    serving.adapters.load("a", engine_adapters["a"])
    serving.thread.start(asyncio.get_running_loop())
    p = prompt(20, 12)
    (based,), (adapted,) = await asyncio.gather(*(answer(serving, job(n, p, max_tokens=6)) for n in ("base", "a")))
    serving.thread.stop()
    for name, choice in (("base", based), ("a", adapted)):
        got = [token.logprob for token in choice.tokens]
        np.testing.assert_allclose(got, reference.sampled(name, p, choice), atol=0.1)
