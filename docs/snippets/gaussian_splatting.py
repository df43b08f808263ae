import torch

import fused_optim


def with_new_rows(optimizer, group, rows):
    """Appends rows to a group's one tensor, with moments of zero, as densification does."""
    old = group["params"][0]
    new = torch.cat([old.detach(), rows]).requires_grad_()
    state = optimizer.state.pop(old, {})
    for name, value in state.items():
        if torch.is_tensor(value) and value.shape == old.shape:
            state[name] = torch.cat([value, torch.zeros_like(rows)])
    optimizer.state[new] = state
    group["params"][0] = new
    return new


points = {
    "means": torch.randn(1000, 3).requires_grad_(),
    "scales": torch.randn(1000, 3).requires_grad_(),
    "opacities": torch.randn(1000).requires_grad_(),
}
rates = {"means": 1.6e-4, "scales": 5e-3, "opacities": 5e-2}
optimizer = fused_optim.Adam(
    [{"params": [p], "lr": rates[name], "name": name} for name, p in points.items()], eps=1e-15
)

for _ in range(4):
    sum(p.square().sum() for p in points.values()).backward()
    optimizer.step()
    optimizer.zero_grad()
    for group in optimizer.param_groups:
        shape = points[group["name"]].shape
        points[group["name"]] = with_new_rows(optimizer, group, torch.randn(100, *shape[1:]))
print({name: tuple(p.shape) for name, p in points.items()})
