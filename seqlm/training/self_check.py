"""Check that the fused operations compute on this device what their equations say.

The fused operations compute one small window, and on a GPU so does a training step that is captured as a CUDA graph.
Loss, state and gradients are compared with those of the equations (:mod:`seqlm.models.reference`) in float64 on the
same device, with the same parameters and dropout masks. A check that has passed is kept in the cache folder, and
repeated for another device, driver, torch, library of products, precision, variant of the model, or code.

The error of a tensor is the largest deviation of any entry, relative to the largest entry of the exact tensor. Its
bound is :data:`HEADROOM` times::

    sqrt(d) (u + sqrt(n) 2^-24)

Operands rounded with unit roundoff u (:data:`ROUNDOFF`) change a product's result by about u, if signs are random. A
sum of n terms in fp32 rounds n times, which adds up to sqrt(n) 2^-24 if rounding errors are independent (Higham and
Mary, SIAM J. Sci. Comput. 41, 2019). The errors of d products in a row add up in the same way.

The largest errors over 20 seeds, measured on a processor with AVX-512 bf16, were 3 % of their bounds in fp32, 25 % in
TF32 (emulated by truncated operands) and 33 % in bf16.
"""

import contextlib
import gc
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqlm.architectures import BuiltInConfig, CustomConfig
from seqlm.config import Precision, RunConfig
from seqlm.data.cache import digest_key, find, store
from seqlm.environment import SELF_CHECK
from seqlm.errors import SelfCheckError
from seqlm.models import LanguageModel, build_model, build_reference, class_of
from seqlm.models.language_model import FusedModel
from seqlm.models.products import use_precision
from seqlm.reading import listed
from seqlm.training.capture import CaptureError, is_captured
from seqlm.training.distributed import Rank
from seqlm.training.step import numbers_of, still_step

HEADROOM = 5
"""How many times the expected error a tensor may be off."""
ROUNDOFF: dict[Precision, float] = {"fp32": 2**-24, "tf32": 2**-10, "bf16": 2**-9}
"""Unit roundoff of operands. TF32 keeps 10 bits after the leading one, and hardware may truncate."""
REPLAYS = 2
"""The second one shows whether a replay depends on memory that the first has left."""
KIND = "self-check"
"""Folder of the cache in which passed checks are kept."""
VOCAB = 200
SEED = 1
AWAY_FROM_ZERO = 5.0
"""Bias, with either sign, in front of a relu: about five standard deviations of its input. A pre-activation whose sign
depends on rounding would change gradients by more than any bound."""
DRIVER = Path("/proc/driver/nvidia/version")


class Case(NamedTuple):
    """A model with fused operations and a window (T, B), both small."""

    model: BuiltInConfig
    steps: int
    columns: int
    products: int
    """Those in a row of a forward pass."""

    def bound(self, precision: Precision) -> float:
        """Largest error that a tensor may have (see the module)."""
        terms = max(self.steps * self.columns, self.model.hidden_size)
        return HEADROOM * math.sqrt(2 * self.products) * (ROUNDOFF[precision] + math.sqrt(terms) * ROUNDOFF["fp32"])


def cases(config: BuiltInConfig) -> list[Case]:
    """Return what is checked for models like ``config``. A window has more tokens than a chunk of the output loss."""
    model = class_of(config)
    return [Case(*shapes) for shapes in model.self_check_shapes(config)] if issubclass(model, FusedModel) else []


def check_device(config: RunConfig, rank: Rank) -> None:
    """Check what the run of ``config`` uses, unless that has passed on this kind of device before.

    Only the first rank checks, and of a user's own model nothing. Random generators are left as they were, and on a GPU
    no memory stays reserved. With ``SEQLM_SELF_CHECK=warn``, a check that fails is a line in the log.

    Raises:
        SelfCheckError: a tensor is further off than its bound.
        BackendError: the device does not have the precision of the run.
    """
    model, precision = config.model, config.train.precision
    if not rank.is_first or isinstance(model, CustomConfig):
        return
    unknown = [case for case in cases(model) if find(KIND, digest_key(_identity(case, precision, rank))) is None]
    for case in unknown:
        try:
            check_case(case, precision, rank)
        except SelfCheckError as error:
            if SELF_CHECK.read() == "stop":
                advice = 'use another device, train.precision = "fp32" or seqlm/models/reference.py'
                raise SelfCheckError(f"{error}; {advice}; {SELF_CHECK.name}=warn trains all the same") from None
            print(f"warning: {error}; trains all the same, since {SELF_CHECK.name} is warn", flush=True)


