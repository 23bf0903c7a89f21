"""W&B: artifacts as a checkpoint store, LoRA for W&B Inference, metrics of runs."""
