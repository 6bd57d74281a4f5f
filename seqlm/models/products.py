"""The one place that multiplies matrices: in which precision and by which library.

Products are the only operations that may run in a lower precision than the model's own (``train.precision``).
Parameters, states and everything point-wise keep the type of the parameters. With bf16 products:

- Both operands are rounded to bf16 (8 bits, relative error at most 2^-8), in the backward pass too.
- Sums are float32. The product of two bf16 numbers has 16 bits, so only additions round.
- On a GPU the result is float32 (``out_dtype`` of ``torch.mm`` and ``torch.bmm``, from PyTorch 2.8 on).
- On a CPU the finished float32 sum is rounded to bf16 once, and then stored as float32. PyTorch has no bf16 product
  with a float32 result on a CPU. docs/project/decisions/products.md has the measurements.
- Additions are operations of their own: some versions of ``torch.addmm`` refuse to add a float32 matrix to such a
  product.

On a CPU, float32 products of two matrices go through oneDNN where it is the faster library
(:func:`seqlm.machine.matmul_library`), by the operator that ``torch.compile`` emits: ``torch.mm`` always takes BLAS.
"""

import functools
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from seqlm import machine
from seqlm.config import Precision
from seqlm.errors import BackendError

MANY_STEPS = 8
"""Repetitions from which preparing a weight pays."""
PACKED_SIZE = 1024
"""Width and height from which oneDNN's packed form beats any library's product (benchmarks/results)."""
PACKED_ROWS = 64
"""Rows up to which it does."""

AMPERE = (8, 0)
"""First compute capability with TF32 and bf16 products."""

CACHE_LINE_BYTES = 64
MANY_ROWS = 128
"""Rows of a result from which the alignment of each pays for a copy."""


