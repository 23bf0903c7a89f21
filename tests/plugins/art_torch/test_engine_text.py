"""Text of sampled tokens: whole characters, no stop strings, the same whether streamed or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from art_torch.serve.detokenizer import TextStream
from transformers import AutoTokenizer, PreTrainedTokenizerBase

TEXT = "naïve – 日本語 🙂👩‍👩‍👧 end"


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, *stop: str) -> tuple[list[str], bool]:
    """What is sent after each token, and at the end."""
    stream, sent = TextStream(tokenizer, stop), []
    for token in tokenizer(text)["input_ids"]:
        stream.push(token)
        if stream.stopped:
            break
        sent.append(stream.take())
    return [*sent, stream.finish()], stream.stopped


def test_characters_are_never_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    sent, stopped = pieces(tokenizer, TEXT)
    assert "".join(sent) == TEXT and not stopped
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in sent)
    assert len([piece for piece in sent if piece]) == len(TEXT)  # a byte-level tokenizer: one piece a character


def test_an_incomplete_last_character_is_shown_as_such(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer, ())
    for token in tokenizer("ab🙂")["input_ids"][:-1]:
        stream.push(token)
    assert stream.take() == "ab"
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_special_tokens_have_no_text(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer, ())
    for token in [*tokenizer("a")["input_ids"], tokenizer.bos_token_id, *tokenizer("b")["input_ids"]]:
        stream.push(token)
    assert stream.take() + stream.finish() == "ab"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("ababac", ("abac",), "ab"),
        ("日本語", ("本",), "日"),
        ("abc", ("abc",), ""),
        ("aab", ("ab", "b"), "a"),
    ],
)
def test_stop_strings_are_cut_off(
    tokenizer: PreTrainedTokenizerBase, text: str, stop: tuple[str, ...], expected: str
) -> None:
    sent, stopped = pieces(tokenizer, text, *stop)
    assert stopped and "".join(sent) == expected


def test_a_stop_string_that_never_completes_is_sent_in_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    sent, stopped = pieces(tokenizer, "xx END", "END!")
    assert not stopped and "".join(sent) == "xx END"
    assert "".join(sent[:-1]) == "xx "  # held back until it was clear
