"""vLLM as an inference engine; see `art_vllm.plugin`."""
