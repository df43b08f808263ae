"""The loops that PyTorch's tutorials teach: the same numbers as torch.optim, step by step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from twins import FUSED, TORCH

import fused_optim

#: float32 losses and weights over a few hundred steps; both sides round differently (measured
#: 3e-6 at most, where nothing chaotic amplifies it).
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def train(optim, model_factory, data, loss_function, make_optimizer, epochs):
    """The tutorial's loop; returns losses and final parameters."""
    torch.manual_seed(0)
    model = model_factory()
    optimizer = make_optimizer(optim, model.parameters())
    losses = []
    for _ in range(epochs):
        for x, y in data:
            optimizer.zero_grad()
            loss = loss_function(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    if optim is fused_optim:
        assert optimizer.fallback_reason is None
    return torch.stack(losses), [p.detach() for p in model.parameters()]


def assert_same_training(*args, **kwargs):
    losses, params = train(fused_optim, *args, **kwargs)
    torch_losses, torch_params = train(torch.optim, *args, **kwargs)
    torch.testing.assert_close(losses, torch_losses, **CLOSE)
    for p, q in zip(params, torch_params, strict=True):
        torch.testing.assert_close(p, q, **CLOSE)
    return losses, params


def test_line():
    """y = 2x + 1 with SGD(lr=0.01) for 100 epochs."""
    x = torch.linspace(-1, 1, 50).unsqueeze(1)
    losses, _ = assert_same_training(
        lambda: nn.Linear(1, 1),
        [(x, 2 * x + 1)],
        F.mse_loss,
        lambda optim, params: optim.SGD(params, lr=0.01),
        epochs=100,
    )
    assert losses[-1] < 0.5 * losses[0]


def test_binary_classifier():
    """The 10-5-1 net with BCE-with-logits."""
    x = torch.randn(64, 10, generator=torch.Generator().manual_seed(1))
    y = (x.sum(1, keepdim=True) > 0).float()
    losses, _ = assert_same_training(
        lambda: nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 1)),
        [(x, y)],
        F.binary_cross_entropy_with_logits,
        lambda optim, params: optim.Adam(params, lr=0.01),
        epochs=100,
    )
    assert losses[-1] < 0.5 * losses[0]


def test_one_step_by_hand():
    """y = 100 x from (1, 2): SGD(0.001) gives [0.9, 1.9]."""
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (100 * x).sum().backward()
    fused_optim.SGD([x], lr=0.001).step()
    torch.testing.assert_close(x.detach(), torch.tensor([0.9, 1.9]))


def test_polynomial():
    """3x² + y³ from (1, 2): SGD(0.1) gives (0.4, 0.8)."""
    x, y = (torch.tensor(v, requires_grad=True) for v in (1.0, 2.0))
    (3 * x**2 + y**3).backward()
    fused_optim.SGD([x, y], lr=0.1).step()
    torch.testing.assert_close(torch.stack([x, y]).detach(), torch.tensor([0.4, 0.8]))


def test_manual_update():
    """w -= lr * w.grad, bit for bit."""
    w = torch.randn(100, 30, requires_grad=True)
    v = w.detach().clone().requires_grad_()
    optimizer = fused_optim.SGD([v], lr=0.05)
    for _ in range(10):
        for tensor in (w, v):
            tensor.grad = None
            (tensor**2).mean().backward()
        with torch.no_grad():
            w -= 0.05 * w.grad
        optimizer.step()
    assert torch.equal(w.detach(), v.detach())


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_digit_classifier(name):
    """784-10, cross entropy."""
    generator = torch.Generator().manual_seed(2)
    data = [
        (torch.rand(32, 784, generator=generator), torch.randint(10, (32,), generator=generator))
        for _ in range(10)
    ]
    assert_same_training(
        lambda: nn.Linear(784, 10),
        data,
        F.cross_entropy,
        lambda optim, params: getattr(optim, name)(params, lr=0.01),
        epochs=5,
    )


class CifarNet(nn.Module):
    """Three convolutions of 32, 32 and 64 channels, kernel 5, then 1024-64-10."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 5, padding=2), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10))

    def forward(self, x):
        return self.head(self.convolutions(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda optim, p: optim.SGD(p, lr=0.01),
        lambda optim, p: optim.SGD(p, lr=0.01, momentum=0.9),
        lambda optim, p: optim.Adam(p, lr=0.001),
        lambda optim, p: optim.RMSprop(p, lr=0.0001),
    ],
    ids=["SGD", "SGD+momentum", "Adam", "RMSprop"],
)
def test_cifar_network(make):
    """Held to a float64 run: a ReLU-free net of max pools amplifies any float32 rounding."""
    generator = torch.Generator().manual_seed(3)
    data = [
        (
            torch.rand(8, 3, 32, 32, generator=generator, dtype=torch.float64),
            torch.randint(10, (8,), generator=generator),
        )
        for _ in range(4)
    ]
    assert_same_training(lambda: CifarNet().double(), data, F.cross_entropy, make, epochs=2)


@pytest.mark.parametrize("cls", FUSED)
def test_gradient_accumulation_and_clipping(cls):
    results = []
    for optimizer_class, options in ((cls, {}), (TORCH[cls], {"foreach": False})):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        optimizer = optimizer_class(model.parameters(), lr=0.05, **options)
        for _ in range(5):
            optimizer.zero_grad()
            for _ in range(3):  # several backwards a step
                x = torch.randn(4, 6, dtype=torch.float64)
                (model(x).pow(2).mean() / 3).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cls", FUSED)
def test_gan_each_optimizer_owns_half(cls):
    results = []
    for optimizer_class, options in ((cls, {}), (TORCH[cls], {"foreach": False})):
        torch.manual_seed(5)
        generator, critic = nn.Linear(3, 4).double(), nn.Linear(4, 1).double()
        optimizers = [
            optimizer_class(m.parameters(), lr=0.01, **options) for m in (generator, critic)
        ]
        for _ in range(6):
            noise, real = torch.randn(8, 3).double(), torch.randn(8, 4).double()
            optimizers[1].zero_grad()
            grads = [None if p.grad is None else p.grad.clone() for p in generator.parameters()]
            fake = generator(noise)
            (critic(fake.detach()).mean() - critic(real).mean()).backward()
            for p, grad in zip(generator.parameters(), grads, strict=True):
                assert grad is None if p.grad is None else torch.equal(p.grad, grad)
            before = [p.detach().clone() for p in generator.parameters()]
            optimizers[1].step()
            for p, q in zip(generator.parameters(), before, strict=True):
                assert torch.equal(p.detach(), q)  # the other optimizer's half
            optimizers[0].zero_grad()
            (-critic(generator(noise)).mean()).backward()
            optimizers[0].step()
        results.append([p.detach() for m in (generator, critic) for p in m.parameters()])
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_detached_prediction_moves_nothing(optimizer_class):
    model = nn.Linear(3, 1)
    optimizer = optimizer_class(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    loss = (model(torch.ones(2, 3)).detach() ** 2).mean().requires_grad_()
    loss.backward()
    optimizer.step()
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.detach(), q)
    assert not any(
        s.get("step", 1) for s in optimizer.state.values()
    )  # Adagrad has it from the start
