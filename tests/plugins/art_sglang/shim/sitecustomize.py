"""Stand-ins that let SGLang be imported on a machine without a GPU. Only for tests; put this directory on PYTHONPATH.

SGLang's published packages are for GPUs: they hold no CPU kernels (`sgl_kernel`, beside this file), and the torchvision
they ask for is compiled for CUDA. This file stands in for the rest. It computes nothing. It acts only in processes of
an SGLang that was told to run on a CPU, once torch has been imported:

- torchvision's `nms` and `qnms` get their schemas, without which `import torchvision` fails; calling them fails still;
- memory is not pinned, because without an accelerator there is nothing to pin it for and torch refuses.
"""

import functools
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

_MAKERS = ("arange", "empty", "empty_like", "empty_strided", "full", "full_like", "ones", "rand", "randn", "tensor")
_ZEROS = ("zeros", "zeros_like")


def stand_in(torch):
    """What is missing, into a torch that has just been imported."""
    schemas = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    stand_in.schemas = schemas  # they last as long as it does
    torch.Tensor.pin_memory = lambda tensor, *_, **__: tensor
    for name in (*_MAKERS, *_ZEROS):
        setattr(torch, name, _unpinned(getattr(torch, name)))


def _unpinned(make):
    @functools.wraps(make)
    def wrapper(*arguments, pin_memory=False, **keywords):
        return make(*arguments, **keywords)

    return wrapper


class AfterTorch(MetaPathFinder):
    """Waits for torch to be imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = find_spec("torch")
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            stand_in(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
    sys.meta_path.insert(0, AfterTorch())