def use_precision(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Prepare this process for ``precision``; return the type of product operands (``None``: that of the parameters).

    Raises:
        BackendError: the device has no instructions for it. Nothing is emulated.
    """
    on_gpu = device.type == "cuda"
    is_ampere = on_gpu and torch.cuda.get_device_capability(device) >= AMPERE
    has = {"fp32": True, "tf32": is_ampere, "bf16": is_ampere or (not on_gpu and machine.has_bf16())}
    if not has[precision]:
        needed = "an NVIDIA GPU of compute capability 8.0 or more"
        if precision == "bf16":
            needed = f"a processor with bf16 instructions ({' or '.join(machine.BF16_FLAGS)}) or {needed}"
        found = torch.cuda.get_device_name(device) if on_gpu else machine.cpu_model()
        raise BackendError(f'train.precision = "{precision}" needs {needed}, found {found}; use "fp32"')
    set_switches(precision)
    return torch.bfloat16 if precision == "bf16" else None


def set_switches(precision: Precision) -> None:
    """Tell the libraries of this process which shortcuts products may take: TF32 for ``tf32``, none otherwise.

    Our models use no cuDNN. Its recurrent layers have a TF32 switch of their own, which is on by default and which
    ``torch.set_float32_matmul_precision`` leaves alone; comparisons with ``torch.nn`` need both. Both are PyTorch's
    older switches: PyTorch 2.9 and later raise an error if older and newer ones are mixed, and 2.8 has only these.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # Without this, cuBLAS may add up parts of a bf16 product in bf16.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def apply(function: type[Function], *arguments: Any) -> Tensor:
    """``function.apply(*arguments)`` with a type: torch annotates neither the call nor its result."""
    result: Tensor = function.apply(*arguments)
    return result


LinearMap: TypeAlias = Any
"""A layer W x + b with its ``weight`` and ``bias``: ``nn.Linear``, or one that shares its matrix. Modules of PyTorch
keep both where checks of protocols do not look."""


def linear(layer: LinearMap, x: Float[Tensor, "*shape D"], dtype: torch.dtype | None = None) -> Tensor:
    """Return W x + b (*shape, H) in the type of ``x``, with the product in ``dtype`` (``None``: that of ``x``).

    Can be differentiated any number of times. A model of your own gets our products by it, in place of ``layer(x)``.
    """
    dtype = dtype or x.dtype
    if dtype == x.dtype and not _by_onednn(x, dtype):
        result: Tensor = layer(x)
        return result
    multiplied = rounded_product(x.reshape(-1, x.shape[-1]), layer.weight.t(), dtype).view(*x.shape[:-1], -1)
    return multiplied if layer.bias is None else multiplied + layer.bias


def rounded_product(a: Float[Tensor, "I K"], b: Float[Tensor, "K J"], dtype: torch.dtype) -> Float[Tensor, "I J"]:
    """Return a b in the type of ``a``, with the product in ``dtype``.

    Can be differentiated any number of times. The products of its derivatives are rounded as this one is.
    """
    return a @ b if dtype == a.dtype and not _by_onednn(a, dtype) else apply(_RoundedProduct, a, b, dtype)


@final
class _RoundedProduct(Function):
    """With the gradient g of a b: the gradient of a is g b^T, that of b is a^T g."""

    @staticmethod
    def forward(ctx: Any, a: Float[Tensor, "I K"], b: Float[Tensor, "K J"], dtype: torch.dtype) -> Float[Tensor, "I J"]:
        ctx.save_for_backward(a, b)
        ctx.dtype = dtype
        return product(a.to(dtype), b.to(dtype), a.dtype)

    @staticmethod
    def backward(ctx: Any, g: Float[Tensor, "I J"]) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        for_a, for_b, _ = ctx.needs_input_grad
        d_a = rounded_product(g, b.t(), ctx.dtype) if for_a else None
        d_b = rounded_product(a.t(), g, ctx.dtype) if for_b else None
        return d_a, d_b, None


def product(
    a: Float[Tensor, "*batch I K"],
    b: Float[Tensor, "*batch K J"],
    dtype: torch.dtype,
    added: Float[Tensor, "*rows J"] | None = None,
) -> Float[Tensor, "*batch I J"]:
    """Return a b + ``added``, of matrices or batches of them: operands in their own type, the sum in ``dtype``.

    ``added`` is a bias (J,) or, of matrices alone, a matrix (I, J). The result of a transposed ``a`` may be transposed
    itself. Autograd does not see the product (see :func:`rounded_product`).
    """
    if a.dim() == 2 and _by_onednn(a, dtype):
        # oneDNN copies a first operand that is transposed. In reverse order, the product of the transposed matrices
        # copies the other operand, and who needs the result in rows copies that.
        if added is None and a.t().is_contiguous() and b.numel() + a.shape[0] * b.shape[1] < a.numel():
            return _onednn(b.t(), a).t()
        return _onednn(a, b.t(), added)
    if a.dtype == dtype:
        room = _aligned_room(a, b)
        return (torch.matmul(a, b, out=room) if added is None else torch.addmm(added, a, b, out=room)).contiguous()
    if _stores_full_results(a.device):
        full: Tensor = (torch.mm if a.dim() == 2 else torch.bmm)(a, b, out_dtype=dtype)
        return full if added is None else full.add_(added)
    return (a @ b).to(dtype) if added is None else (a @ b) + added


def accumulate(a: Float[Tensor, "I K"], b: Float[Tensor, "K J"], out: Float[Tensor, "I J"]) -> None:
    """``out`` <- out + a b; operands in their own type, summed in that of ``out``."""
    if a.dtype == out.dtype and not _by_onednn(a, out.dtype) and _aligned_room(a, b) is None:
        out.addmm_(a, b)
    else:
        out.add_(product(a, b, out.dtype))


def _onednn(x: Float[Tensor, "I K"], W: Tensor, added: Float[Tensor, "*rows J"] | None = None) -> Tensor:
    """X W^T + ``added``. W (J, K) may be packed, or have any strides."""
    linear = torch.ops.mkldnn._linear_pointwise
    if added is None or added.dim() == 1:
        result: Tensor = linear(x, W, added, "none", [], "")
    else:
        result = linear.binary(x, added, W, None, "add")
    return result


def _by_onednn(a: Tensor, dtype: torch.dtype) -> bool:
    """Whether a product with ``a`` and a result in ``dtype`` is one of float32 that oneDNN computes."""
    return a.device.type == "cpu" and a.dtype == dtype == torch.float32 and fp32_library() == "onednn"


@functools.cache
def fp32_library() -> str:
    """``onednn`` or ``blas``: the library of this process for float32 products on the CPU."""
    return "blas" if onednn_fault(torch.float32) else machine.matmul_library()


@functools.cache
def onednn_fault(dtype: torch.dtype) -> str | None:
    """Why this process cannot use oneDNN for products of ``dtype``. ``None``: it can.

    PyTorch does not promise that its operators stay. So they multiply small whole numbers, exact in any order of
    summation, and are compared with BLAS.
    """
    h, W, added = (torch.arange(rows * 8, dtype=dtype, device="cpu").view(rows, 8) % 5 for rows in (3, 8, 3))
    exact = [h @ W.t(), h @ W.t() + added[0], h @ W.t() + added]
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(W, len(h))
        found = [_onednn(h, form, other) for form in (W, packed) for other in (None, added[0], added)]
    except (AttributeError, RuntimeError, TypeError) as error:
        return f"{error}".partition("\n")[0]
    return None if all(map(torch.equal, found, exact * 2)) else "it multiplies wrongly"


def _stores_full_results(device: torch.device) -> bool:
    """Whether products there take ``out_dtype``; ``use_precision`` refuses bf16 on a GPU if PyTorch lacks it."""
    return device.type == "cuda"


def _aligned_room(a: Float[Tensor, "*batch I K"], b: Float[Tensor, "*batch K J"]) -> Tensor | None:
    """Room for a b in which each row begins where a cache line does. ``None``: it does anyway, or does not matter.

    MKL is slow with a result of any other width: 107 instead of 148 GFLOP/s for 10,000 rows of 1,500 float32 numbers on
    an AVX2 processor (operands may be as they like). A product into aligned rows and a copy cost less.
    """
    per_line = CACHE_LINE_BYTES // a.element_size()
    rows, width = a.shape[-2], b.shape[-1]
    if a.device.type != "cpu" or a.dim() != 2 or width % per_line == 0 or rows < MANY_ROWS:
        return None
    return a.new_empty(rows, -(-width // per_line) * per_line)[:, :width]


@final
class RepeatedProduct:
    """The product of few rows with one matrix, h W^T, done once for every time step of a window.

    A general product rearranges W in memory each time it is called, which at 20 rows costs as much as the arithmetic.
    W stays the same for a whole window, so it is prepared once: on a CPU, matrices that are large, or that oneDNN
    multiplies anyway, go into its own layout (no public call does that); others are transposed.

    ``weight`` is W (H, K), in the type of the results. Operands are rounded to ``dtype``. Each factor h is (rows, K),
    and there will be ``steps`` of them.
    """

    def __init__(self, weight: Float[Tensor, "H K"], dtype: torch.dtype, rows: int, steps: int) -> None:
        self._result_dtype = weight.dtype
        weight = weight.to(dtype)
        self._packed: Tensor | None = None
        if steps >= MANY_STEPS and rows <= PACKED_ROWS and _can_be_packed(weight):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        else:
            small = max(weight.shape) < PACKED_SIZE
            self._transposed = weight.t().contiguous() if small and steps >= MANY_STEPS else weight.t()
        self.overwrites = self._packed is None and dtype == self._result_dtype
        """Whether :meth:`plus` leaves its result in ``other``."""

    def plus(self, h: Float[Tensor, "rows K"], other: Float[Tensor, "rows H"] | None = None) -> Float[Tensor, "rows H"]:
        """``other`` + h W^T, summed in the type of ``other``, and in its memory if that saves a copy."""
        if self._packed is None:
            if other is not None and self.overwrites:
                return torch.addmm(other, h, self._transposed, out=other)
            return product(h, self._transposed, self._result_dtype, other)
        if other is None:
            return _onednn(h, self._packed).to(self._result_dtype)
        return _onednn(h, self._packed, other) if h.dtype == other.dtype else _onednn(h, self._packed) + other


def _can_be_packed(weight: Tensor) -> bool:
    """Whether oneDNN has a packed product for it that is the faster one; float64 and other devices have none."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and (min(weight.shape) >= PACKED_SIZE or _by_onednn(weight, weight.dtype))
        and onednn_fault(weight.dtype) is None
    )
