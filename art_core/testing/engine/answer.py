"""What the endpoint promises: the key, the names, and every sampled token with its logprob."""

from __future__ import annotations

from typing import Any

import numpy as np

from art_core.capability import Capability
from art_core.testing.completion_client import ROUTES
from art_core.testing.engine.bench import BASE, EngineBench, EngineCase, gather
from art_core.testing.promise import need, promised


class EngineAnswers(EngineCase):
    """Tests of the endpoint."""

    async def test_every_route_asks_for_the_key(self, bench: EngineBench) -> None:
        """`GET /health`, `/v1/models` and both completion routes need `Authorization: Bearer <api_key>`."""
        promised(len(bench.endpoint.api_key) >= 16, "the endpoint has a key that can't be guessed")
        body = {"model": BASE, "prompt": "x", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        for method, path in ROUTES:
            sent = body if method == "POST" else None
            without = await bench.client.request_without_key(method, path, sent)
            wrong = await bench.client.request(method, path, sent, key="wrong")
            seen = without.status_code, wrong.status_code
            promised({*seen} <= {401, 403}, f"{path} asks for the key", f"status without and with a wrong key: {seen}")
            right = await bench.client.request(method, path, sent)
            promised(
                right.status_code == 200, f"{path} answers with the key", f"{right.status_code} {right.text[:300]}"
            )

    async def test_an_unknown_model_is_404_and_never_the_base(self, bench: EngineBench) -> None:
        """A model name that is not loaded is 404, never the base."""
        await bench.load("known@1", 1)
        body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        for name in ("unknown", "known@2", "known", f"{BASE}@1", f"{BASE}:known@1", BASE.upper(), ""):
            for path in ("/v1/completions", "/v1/chat/completions"):
                response = await bench.client.request("POST", path, {**body, "model": name})
                promised(response.status_code == 404, f"{path}: a name not loaded is 404", f"{name!r} {response}")

    async def test_the_list_of_models_is_what_answers(self, bench: EngineBench) -> None:
        """Model names are the adapter names given to `load_adapter` and `EngineSpec.base_name`."""
        await bench.load("listed@1", 1)
        listed = (await bench.client.request("GET", "/v1/models")).json()["data"]
        names = {model["id"] for model in listed}
        promised(names == {BASE, "listed@1"}, "/v1/models lists the base's name and the adapters'", names)

    async def test_a_text_completion_carries_every_token_and_logprob(self, bench: EngineBench) -> None:
        """With `return_token_ids` a completion carries the prompt's and the sampled ids, a logprob for each."""
        await bench.load("text@1", 1)
        prompt = bench.tokens(9)
        for name in (BASE, "text@1"):
            for answer in await gather(bench.client.complete(name, prompt, max_tokens=n) for n in (1, 7, 24)):
                promised(answer.prompt == prompt, "prompt_token_ids are the prompt's", answer.prompt)

    async def test_a_chat_completion_carries_every_token_and_logprob(self, bench: EngineBench) -> None:
        """The same for chat completions; equal messages give equal prompts."""
        answers = await gather(bench.client.chat(BASE, "Hello", max_tokens=n) for n in (1, 7, 24))
        prompts = {tuple(answer.prompt) for answer in answers}
        promised(len(prompts) == 1 and prompts != {()}, "equal messages are equal prompt_token_ids", prompts)
        vocabulary = range(bench.endpoint.model.vocab_size)
        seen = [token for answer in answers for token in (*answer.prompt, *answer.tokens)]
        promised(all(token in vocabulary for token in seen), "token ids are in [0, vocab_size)", seen)

    async def test_a_sampled_logprob_is_what_score_gives(self, bench: EngineBench) -> None:
        """Logprobs are of the distribution sampled: at temperature 1 they are `score`'s, under every name."""
        need(bench.capabilities, Capability.SCORE)
        await bench.load("sampled@1", 1)
        for name in (BASE, "sampled@1"):
            answer = await bench.client.complete(name, bench.tokens(9), max_tokens=24, temperature=1.0)
            sequence = np.asarray(answer.prompt + answer.tokens, np.int32)
            scored = (await bench.engine.score(name, [sequence]))[0][len(answer.prompt) :]
            gap = float(np.abs(scored - np.asarray(answer.logprobs)).max())
            promised(
                gap <= bench.tolerance_nats, f"sampled logprobs under {name!r} are score's", f"{gap:.3g} nats apart"
            )

    async def test_logprobs_are_of_the_temperature_that_was_sampled(self, bench: EngineBench) -> None:
        """At temperature t the logprobs of two tokens differ by 1/t times what they differ by at temperature 1."""
        need(bench.capabilities, Capability.SCORE)
        prompt, temperature = bench.tokens(9), 2.0
        calls = (bench.client.complete(BASE, prompt, max_tokens=1, temperature=temperature) for _ in range(12))
        sampled = {answer.tokens[0]: answer.logprobs[0] for answer in await gather(calls)}
        tokens = sorted(sampled)
        sequences = [np.asarray([*prompt, token], np.int32) for token in tokens]
        at_one = np.asarray([row[-1] for row in await bench.engine.score(BASE, sequences)], np.float64)
        constant = np.asarray([sampled[token] for token in tokens]) - at_one / temperature
        spread = float(np.ptp(constant))
        promised(
            len(tokens) > 1 and spread <= 2 * bench.tolerance_nats,
            f"logprobs at temperature {temperature} are of the distribution sampled",
            f"{len(tokens)} tokens, {spread:.3g} nats from the scaled distribution",
        )

    async def test_a_stream_carries_the_sampled_token_ids(self, bench: EngineBench) -> None:
        """STREAM_TOKEN_IDS: streamed chunks carry the sampled token ids, with a logprob each."""
        need(bench.capabilities, Capability.STREAM_TOKEN_IDS)
        chunks = await bench.client.stream(BASE, "Hello", max_tokens=12)
        tokens = [token for chunk in chunks for token in chunk.get("token_ids") or []]
        shown: list[dict[str, Any]] = [
            each for chunk in chunks for each in (chunk["logprobs"] or {}).get("content", [])
        ]
        ended = [chunk["finish_reason"] for chunk in chunks if chunk["finish_reason"]]
        whole = len(tokens) == 12 if ended == ["length"] else 1 <= len(tokens) <= 12
        promised(len(ended) == 1 and whole, "the chunks' token_ids are all sampled ids", f"{len(tokens)} ids, {ended}")
        promised(len(shown) == len(tokens), "one logprob per streamed token", f"{len(shown)} for {len(tokens)}")
