"""How far each implementation is from the exact result: nobody is fast by being wrong."""

import math
from typing import Any

import torch

from benchmarks.kept import FLOAT32, Kept
from benchmarks.peers import FOR_LOOP, OPTIMIZERS, OURS, PARENTS, implementations

STEPS = 100
#: The first is large enough for 8-bit optimizers to keep their states in 8 bits.
SHAPES = [(128, 64), (1000,), (7,)]
#: Times torch's own float32 error from which on a result counts as wrong, not as rounded.
WRONG = 20.0
#: The share of the largest way of a parameter beyond which one counts as wrong whose states have
#: fewer bits: 8 of them leave a twentieth of what a single step does.
WRONG_WITH_FEW_BITS = 0.1


def _trajectory(optimizer: Any, params: list[torch.Tensor]) -> list[torch.Tensor]:
    """The parameters after 100 steps with the same random gradients for everyone."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        for p in params:
            grad = torch.randn(p.shape, dtype=torch.float64, generator=generator)
            p.grad = grad.to(p.device, p.dtype)
        optimizer.step()
    return [p.detach().double().cpu() for p in params]


def _params(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(s, generator=generator) for s in SHAPES]
    return [s.to(device, dtype).requires_grad_() for s in starts]


def measure_accuracy(
    optimizer: str, device: str, compiled: bool = True, kept: Kept = FLOAT32
) -> dict[str, dict[str, Any]]:
    """Each implementation's largest error in float32 after 100 steps, against torch's for-loop
    in float64.

    Returns:
        By name, ``error`` (None with the reason as ``failed``) and ``wrong``: whether the error
        is more than rounding makes, by torch's own for-loop in float32; of states in fewer bits,
        more than a part of what the parameters move.
    """
    class_name, options, _ = OPTIMIZERS[optimizer]
    exact_params = _params("cpu", torch.float64)
    torch_class = PARENTS[class_name]
    exact = _trajectory(torch_class(exact_params, foreach=False, **options), exact_params)
    rows: dict[str, dict[str, Any]] = {}
    for implementation in implementations(optimizer, device, compiled, kept):
        params = _params(device, torch.float32)
        try:
            found = _trajectory(implementation.build([{"params": params}]), params)
        except Exception as error:  # a peer that fails is reported, the run goes on
            rows[implementation.name] = {"error": None, "wrong": False, "failed": repr(error)}
            continue
        pairs = zip(found, exact, strict=True)
        largest = max(float((a - b).abs().max()) for a, b in pairs)
        rows[implementation.name] = {"error": largest, "wrong": False}
    starts = zip(exact, _params("cpu", torch.float64), strict=True)
    way = max(float((a - b.detach()).abs().max()) for a, b in starts)
    for name, row in rows.items():
        if row["error"] is not None:
            has_few_bits = "8-bit" in name or (name == OURS and kept.state_dtype is not None)
            most = WRONG_WITH_FEW_BITS * way if has_few_bits else WRONG * rows[FOR_LOOP]["error"]
            row["wrong"] = not row["error"] <= most or math.isnan(row["error"])
    return rows
