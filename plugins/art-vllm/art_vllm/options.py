"""Options of the vLLM engine. Light: imports nothing of vLLM."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from art_core.config import HostedOptions

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


class Runtime(BaseModel):
    """Who runs the server: this engine, or somebody else."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mode: Literal["managed", "external"] = "managed"
    """managed: launched here, and ended with us; external: a stock vLLM that runs already and is never stopped."""
    server_url: str | None = None
    """external: where it answers, with or without ``/v1``."""
    api_key: str | None = Field(default=None, repr=False)
    """external: its ``--api-key``."""
    local_checkpoint_root: str | None = None
    """external: a directory here that the server sees as `server_checkpoint_root`."""
    server_checkpoint_root: str | None = None
    """external: where the server's file system holds `local_checkpoint_root`; both or neither."""
    health_timeout_s: float = Field(default=60.0, gt=0)
    """external: how long `start` waits for the server to answer."""
    score: bool = False
    """external: it was started with ``--lora-target-modules``, the head not among them, so that publications have the
    behaviour proof. No other is asked to score: beside other requests that ends a vLLM whose head takes adapters.
    Checked at the start where the server shows it (``VLLM_SERVER_DEV_MODE=1``)."""
    worker_extension: bool = False
    """external: it was started with ``--worker-extension-cls art_vllm.worker_extension.SlotProof`` and
    ``VLLM_SERVER_DEV_MODE=1``, so that publications have the weight proof; checked at the start."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.mode == "external" and not self.server_url:
            raise ValueError("server_url is required for external mode")
        if (self.local_checkpoint_root is None) != (self.server_checkpoint_root is None):
            raise ValueError("local_checkpoint_root and server_checkpoint_root must both be set or both unset")
        return self


class VllmOptions(HostedOptions):
    """How vLLM runs. Names shared with vLLM's arguments mean the same; `engine_args` takes any other of them."""

    part: ClassVar[str] = "vllm"
    pass_through: ClassVar[str | None] = "engine_args"
    device: Device = "auto"
    """auto: CUDA where this machine has a GPU, else the CPU."""
    dtype: DType = "auto"
    """auto: bfloat16 on CUDA, float32 on a CPU (without bf16 units bfloat16 is slower there, and leaves the behaviour
    proof without power)."""
    max_loras: int = Field(default=4, ge=2, le=64)
    """Steps served at once, those included that only requests in flight still hold."""
    max_model_len: int | None = Field(default=None, ge=8)
    """Longest sequence, prompt and completion, in tokens; None: the model's own context."""
    max_num_seqs: int | None = Field(default=None, ge=1)
    """Sequences generated at once; None: vLLM's choice."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share the model; as many as `inference_gpu_ids` where those are given."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Part of a GPU's memory to use; None: vLLM's choice."""
    enforce_eager: bool | None = None
    """Compile nothing at the start; None: so on a CPU, where compiling takes minutes, and not on CUDA."""
    enable_sleep_mode: bool = True
    """CUDA: let the engine give its memory back (`sleep`). A CPU has nothing to give back."""
    cpu_kv_cache_gib: float = Field(default=2.0, gt=0)
    """CPU: memory for keys and values, GiB."""
    cpu_threads: int | None = Field(default=None, ge=1)
    """CPU: threads that compute; None: vLLM's choice."""
    tool_call_parser: str | None = "hermes"
    """One of vLLM's parsers of tool calls. None, or a chat template that shows no tools or (hermes) writes calls
    otherwise: a request with tools is refused."""
    weight_proof: bool = True
    """Prove each publication by a digest of the adapter's slot. False for models whose layers the digest does not know
    (mixtures of experts): the probe of answers decides then."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's server by their names in Python (``{"kv_cache_dtype": "fp8"}``); checked against the
    installed version before it is started."""
    runtime: Runtime = Runtime()
    """Who runs the server; ``_internal_config["vllm_runtime"]`` sets it."""

    @property
    def external(self) -> bool:
        """Whether somebody else runs the server."""
        return self.runtime.mode == "external"

    @property
    def hosted(self) -> bool:
        """Whether its library must be installed here."""
        return self.python is None and not self.external
