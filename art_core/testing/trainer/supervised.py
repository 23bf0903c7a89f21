"""What a trainer that learns from chats promises: which tokens it marks, and that it learns them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from art_core.capability import Capability
from art_core.checkpoint import ADAPTER
from art_core.supervised import (
    EncodeRequest,
    SupervisedChat,
    SupervisedConfig,
    make_supervised_batch,
    supervised_step_config,
)
from art_core.testing.promise import promised
from art_core.testing.trainer.bench import TrainerBench, TrainerCase

CHATS = [
    SupervisedChat(
        f"trajectory {index}",
        index,
        [
            {"role": "user", "content": "Name a colour."},
            {"role": "assistant", "content": colour},
            {"role": "user", "content": "Another one."},
            {"role": "assistant", "content": f"not {colour}"},
        ],
    )
    for index, colour in enumerate(("blue", "yellow", "green"))
]


class TrainerChats(TrainerCase):
    """Tests of `encode`, and of a step on what it gives."""

    @pytest.fixture(autouse=True)
    def _declared(self, bench: TrainerBench) -> None:
        if Capability.SUPERVISED not in bench.capabilities:
            pytest.skip("the trainer does not declare 'supervised'; core then refuses train_sft")

    async def test_the_assistant_s_words_are_marked_and_nothing_else(self, bench: TrainerBench) -> None:
        """Every chat gives sequences with tokens to learn, and fewer of them where only the last turn is asked."""
        every = await bench.trainer.encode(EncodeRequest(CHATS))
        last = await bench.trainer.encode(EncodeRequest(CHATS, "last"))
        promised(
            [each.chat_index for each in last] == [0, 1, 2], "one sequence for each chat of which one turn is asked"
        )
        vocabulary = bench.info.model.vocab_size
        for each in [*every, *last]:
            inside = bool((each.tokens_T >= 0).all() and (each.tokens_T < vocabulary).all())
            promised(inside, "tokens lie within the vocabulary", each.tokens_T)
            promised(
                bool(each.trained_T.any()) and not each.trained_T[0], "a sequence has tokens to learn", each.trained_T
            )
            promised(not each.trained_T.all(), "the user's words are not learnt", each.trained_T)
        counts = [sum(int(each.trained_T.sum()) for each in encoded) for encoded in (every, last)]
        promised(counts[0] > counts[1], "the last turns alone have fewer tokens to learn than all turns", counts)

    async def test_the_loss_on_chats_falls(self, bench: TrainerBench) -> None:
        """Step after step on the same chats."""
        config = SupervisedConfig(learning_rate=1e-2, batch_size=3)
        batch, _ = make_supervised_batch(CHATS, await bench.trainer.encode(EncodeRequest(CHATS, "last")), 1 << 20)
        step = supervised_step_config(config, batch)
        losses = [(await bench.trainer.step(batch, step)).metrics["loss/train"] for _ in range(4)]
        promised(losses[0] > 0 and losses[-1] < 0.95 * losses[0], "cross-entropy on the same chats falls", losses)

    async def test_every_update_has_a_learning_rate_of_its_own(self, bench: TrainerBench) -> None:
        """A rate of 0 moves nothing, and the last of several is followed."""
        batch, _ = make_supervised_batch(CHATS, await bench.trainer.encode(EncodeRequest(CHATS, "last")), 1 << 20)
        still = supervised_step_config(SupervisedConfig(learning_rate=[0.0, 0.0], batch_size=2), batch)
        before = (await bench.state())[ADAPTER]
        result = await bench.trainer.step(batch, still)
        promised(result.metrics["data/step_num_gradient_steps"] == 2, "3 chats at batch size 2 are 2 updates")
        promised((await bench.state())[ADAPTER] == before, "updates at a learning rate of 0 move nothing")
        await bench.trainer.step(batch, replace(still, update_learning_rates=(0.0, 1e-2)))
        promised((await bench.state())[ADAPTER] != before, "the second update's learning rate is followed")
