"""Shapes in the signatures of our functions are checked while tests run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seqlm.models.output_loss import fused_output_loss
from tests import shapes

pytestmark = pytest.mark.skipif(not shapes.AVAILABLE, reason="beartype is not installed")


@pytest.mark.parametrize(
    ("hidden", "targets"),
    [
        (torch.zeros(3, 2, 4), torch.zeros(3, 2)),
        (torch.zeros(3, 2, 4), torch.zeros(2, 3, dtype=torch.int64)),
        (torch.zeros(6, 4), torch.zeros(3, 2, dtype=torch.int64)),
    ],
    ids=["type", "order", "dimensions"],
)
def test_what_does_not_fit_is_found_after_calls_that_do(hidden: torch.Tensor, targets: torch.Tensor) -> None:
    output = nn.Linear(4, 5)
    for _ in range(2):
        fused_output_loss(output, torch.zeros(3, 2, 4), torch.zeros(3, 2, dtype=torch.int64))
    for _ in range(2):
        with pytest.raises(Exception, match="Type-check error whilst checking the parameters of"):
            fused_output_loss(output, hidden, targets)
