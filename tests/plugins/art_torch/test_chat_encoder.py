"""Which tokens supervised fine-tuning learns, against a template's own marks; its loss against transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art_torch.train.chat_encoder import ChatEncoder
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from art_core.errors import ConfigError, TokenizationError
from art_core.supervised import (
    EncodedChat,
    EncodeRequest,
    SupervisedChat,
    SupervisedConfig,
    make_supervised_batch,
    supervised_step_config,
)
from tests.plugins.art_torch.trainer_case import started
from tests.tool_model import ADD, TOOL_TEMPLATE

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello, né 😀\n"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]
MARKED = """
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}
{% else %}{{ message.content }}<|im_end|>
{% endif %}
{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
"""ChatML that says itself what the assistant generates, which transformers reads."""
FORGETFUL = """
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' and not loop.last %}{{ message.content.split('</think>')[-1] }}
{%- else %}{{ message.content }}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
"""As Qwen3's: what was thought in earlier turns is left out."""


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


def encoded(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any) -> list[EncodedChat]:
    tools = options.pop("tools", None)
    chat = SupervisedChat("trajectory 7", 7, messages, tools)
    return ChatEncoder(tokenizer).encode(EncodeRequest([chat], **options))


def learnt(tokenizer: PreTrainedTokenizerBase, sequence: EncodedChat) -> str:
    return str(tokenizer.decode(sequence.tokens_T[sequence.trained_T]))


def test_the_marks_are_those_that_a_template_makes_itself(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = MARKED
    own: Any = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    (sequence,) = encoded(tokenizer, CHAT)
    np.testing.assert_array_equal(sequence.tokens_T, own["input_ids"])
    np.testing.assert_array_equal(sequence.trained_T, np.asarray(own["assistant_masks"], bool))
    assert learnt(tokenizer, sequence) == "Hello, né 😀\n<|im_end|>4<|im_end|>"


def test_the_last_turn_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = MARKED
    (sequence,) = encoded(tokenizer, CHAT, turns="last")
    assert learnt(tokenizer, sequence) == "4<|im_end|>"


def test_the_prompt_is_what_an_engine_is_given(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = MARKED
    (sequence,) = encoded(tokenizer, CHAT, turns="last")
    prompt: Any = tokenizer.apply_chat_template(CHAT[:-1], add_generation_prompt=True, return_dict=False)
    first = int(sequence.trained_T.argmax())
    assert sequence.tokens_T[:first].tolist() == prompt


def test_a_template_that_rewrites_earlier_turns_gives_a_sequence_a_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = FORGETFUL
    chat = [dict(message) for message in CHAT]
    chat[2]["content"], chat[4]["content"] = "<think>?</think>Hello", "<think>2+2</think>4"
    first, second = encoded(tokenizer, chat)
    assert (first.chat_index, second.chat_index) == (0, 0)
    assert learnt(tokenizer, first) == "<think>?</think>Hello<|im_end|>"
    assert learnt(tokenizer, second) == "<think>2+2</think>4<|im_end|>"
    assert "?</think>" not in tokenizer.decode(second.tokens_T)


def test_tools_and_calls_are_rendered_and_calls_are_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TOOL_TEMPLATE
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    chat = [
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
        {"role": "assistant", "content": "3"},
    ]
    (sequence,) = encoded(tokenizer, chat, tools=[ADD])
    assert "Add two numbers." in tokenizer.decode(sequence.tokens_T)
    assert learnt(tokenizer, sequence) == (
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call><|im_end|>3<|im_end|>'
    )
    (greeted,) = encoded(tokenizer, chat, tools=[ADD], template_variables={"greeting": "Call these:"})
    assert "Call these:" in tokenizer.decode(greeted.tokens_T)


def test_a_greeting_that_answers_nothing_is_not_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = MARKED
    (sequence,) = encoded(tokenizer, [{"role": "assistant", "content": "Hello!"}, *CHAT[3:]])
    assert learnt(tokenizer, sequence) == "4<|im_end|>"


def test_what_a_template_refuses_names_the_trajectory(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(TokenizationError, match=r"trajectory 7, message 2: .*no users here"):
        encoded(tokenizer, CHAT)
    tokenizer.chat_template = None
    with pytest.raises(TokenizationError, match=r"trajectory 7, message 2: the model has no chat template"):
        encoded(tokenizer, CHAT)


def test_a_template_that_rewrites_the_question_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(TokenizationError, match="rewrites the messages before an answer"):
        encoded(tokenizer, CHAT)


def test_a_tokenizer_without_offsets_is_refused(tokenizer: PreTrainedTokenizerBase, monkeypatch: Any) -> None:
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda self: False))
    with pytest.raises(ConfigError, match="needs a fast one"):
        ChatEncoder(tokenizer)


async def test_the_loss_is_transformers_cross_entropy_of_the_marked_tokens(tiny_model: Path) -> None:
    chats = [SupervisedChat(f"trajectory {index}", index, CHAT[: 3 + 2 * index]) for index in range(2)]
    trainer = await started(tiny_model)
    batch, metrics = make_supervised_batch(chats, await trainer.encode(EncodeRequest(chats)), 512)
    result = await trainer.step(batch, supervised_step_config(SupervisedConfig(batch_size=2), batch))
    await trainer.stop()
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    losses = []
    for row, length in enumerate(batch.lengths_B):
        tokens = torch.from_numpy(batch.tokens_BT[row : row + 1, :length].astype(np.int64))
        labels = tokens.masked_fill(~torch.from_numpy(batch.loss_mask_BT[row : row + 1, :length]), -100)
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum"))
    expected = float(torch.stack(losses).sum()) / batch.loss_tokens
    assert result.metrics["loss/train"] == pytest.approx(expected, rel=1e-5)
    assert metrics["data/step_trainable_tokens"] == batch.loss_tokens == result.metrics["data/step_trainable_tokens"]
