"""Sharded parameters for tests: the same values on every rank, and the whole tensors beside."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import Parameter

SHAPES = [(7, 3), (8,), (1, 5), (4, 4), ()]


def line():
    """A mesh of all ranks in one dimension."""
    return init_device_mesh("cpu", (dist.get_world_size(),))


def whole(shapes=SHAPES, dtype=torch.float32, seed=0):
    """Tensors with the same values on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def placed(tensor, mesh, placements):
    return distribute_tensor(tensor, mesh, placements)


def placements_for(tensor, mesh):
    """Sharded in its first dimension where it has one."""
    from torch.distributed.tensor import Replicate

    return [Shard(0) if tensor.dim() else Replicate() for _ in range(mesh.ndim)]


def make(mesh, shapes=SHAPES, dtype=torch.float32, placements=None):
    """Parameters, and this rank's parts of them as plain parameters."""
    tensors = whole(shapes, dtype)
    sharded = [Parameter(placed(t, mesh, placements or placements_for(t, mesh))) for t in tensors]
    return sharded, [Parameter(p.detach().to_local().clone()) for p in sharded]


def set_grads(params, plain=(), seed=1, scale=1.0):
    """The same gradients for both; returns the whole ones."""
    grads = [g * scale for g in whole([p.shape for p in params], params[0].dtype, seed=100 + seed)]
    for p, g in zip(params, grads, strict=True):
        p.grad = placed(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g.clone()
    for q, p in zip(plain, params, strict=False):
        q.grad = local(p.grad).clone()
    return grads


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def model_with_gradients():
    """A plain model, with the same values on every rank."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2))
    model(torch.ones(3, 4)).sum().backward()
    return model


def snapshot(optimizer):
    """This rank's parts of parameters and states, and the names of those."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [
        [local(p.detach()).clone()]
        + [(k, local(v).clone()) for k, v in sorted(optimizer.state.get(p, {}).items())]
        for p in params
    ]


def assert_same(a, b):
    assert repr(a) == repr(b)
    for one, other in zip(a, b, strict=True):
        for x, y in zip(one, other, strict=True):
            x, y = (v[1] if isinstance(v, tuple) else v for v in (x, y))
            assert torch.equal(x, y)