def check_case(case: Case, precision: Precision, rank: Rank) -> float:
    """Check one case, or raise, and keep that it has passed. Return the largest error as a share of the bound."""
    bound, largest = case.bound(precision), 0.0
    with _undisturbed(rank.device):
        torch.manual_seed(SEED)
        fused = _draw_model(case, use_precision(precision, rank.device)).to(rank.device)
        fused.mask_key = torch.tensor(SEED, device=rank.device)
        torch.manual_seed(SEED)
        masks = list(fused.masks(case.steps, case.columns))
        exact = _compute(build_reference(fused, case.model, masks).double(), case, captured=False)
        for captured in (False, True) if is_captured(rank) else (False,):
            try:
                errors = _errors(_compute(fused, case, captured=captured), exact)
            except CaptureError:  # the run's own capture fails too, and it trains without one
                break
            if found := _worst(errors, bound):
                what = f"{case.model.arch}{' as a CUDA graph' * captured}, {found}, in {precision}"
                limit = f"expected an error of at most {bound:.2g} of the largest entry, found {errors[found]:.2g}"
                raise SelfCheckError(f"self-check on {rank.device_name}: {what}: {limit}")
            largest = max(largest, *errors.values())
    identity = _identity(case, precision, rank)
    store(KIND, digest_key(identity), {}, {**identity, "largest_error": largest, "bound": bound})
    return largest / bound


def _draw_model(case: Case, dtype: torch.dtype | None) -> FusedModel:
    """A model with random parameters, none of which is at a neutral value."""
    model = build_model(case.model, VOCAB, case.steps, dtype)
    assert isinstance(model, FusedModel), "it has shapes for the self-check"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.W_1.bias"):
                parameter[::2] += AWAY_FROM_ZERO
                parameter[1::2] -= AWAY_FROM_ZERO
            elif parameter.dim() == 1:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.1, 0.1))
    return model


def _compute(model: LanguageModel, case: Case, *, captured: bool) -> dict[str, Tensor]:
    """What a training step on the window of a case computes, by name."""
    draw = torch.Generator().manual_seed(SEED)
    inputs, targets = torch.randint(VOCAB, (2, case.steps, case.columns), generator=draw).to(model.device)
    start = model.initial_state(case.columns)
    state = (2 * torch.rand(start.shape, generator=draw) - 1).to(start)
    step = still_step(model, case.steps * case.columns, capture=captured)
    for _ in range(REPLAYS if captured else 1):
        torch.manual_seed(SEED)  # the same dropout masks each time
        found = numbers_of(step, inputs, targets, state)
    return found


def _errors(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """The error of each tensor.

    The gradient of a bias is compared with the weight's too, if the layer has a weight of its own. That of the keys'
    bias is zero: it shifts all scores of a query by the same amount.
    """
    errors = []
    for name, wanted in exact.items():
        largest = wanted.abs().max()
        weight = exact.get(f"{name.removesuffix('bias')}weight")
        if name.endswith(".bias") and weight is not None:
            largest = torch.maximum(largest, weight.abs().max())
        errors.append((found[name].double() - wanted).abs().max() / largest)
    return dict(zip(exact, torch.stack(errors).tolist(), strict=True))


def _worst(errors: Mapping[str, float], bound: float) -> str | None:
    """The tensor to report; ``None``: all are within the bound. A wrong forward pass makes all gradients wrong."""
    wrong = {name: error if math.isfinite(error) else math.inf for name, error in errors.items() if not error <= bound}
    forward = (name for name in reversed(wrong) if not name.startswith("the gradient"))
    return next(forward, max(wrong, key=wrong.__getitem__, default=None))


@contextlib.contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Restore random generators after the block, and give back the memory of a GPU that it has taken."""
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            yield
        return
    with torch.random.fork_rng(devices=[device]), torch.cuda.device(device):
        yield
        gc.collect()  # a captured step refers to itself
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _identity(case: Case, precision: Precision, rank: Rank) -> dict[str, Any]:
    """What a check that has passed is kept for."""
    return {
        "model": asdict(case.model),
        "steps": case.steps,
        "columns": case.columns,
        "precision": precision,
        "device": rank.device_name,
        "instructions": rank.instructions,
        "driver": _driver(rank.device),
        "torch": torch.__version__,
        "matmul": rank.matmul,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "code": _code_digest(),
    }


def _driver(device: torch.device) -> str:
    """The driver's version; empty for a processor."""
    if device.type == "cpu":
        return ""
    try:
        return DRIVER.read_text("utf-8").partition("\n")[0]
    except OSError:  # the WSL has none
        return ""


def _code_digest() -> str:
    """SHA-256 of the source of the models and of what this check calls."""
    here = Path(__file__)
    files = [*listed(here.parents[1] / "models", "*.py"), here, here.with_name("step.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
