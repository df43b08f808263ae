import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import fused_optim

dist.init_process_group("gloo")  # "nccl" on GPUs
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1))
model = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
optimizer = fused_optim.AdamW(
    model.parameters(),
    lr=1e-3,
    max_grad_norm=1.0,
    norm_group=dist.group.WORLD,  # over whose ranks the parameters are sharded
)

torch.manual_seed(dist.get_rank())  # each rank has its own data
for _ in range(5):
    inputs = torch.randn(16, 8)
    nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True)).backward()
    optimizer.step()
    optimizer.zero_grad()

if dist.get_rank() == 0:
    print("norm before clipping, the same on all ranks:", optimizer.grad_norm.item())
dist.destroy_process_group()
