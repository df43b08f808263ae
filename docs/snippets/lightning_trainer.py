import lightning
import torch
from torch import nn

import fused_optim


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1))

    def training_step(self, batch, index):
        inputs, targets = batch
        return nn.functional.mse_loss(self.layers(inputs), targets)

    def configure_optimizers(self):
        options = {"max_grad_norm": 1.0, "ema_decay": 0.99}
        return fused_optim.AdamW(self.parameters(), lr=1e-3, **options)


model = Net()
inputs = torch.randn(64, 8)
targets = inputs.sum(dim=1, keepdim=True)
data = torch.utils.data.TensorDataset(inputs, targets)
trainer = lightning.Trainer(
    max_epochs=2,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=16))

optimizer = trainer.optimizers[0]
print("norm before clipping:", optimizer.grad_norm.item())
with optimizer.ema_parameters():
    print("with averages:", nn.functional.mse_loss(model.layers(inputs), targets).item())
