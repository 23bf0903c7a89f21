"""Where a trainer's tensors are: on their devices, or in host memory while another part has the devices."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


class Residence:
    """Moves tensors off their devices and back, bit for bit; whoever holds one of them goes on holding it.

    What is in host memory already stays where it is: a trainer on a CPU has no device memory to give back.
    """

    def __init__(self, frozen: Sequence[Tensor], changing: Callable[[], Iterable[Tensor]]) -> None:
        """Nothing is moved yet.

        Args:
            frozen: Tensors that never change. They are copied to the host once, at the first `leave`, and kept there.
            changing: Gives those that change.
        """
        self._frozen = frozen
        self._changing = changing
        self._host_copies: dict[int, Tensor] = {}
        self._moved: list[tuple[Tensor, torch.device]] = []
        self.away = False
        """Since `leave` was called, whether or not it succeeded, until `enter` has."""

    def leave(self) -> None:
        """Move everything to host memory; idempotent."""
        self.away = True
        for tensor in self._frozen:
            if tensor.device.type != "cpu":
                self._move(tensor, self._host_copy(tensor))
        for tensor in self._changing():
            if tensor.device.type != "cpu":
                self._move(tensor, tensor.data.cpu())
        free_cached()

    def enter(self) -> None:
        """Move everything back; idempotent. Where a device is full it raises, and can be called again."""
        while self._moved:
            tensor, device = self._moved[-1]
            tensor.data = tensor.data.to(device)
            self._moved.pop()
        self.away = False

    def _move(self, tensor: Tensor, host: Tensor) -> None:
        device = tensor.device
        tensor.data = host
        self._moved.append((tensor, device))

    def _host_copy(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._host_copies:
            self._host_copies[id(tensor)] = tensor.data.cpu()
        return self._host_copies[id(tensor)]


def free_cached() -> None:
    """Give memory that nothing holds any more back to its device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
