import deepspeed
import torch
from torch import nn

import fused_optim

model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1))
config = {
    "train_batch_size": 16,
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,  # without it DeepSpeed takes its own optimizers only
    "gradient_clipping": 1.0,  # DeepSpeed's: a rank's optimizer sees a part of the gradients
}
engine, *_ = deepspeed.initialize(
    model=model, optimizer=fused_optim.AdamW(model.parameters(), lr=1e-3), config=config
)
batch = engine.train_micro_batch_size_per_gpu()
for _ in range(3):
    inputs = torch.randn(batch, 8)
    loss = nn.functional.mse_loss(engine(inputs), inputs.sum(dim=1, keepdim=True))
    engine.backward(loss)
    engine.step()
print("norm before clipping:", float(engine.get_global_grad_norm()))
