"""What loading a checkpoint into 8-bit states takes for a while."""

import benchmark_runs  # noqa: F401 (makes the benchmarks importable)
import torch
from coded import make, step

import fused_optim
from benchmarks.memory import profiled


def test_loading_takes_no_more_than_one_tensor_beside():
    """Tensor by tensor: what stays is two bytes an element of moments, and what comes and goes one
    tensor in float32, whatever the parameter's dtype."""
    shape, count = (1000, 200), 6
    _, wide = make(fused_optim.AdamW, [shape] * count, state_dtype=None)
    step(wide)
    saved = wide.state_dict()
    _, optimizer = make(fused_optim.AdamW, [shape] * count, torch.bfloat16)
    peak, _ = profiled(lambda: optimizer.load_state_dict(saved), "cpu")
    size = 1000 * 200
    assert count * 2 * size <= peak <= count * 2.1 * size + 4.2 * size
