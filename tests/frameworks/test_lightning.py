"""Lightning: mixed precision with clipping, and what its wrapper of an optimizer shows."""

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, TensorDataset

import fused_optim

EPOCHS = 2


class Regression(lightning.LightningModule):
    def __init__(self, optimizer, **options):
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
        )
        self.optimizer, self.options = optimizer, options

    def training_step(self, batch):
        inputs, targets = batch
        return torch.nn.functional.mse_loss(self.model(inputs), targets)

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=1e-2, **self.options)


class Manual(Regression):
    """Clips inside the step, asked for through Lightning's wrapper."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.automatic_optimization = False
        self.seen = []

    def training_step(self, batch):
        optimizer = self.optimizers()
        optimizer.max_grad_norm = 0.1
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch))
        optimizer.step()
        self.seen.append((optimizer.max_grad_norm, optimizer.grad_norm, optimizer.fallback_reason))


def train(module, folder, **options):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 8, generator=generator)
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(data, batch_size=16))
    return module


def mixed():
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


def assert_same(ours, theirs, tolerance=1e-5):
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cls", ["AdamW", "SGD", "RMSprop"])
def test_mixed_precision_with_clipping(cls, tmp_path):
    options = {"plugins": [mixed()], "gradient_clip_val": 0.1}
    ours = train(Regression(getattr(fused_optim, cls)), tmp_path, **options)
    options["plugins"] = [mixed()]
    theirs = train(Regression(getattr(torch.optim, cls), foreach=False), tmp_path, **options)
    assert_same(ours, theirs, 1e-3)
    assert ours.trainer.optimizers[0].fallback_reason is None


def test_mixed_precision_clipped_inside_the_step(tmp_path):
    ours = train(Regression(fused_optim.AdamW, max_grad_norm=0.1), tmp_path, plugins=[mixed()])
    theirs = train(
        Regression(torch.optim.AdamW, foreach=False), tmp_path, plugins=[mixed()],
        gradient_clip_val=0.1,
    )  # fmt: skip
    assert_same(ours, theirs, 1e-3)
    assert ours.trainer.optimizers[0].grad_norm > 0.1


def test_who_clips_inside_the_step_does_not_clip_outside(tmp_path):
    module = Regression(fused_optim.AdamW, max_grad_norm=0.1)
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        train(module, tmp_path, plugins=[mixed()], gradient_clip_val=0.1)


def test_the_wrapper_reaches_the_optimizer(tmp_path):
    ours = train(Manual(fused_optim.AdamW), tmp_path)
    theirs = train(Regression(torch.optim.AdamW, foreach=False), tmp_path, gradient_clip_val=0.1)
    assert len(ours.seen) == EPOCHS * 4
    for max_grad_norm, grad_norm, reason in ours.seen:
        assert max_grad_norm == 0.1 and grad_norm is not None and reason is None
    assert_same(ours, theirs)
    assert ours.trainer.optimizers[0].max_grad_norm == 0.1
