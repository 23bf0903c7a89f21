"""What `trainer_tokens.py` times beside ours: a step of plain transformers + peft, or of TRL's GRPOTrainer.

Run by that benchmark, in an interpreter of its own that has no ART. For each line on stdin it makes a step and prints
``seconds <float>``; it ends with stdin.

    python benchmarks/rivals/step.py plain|trl <base model> <rank> <batch.safetensors>
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

Microbatch = dict[str, Tensor]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEARNING_RATE, MAX_GRAD_NORM, HIGHEST_RATIO = 1e-4, 0.1, 5.0


def microbatches(path: Path) -> list[Microbatch]:
    """The batch's groups, each padded as TRL does: prompts at the left, completions at the right."""
    arrays = load_file(path)
    groups = np.unique(arrays["group_ids_B"])
    return [_padded(arrays, np.flatnonzero(arrays["group_ids_B"] == group)) for group in groups]


def _padded(arrays: dict[str, Any], rows: Any) -> Microbatch:
    starts = [int(arrays["loss_mask_BT"][row].argmax()) for row in rows]
    ends = [int(arrays["lengths_B"][row]) for row in rows]
    P, C = max(starts), max(end - start for start, end in zip(starts, ends, strict=True))
    made = {
        "prompt_ids": torch.zeros(len(rows), P, dtype=torch.long),
        "completion_ids": torch.zeros(len(rows), C, dtype=torch.long),
        "old_per_token_logps": torch.zeros(len(rows), C),
    }
    masks = {f"{part}_mask": torch.zeros_like(made[f"{part}_ids"]) for part in ("prompt", "completion")}
    for index, (row, start, end) in enumerate(zip(rows, starts, ends, strict=True)):
        made["prompt_ids"][index, P - start :] = torch.from_numpy(arrays["tokens_BT"][row, :start])
        made["completion_ids"][index, : end - start] = torch.from_numpy(arrays["tokens_BT"][row, start:end])
        made["old_per_token_logps"][index, : end - start] = torch.from_numpy(arrays["logprobs_BT"][row, start:end])
        masks["prompt_mask"][index, P - start :] = 1
        masks["completion_mask"][index, : end - start] = 1
    advantages = [float(arrays["advantages_BT"][row, start]) for row, start in zip(rows, starts, strict=True)]
    return {**made, **masks, "advantages": torch.tensor(advantages)}


def asked() -> Iterator[float]:
    """The time at which each step is asked for."""
    for _ in sys.stdin:
        yield time.perf_counter()


def tell(start: float) -> None:
    """Report a step."""
    print(f"seconds {time.perf_counter() - start}", flush=True)


def plain(base_model: str, rank: int, batch: list[Microbatch]) -> None:
    """What a careful user writes: logits of the completions only, gradients accumulated over the groups."""
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    model: Any = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.1)
    count = sum(int(each["completion_mask"].sum()) for each in batch)
    for start in asked():
        optimizer.zero_grad()
        for each in batch:
            (_cispo(model, each) / count).backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        tell(start)


def _cispo(model: Any, each: Microbatch) -> Tensor:
    tokens = torch.cat([each["prompt_ids"], each["completion_ids"]], 1)
    mask = torch.cat([each["prompt_mask"], each["completion_mask"]], 1)
    C = each["completion_ids"].shape[1]
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False, logits_to_keep=C + 1).logits[:, :-1]
    logprobs = logits.log_softmax(-1).gather(2, each["completion_ids"][:, :, None])[:, :, 0]
    ratio = (logprobs.detach() - each["old_per_token_logps"]).exp().clamp(max=HIGHEST_RATIO)
    return -(ratio * each["advantages"][:, None] * logprobs * each["completion_mask"]).sum()


def trl(base_model: str, rank: int, batch: list[Microbatch]) -> None:
    """GRPOTrainer, handed its batch in place of generating one; all of its own step is timed."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Handed(GRPOTrainer):  # type: ignore[misc]
        def _prepare_inputs(self, generation_batch: Any) -> Microbatch:
            self._step += 1
            items = sum(int(each["completion_mask"].sum()) for each in batch)
            return {**batch[self._step % len(batch)], "num_items_in_batch": torch.tensor(items)}

    class Turns(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.asked = asked()

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            start = next(self.asked, None)
            if start is None:
                sys.exit(0)
            self.start = start

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tell(self.start)

    rows = len(batch[0]["advantages"])
    with tempfile.TemporaryDirectory() as directory:
        config = GRPOConfig(
            output_dir=directory,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            loss_type="cispo",
            epsilon_high=HIGHEST_RATIO,
            beta=0.0,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=MAX_GRAD_NORM,
            adam_beta2=0.99,
            weight_decay=0.1,
            num_generations=rows,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=len(batch),
            max_steps=1000,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Handed(
            model=AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32),
            args=config,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            train_dataset=Dataset.from_dict({"prompt": ["x"] * 64}),
            peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS),
            callbacks=[Turns()],
        )
        trainer.train()


if __name__ == "__main__":
    kind, base_model, rank, path = sys.argv[1:]
    {"plain": plain, "trl": trl}[kind](base_model, int(rank), microbatches(Path(path)))
