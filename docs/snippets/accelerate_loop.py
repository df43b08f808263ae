import torch
from accelerate import Accelerator
from torch import nn

import fused_optim

accelerator = Accelerator(cpu=True)
model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1))
optimizer = fused_optim.AdamW(model.parameters(), lr=1e-3, max_grad_norm=1.0, zero_grads=True)
inputs = torch.randn(64, 8)
data = torch.utils.data.TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))
loader = torch.utils.data.DataLoader(data, batch_size=16)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

for batch, targets in loader:
    loss = nn.functional.mse_loss(model(batch), targets)
    accelerator.backward(loss)
    optimizer.step()  # clips and zeroes: no accelerator.clip_grad_norm_, no zero_grad()
    print(loss.item(), optimizer.optimizer.grad_norm.item())
