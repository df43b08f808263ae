import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import fused_optim

dist.init_process_group("gloo")  # "nccl" on GPUs
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1))
mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))  # "cuda" on GPUs
fully_shard(model, mesh=mesh)
# After fully_shard, which replaces the parameters.
optimizer = fused_optim.AdamW(model.parameters(), lr=1e-3, max_grad_norm=1.0, ema_decay=0.999)

torch.manual_seed(dist.get_rank())  # each rank has its own data
for _ in range(5):
    inputs = torch.randn(16, 8)
    nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True)).backward()
    optimizer.step()
    optimizer.zero_grad()

weight = model[0].weight
if dist.get_rank() == 0:
    print("norm before clipping, the same on all ranks:", optimizer.grad_norm.item())
    print("the average is placed as", optimizer.state[weight]["ema"].placements)
dist.destroy_process_group()
