"""Our optimizer with step options, and beside it torch's with the calls that they stand for."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from twins import CASES, TORCH, case_id, copies, make_params

SHAPES = [(5, 7), (33,), (), (2000,), (0,)]
ALL = {"max_grad_norm": 0.5, "skip_nonfinite": True, "zero_grads": True, "ema_decay": 0.75}
#: The kernels, and what takes the parent's path: asked for, or parameters not dense in memory.
PATHS = ["kernels", "foreach", "sliced"]
#: Every set of options in the kernels, one of each class elsewhere: the update there is torch's.
CASES_AND_PATHS = [(case, "kernels") for case in CASES] + [
    (case, path) for case in dict(CASES).items() for path in PATHS[1:]
]


def case_and_path_id(value):
    return value if isinstance(value, str) else case_id(value)


class TorchRecipe:
    """torch's calls, in the order in which training code makes them."""

    def __init__(
        self, params, optimizer,
        max_grad_norm=None, skip_nonfinite=False, zero_grads=False, ema_decay=None,
    ):  # fmt: skip
        self.params, self.optimizer = params, optimizer
        self.max_grad_norm, self.skip_nonfinite = max_grad_norm, skip_nonfinite
        self.zero_grads = zero_grads
        self.averaged = self.grad_norm = None
        self.skipped_steps = 0
        if ema_decay is not None:
            average = get_ema_multi_avg_fn(ema_decay)
            self.averaged = AveragedModel(torch.nn.ParameterList(params), multi_avg_fn=average)

    def step(self):
        grads = [p.grad for p in self.params if p.grad is not None]
        is_finite = all(grad.isfinite().all() for grad in grads)
        if self.max_grad_norm is not None:
            # The update's own copies: p.grad stays as it is.
            for p in self.params:
                p.grad = None if p.grad is None else p.grad.clone()
            self.grad_norm = torch.nn.utils.clip_grad_norm_(self.params, self.max_grad_norm)
        if self.skip_nonfinite and not is_finite:
            self.skipped_steps += 1
        else:
            self.optimizer.step()
            if self.averaged is not None:
                self.averaged.update_parameters(torch.nn.ParameterList(self.params))
        if self.zero_grads:
            self.optimizer.zero_grad(set_to_none=False)

    @property
    def averages(self):
        return list(self.averaged.module.parameters())


def sliced(p):
    """A parameter with the same values that is not dense in memory."""
    wide = torch.zeros(*p.shape, 3, dtype=p.dtype)
    wide[..., 1] = p.detach()
    return wide[..., 1].detach().requires_grad_()


def recipes(cls, options, asked, path="kernels", shapes=SHAPES, dtype=torch.float64):
    """Our optimizer with the options asked for, and torch's calls on equal parameters."""
    params = make_params(shapes, dtype)
    others = copies(params)
    if path == "sliced":
        params = [sliced(p) for p in params]
    foreach = {"foreach": True} if path == "foreach" else {}
    ours = cls(params, **options, **foreach, **asked)
    foreach = {"foreach": path == "foreach"}  # whose numbers, of ASGD, are not the for-loop's
    theirs = TorchRecipe(others, TORCH[cls](others, **options, **foreach), **asked)
    return params, others, ours, theirs


def assert_same_averages(ours, theirs, rtol=1e-12, atol=1e-12):
    params = [p for group in ours.param_groups for p in group["params"]]
    for p, average in zip(params, theirs.averages, strict=True):
        mine = ours.state[p]["ema"] if "ema" in ours.state.get(p, {}) else p.detach()
        torch.testing.assert_close(mine, average.detach(), rtol=rtol, atol=atol, equal_nan=True)
