"""Loading the base model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from art_torch.base_model import load_base
from art_torch.serve.chat import ChatTemplate
from art_torch.serve.tool_call import ToolFormat
from transformers import AutoTokenizer

from art_core.base_model import base_digest
from art_core.errors import ConfigError
from tests.tiny_model import CHAT_TEMPLATE, write_tiny_model
from tests.tool_model import ADD


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


def test_loads_frozen_in_eval_mode(tiny: Path) -> None:
    base = load_base(str(tiny), "cpu")
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    assert base.dtype == torch.float32 and base.info.dtype == "float32"
    assert base.info.context_tokens == 512
    assert base.info.vocab_size == 258
    assert base.info.chat_template == CHAT_TEMPLATE
    assert base.info.identity.digest == base_digest(tiny)


def test_float32_weights_stay_memory_mapped(tiny: Path) -> None:
    base = load_base(str(tiny), "cpu")
    address = base.model.get_input_embeddings().weight.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        if start <= address < end:
            assert line.endswith("model.safetensors")
            return
    pytest.fail("the weight is in no mapping")


def test_bfloat16_casts(tiny: Path) -> None:
    base = load_base(str(tiny), "cpu", "bfloat16")
    assert base.model.lm_head.weight.dtype == torch.bfloat16 and base.info.dtype == "bfloat16"


def test_of_several_templates_the_default_is_reported_and_tools_have_their_own(
    tmp_path: Path, tool_model: Path
) -> None:
    directory = tmp_path / "several"
    shutil.copytree(tool_model, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    plain = "{{ messages[0].content }}"
    tokenizer.chat_template = {"default": plain, "tool_use": tokenizer.chat_template}
    tokenizer.save_pretrained(directory)
    base = load_base(str(directory), "cpu")
    assert base.info.chat_template == plain
    template, asked = ChatTemplate(base.tokenizer, {}), [{"role": "user", "content": "hi"}]
    assert template.tools.form is ToolFormat.TAGGED
    assert base.tokenizer.decode(template.prompt(asked)) == "hi"
    assert '"name": "add"' in base.tokenizer.decode(template.prompt(asked, [ADD]))


def test_chat_template_override_is_reported(tiny: Path) -> None:
    base = load_base(str(tiny), "cpu", chat_template="{{ messages[0].content }}")
    assert base.info.chat_template == "{{ messages[0].content }}"
    assert base.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_missing_directory_says_what_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"/no/such/model.*local directory"):
        load_base("/no/such/model", "cpu")


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_base(str(tmp_path), "cpu")


def test_not_a_causal_model(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "copy")
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "copy/config.json").write_text(
        json.dumps({**config, "architectures": ["LlamaForSequenceClassification"]})
    )
    with pytest.raises(ConfigError, match="not a causal LM"):
        load_base(str(tmp_path / "copy"), "cpu")


def test_missing_weights_are_not_made_up(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny, tmp_path / "copy")
    weights = load_file(tiny / "model.safetensors")
    gone = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in weights.items() if k != gone}, tmp_path / "copy/model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=gone):
        load_base(str(tmp_path / "copy"), "cpu")


def test_pickled_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "copy")
    (tmp_path / "copy/model.safetensors").unlink()
    torch.save({}, tmp_path / "copy/pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        load_base(str(tmp_path / "copy"), "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is present")
def test_absent_device_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'cuda' is not present.*cpu"):
        load_base("x", "cuda")
