"""Runs in vLLM's interpreter: the stock OpenAI server on a socket that was handed over, behind our `Door`.

Started as ``python -m art_vllm.server <socket fd> <settings fd>`` by `art_vllm.launch`. vLLM's own processes import
this module again under another name, so it does nothing when it is merely imported.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from art_core.process import attach_owner

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def main() -> None:
    """Serve until SIGTERM, or until the owner ends."""
    attach_owner()
    listener = socket.socket(fileno=int(sys.argv[1]))
    with open(int(sys.argv[2]), "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        settings: dict[str, Any] = json.load(file)
    os.environ.update(settings["variables"])  # vLLM reads its variables when it is imported
    directory, (host, port) = _directory(settings["base_model"]), listener.getsockname()[:2]
    where = [f"--model={directory}", f"--host={host}", f"--port={port}"]
    _serve(listener, [*_target_modules(Path(directory)), *settings["argv"], *where], settings["api_key"])


def _directory(base_model: str) -> str:
    """The base model's local directory, downloaded first where it is a hub name."""
    if Path(base_model).expanduser().is_dir():
        return str(Path(base_model).expanduser().absolute())
    from huggingface_hub import snapshot_download

    return snapshot_download(base_model, allow_patterns=_HUB_FILES, ignore_patterns=["original/*"])


def _target_modules(directory: Path) -> list[str]:
    """Keep adapters out of all but the layers' linear modules, where ours have their weights.

    vLLM would wrap the head too: memory and time for nothing, and logprobs of the prompts of several requests at once
    end the engine there (0.32.0). Experts are left to vLLM: it calls them by other names.
    """
    from art_core.adapter_file import adaptable_modules

    sites = adaptable_modules(directory)
    if not sites or any(".experts." in name for name in sites):
        return []
    return ["--lora-target-modules", *sorted({name.rpartition(".")[2] for name in sites})]


def _serve(listener: socket.socket, argv: list[str], api_key: str) -> None:
    """What vLLM's own entry point does, but for making the socket."""
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import set_ulimit, validate_api_server_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup, log_non_default_args, log_version_and_model
    from vllm.logger import configure_logging_from_args, init_logger
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.utils.system_utils import decorate_logs
    from vllm.version import __version__

    from art_vllm import door

    cli_env_setup()
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(argv)
    configure_logging_from_args(args)
    validate_parsed_serve_args(args)
    decorate_logs("APIServer", skip_if_decorated=True)
    logger = init_logger("vllm.entrypoints.art")
    log_version_and_model(logger, __version__, args.model)
    log_non_default_args(args)
    validate_api_server_args(args)
    set_ulimit()
    door.configure(api_key)
    host, port = listener.getsockname()[:2]
    uvloop.run(run_server_worker(f"http://{host}:{port}", listener, args))


if __name__ == "__main__":
    main()
