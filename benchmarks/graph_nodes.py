"""What the CUDA graph of a training step consists of, counted without a GPU: its operations, and the bytes they move.

``python -m benchmarks.graph_nodes`` prints the table of benchmarks/results/DATE-graph-nodes.md. Each shape's step runs
on meta tensors, which have no values: an operation that reads one back fails, as it would while a graph is captured.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, final
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.shapes import Shape, select
from seqlm.config import Precision
from seqlm.models import build_model, products
from seqlm.optimizers import build_optimizer
from seqlm.training.step import TrainingStep

META = torch.device("meta")
DTYPES: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


@final
@dataclass
class Nodes(TorchDispatchMode):
    """Collects the operations that run while it is entered."""

    operations: list[tuple[str, tuple[torch.Size, ...]]] = field(default_factory=list)
    """Name and shapes of the operands of each that launches something: neither a view nor an allocation."""
    bytes: int = 0
    """Sizes of all their operands and results."""
    devices: set[str] = field(default_factory=set)
    """Types of the devices of all tensors."""

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = _tensors((args, kwargs))
        self.devices |= {tensor.device.type for tensor in (*given, *_tensors(result))}
        name = func.overloadpacket.__name__
        if given and not func.is_view and "empty" not in name and name != "detach":
            self.operations.append((name, tuple(tensor.shape for tensor in given)))
            distinct = {id(tensor): tensor for tensor in (*given, *_tensors(result))}
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())
        return result


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def like_a_gpu() -> Iterator[None]:
    """Meta tensors take the lines of code that a GPU's do: full results of bf16 products, fused optimizers."""
    adam, optimizer = (importlib.import_module(f"torch.optim.{name}") for name in ("adam", "optimizer"))
    with ExitStack() as patches:
        for module, name, answer in (
            (products, "_stores_full_results", True),
            (optimizer, "_get_fused_kernels_supported_devices", ["meta"]),
            (adam, "_get_capturable_supported_devices", ["meta"]),
        ):
            patches.enter_context(mock.patch.object(module, name, lambda *_, value=answer, **__: value))
        library = torch.library.Library("aten", "IMPL", "Meta")
        patches.callback(library._destroy)
        for name in ("_fused_sgd_", "_fused_sgd_.tensor_lr", "_fused_adam_.tensor_lr", "_fused_adamw_.tensor_lr"):
            library.impl(name, lambda *_, **__: None)
        yield


def meta_step(shape: Shape, precision: Precision, micro_batches: int = 1) -> Nodes:
    """Take two steps, and return the nodes of the second: in the first, an optimizer makes its moments."""
    config = shape.config
    with like_a_gpu(), META:
        model = build_model(config.model, shape.vocab_size, config.train.seq_len, DTYPES[precision])
        optimizer = build_optimizer(config.optim, model.parameters())
        for group in optimizer.param_groups:
            group |= {"lr": torch.tensor(config.optim.lr)} | ({"capturable": True} if "capturable" in group else {})
        step = TrainingStep(model, optimizer, clip_norm=1.0, tokens_per_step=shape.tokens, micro_batches=micro_batches)
        window = torch.zeros(config.train.seq_len, config.train.batch_size, dtype=torch.int64)
        state = step(window, window, model.initial_state(config.train.batch_size)).state
        nodes = Nodes()
        with nodes:
            step(window, window, state)
    return nodes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graph_nodes", description=main.__doc__)
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE", default=["published"])
    print(f"PyTorch {torch.__version__.partition('+')[0]}")
    print("\n| shape | precision | nodes | GB moved |\n|---|---|---:|---:|")
    for shape in select(parser.parse_args().shapes):
        for precision in DTYPES:
            nodes = meta_step(shape, precision)
            print(f"| {shape.name} | {precision} | {len(nodes.operations):,} | {nodes.bytes / 1e9:.2f} |", flush=True)


if __name__ == "__main__":
    main()
