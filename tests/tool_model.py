"""A tiny model that calls tools: it has learned one conversation by heart, and its template knows tools.

It proves how calls are read, rendered back and joined, not that a model calls tools well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOOL_TEMPLATE = """
{%- macro call(item) -%}
<tool_call>
{"name": "{{ item.function.name }}", "arguments": {{
    item.function.arguments if item.function.arguments is string else item.function.arguments | tojson }}}
</tool_call>
{%- endmacro -%}
{%- if tools -%}
<|im_start|>system
{{ greeting | default('You may call:') }}
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Answer a call like this: <tool_call>
{"name": <name>, "arguments": <object>}
</tool_call><|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else -%}
<|im_start|>{{ message.role }}
{{ message.content }}
{%- for item in message.tool_calls or () -%}
{{ '\n' if message.content or not loop.first }}{{ call(item) }}
{%- endfor -%}
<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
"""Shaped like Qwen's: tools in the system turn, calls between tags, results as a user's turn."""

_NUMBER = {"type": "integer", "description": "A number."}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": _NUMBER, "b": _NUMBER}, "required": ["a", "b"]},
    },
}
ROUNDS = 6
"""Of two turns each: a call, and an answer that uses its result."""


def question(number: int) -> dict[str, Any]:
    return {"role": "user", "content": f"{number}+{number + 1}?"}


def result(call: Any) -> dict[str, Any]:
    """What the tool says to a call, as the agent sends it back."""
    numbers = json.loads(call["function"]["arguments"])
    return {"role": "tool", "tool_call_id": call["id"], "content": str(numbers["a"] + numbers["b"])}


def spoken(number: int) -> tuple[str, str]:
    """What the model says in a round: before and within its call, and to the result."""
    said = "Let me see.\n" if number % 2 else ""
    arguments = f'{{"a":{number}, "b": {number + 1}}}'  # spaced as no `tojson` would
    return said + f'<tool_call>\n{{"name": "add", "arguments": {arguments}}}\n</tool_call>', f"It is {2 * number + 1}."


def write_tool_model(directory: Path, heads: int = 4) -> Path:
    """Train the model for some seconds, write it in Hugging Face layout and return its directory.

    Args:
        directory: Made if absent.
        heads: Attention heads, 64 / heads wide each; even.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    _learn(model, *_conversation(tokenizer))
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # The tags as Qwen's tokenizer has them: one token each, and not special, so that they show in the text. The others
    # keep the prompt short, and so the training.
    words = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "assistant", "user", json.dumps(ADD))
    tokenizer.add_tokens([AddedToken(word, special=False) for word in words])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|im_end|>"
    )
    fast.chat_template = TOOL_TEMPLATE
    return fast


def _conversation(tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Tokens of the whole conversation, and which of them the model says."""
    first = tokenizer.apply_chat_template([question(1)], tools=[ADD], tokenize=False, add_generation_prompt=True)
    parts, start = [(first, False)], "<|im_end|>\n<|im_start|>"
    for number in range(1, ROUNDS + 1):
        call, answer = spoken(number)
        parts += [(call + "<|im_end|>", True)]
        parts += [(f"\n<|im_start|>user\n<tool_response>\n{2 * number + 1}\n</tool_response>{start}assistant\n", False)]
        parts += [(answer + "<|im_end|>", True)]
        parts += [(f"\n<|im_start|>user\n{question(number + 1)['content']}{start}assistant\n", False)]
    tokens, said = [], []
    for text, own in parts:
        ids = tokenizer(text)["input_ids"]
        tokens += ids
        said += [own] * len(ids)
    return tokens, said


def _learn(model: Any, tokens: list[int], said: list[bool]) -> None:
    import torch

    ids = torch.tensor([tokens])
    own = torch.tensor(said)[1:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for tensors this small, waiting for a second thread takes longer than the work
    for _ in range(400):
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[own, 0]
        if logprobs.min().exp() > 0.9:
            break
        optimizer.zero_grad()
        (-logprobs.mean()).backward()
        optimizer.step()
    torch.set_num_threads(threads)
    assert logprobs.min().exp() > 0.5, f"a token of the conversation was not learned: {logprobs.min().item():.2f}"
