import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fused_optim

dist.init_process_group("gloo")  # "nccl" on GPUs
torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1)))
optimizer = fused_optim.AdamW(model.parameters(), lr=1e-3, max_grad_norm=1.0, zero_grads=True)

torch.manual_seed(dist.get_rank())  # each rank has its own data
for _ in range(5):
    inputs = torch.randn(16, 8)
    nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True)).backward()
    optimizer.step()

if dist.get_rank() == 0:
    print("norm before clipping:", optimizer.grad_norm.item())
dist.destroy_process_group()
