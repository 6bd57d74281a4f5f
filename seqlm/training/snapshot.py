"""A copy of tensors in memory, taken between two steps, to be written while training goes on."""

from __future__ import annotations

from typing import Any, final

import torch


@final
class Snapshot:
    """Memory for the copies, allocated once: only the first copy has to wait for pages.

    Args:
        device: where the tensors are. A snapshot of a run on the CPU calls nothing of CUDA: that would create a context
            and take memory of a GPU that other runs use.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[Any, ...], torch.Tensor] = {}

    def take(self, tree: Any) -> Any:
        """``tree``, nested tables and lists, with a copy on the CPU in place of each tensor.

        Names of the same memory, as of a tied parameter, share their copy. The copies hold the values of this moment
        until the next call, which writes into the same memory.
        """
        copy = self._copy(tree, (), {})
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return copy

    def _copy(self, value: Any, place: tuple[Any, ...], copied: dict[tuple[Any, ...], torch.Tensor]) -> Any:
        if isinstance(value, torch.Tensor):
            memory = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
            if memory not in copied:
                copied[memory] = self._buffer(value, place).copy_(value.detach(), non_blocking=True)
            return copied[memory]
        if isinstance(value, dict):
            return {key: self._copy(item, (*place, key), copied) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(item, (*place, number), copied) for number, item in enumerate(value))
        return value

    def _buffer(self, tensor: torch.Tensor, place: tuple[Any, ...]) -> torch.Tensor:
        found = self._buffers.get(place)
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            on_gpu = tensor.device.type == "cuda"
            found = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
            self._buffers[place] = found
        return found
