from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def assert_same_values_and_gradients(
    found: Sequence[Tensor], wanted: Sequence[Tensor], inputs: list[Tensor], wanted_inputs: list[Tensor] | None = None
) -> None:
    """Outputs agree to 1e-10, and so do the gradients of one random weighting of them, not all zero.

    ``wanted_inputs`` are the inputs of ``wanted`` where they are not those of ``found``.
    """
    torch.testing.assert_close(list(found), list(wanted), rtol=0, atol=1e-10)
    weights = [torch.randn_like(output) for output in wanted]

    def gradients(outputs: Sequence[Tensor], leaves: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(list(outputs), leaves, grad_outputs=weights))

    of_found, of_wanted = gradients(found, inputs), gradients(wanted, wanted_inputs or inputs)
    assert sum(gradient.abs().max().item() for gradient in of_wanted) > 0
    torch.testing.assert_close(of_found, of_wanted, rtol=0, atol=1e-10)
