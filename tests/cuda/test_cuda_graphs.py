"""Steps inside CUDA graphs and on streams of the user's choice."""

import pytest
import torch
from cuda_twins import CudaTwins
from twins import CASES, case_id

import fused_optim

# Of captures that end in the error which a test expects.
pytestmark = pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")


def captured(twins):
    """A graph of one step of the twins' CUDA optimizer, which has stepped before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        twins.cuda.step()
    return graph


def capturable(case):
    """The case, with capturable=True where the class has it: only SGD can do without."""
    cls, options = case
    has_it = "capturable" in cls([torch.zeros(1)]).defaults
    return cls, {**options, **({"capturable": True} if has_it else {})}


class Replays:
    """In place of an optimizer: its steps are replays, with the gradients copied to where the
    graph reads them."""

    def __init__(self, twins):
        self.params = twins.params
        self.grads = [p.grad for p in twins.params]
        self.graph = captured(twins)

    def step(self):
        for p, grad in zip(self.params, self.grads, strict=True):
            grad.copy_(p.grad)
            p.grad = grad
        self.graph.replay()


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_replays_are_steps(case):
    """Each replay advances `step`, and reads the gradients that lie in the captured tensors."""
    twins = CudaTwins(*capturable(case))
    twins.step(2)
    cuda, twins.cuda = twins.cuda, Replays(twins)
    twins.step(3)
    twins.cuda = cuda
    twins.assert_same()
    assert all(s["step"].item() == 5 for s in twins.cuda.state.values() if "step" in s)
    twins.step(1)  # and an ordinary step goes on from there
    twins.assert_same()


def test_a_device_lr_and_amp_are_read_at_replay(optimizer_class):
    twins = CudaTwins(*capturable((optimizer_class, {})))
    group = twins.cuda.param_groups[0]
    group["lr"] = lr = torch.tensor(0.25).cuda()
    twins.cpu.param_groups[0]["lr"] = 0.25
    twins.step(1)
    scale, found_inf = torch.tensor(1.0).cuda(), torch.tensor(0.0).cuda()
    twins.cuda.grad_scale, twins.cuda.found_inf = scale, found_inf
    graph = captured(twins)
    for new_lr, new_scale, overflow in [(0.5, 2.0, 0.0), (0.5, 4.0, 1.0), (0.125, 4.0, 0.0)]:
        lr.copy_(torch.tensor(new_lr))
        scale.copy_(torch.tensor(new_scale))
        found_inf.copy_(torch.tensor(overflow))
        graph.replay()
        twins.cpu.param_groups[0]["lr"] = new_lr
        twins.cpu.grad_scale = torch.tensor(new_scale)
        twins.cpu.found_inf = torch.tensor(overflow)
        twins.cpu.step()
    twins.assert_same()


def test_many_captures_and_more_tensors_than_one_launch_holds(optimizer_class):
    """Launches of one capture share a counter of arrived blocks; captures don't."""
    twins = CudaTwins(
        *capturable((optimizer_class, {})), shapes=[(1 + i % 5,) for i in range(1500)]
    )
    twins.step(1)
    graphs = [captured(twins) for _ in range(3)]
    for graph in graphs:
        graph.replay()
        twins.cpu.step()
    twins.assert_same()


def test_capture_without_capturable_is_torchs_error():
    for name in ("Adam", "AdamW", "RMSprop"):
        twins = CudaTwins(getattr(fused_optim, name), {})
        twins.step(1)
        with pytest.raises(RuntimeError, match="capturable"):
            captured(twins)
        twins.step(1)
        twins.assert_same()


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_state_is_not_created_in_a_capture(case):
    """Every replay would create it anew, and every step be a first one. torch says nothing."""
    twins = CudaTwins(*capturable(case))
    keeps_state = CudaTwins(*case)
    keeps_state.step(1)
    if not any(keeps_state.cuda.state.values()):
        return
    for p in twins.params:
        p.grad = torch.zeros(p.shape).to(p.device)
    before = {p: list(state) for p, state in twins.cuda.state.items()}
    with pytest.raises(RuntimeError, match="step\\(\\) once before the capture"):
        captured(twins)
    assert {p: list(state) for p, state in twins.cuda.state.items()} == before


def test_a_capture_can_not_wait_for_the_device(optimizer_class):
    """The reason is said, where else it would be an error of the driver's."""
    asked = {"max_grad_norm": 1.0, "ema_decay": 0.5}
    cls, options = capturable((optimizer_class, asked))
    twins = CudaTwins(cls, options, shapes=[(5,), (7,)])
    twins.step(2)
    twins.params[1].grad = None
    before = [p.detach().cpu() for p in twins.params]
    with pytest.raises(RuntimeError, match="since a parameter has an average and no gradient"):
        captured(twins)
    assert all(torch.equal(p.detach().cpu(), b) for p, b in zip(twins.params, before, strict=True))


def training(optimizer_class):
    """A small model on the GPU, inputs and targets that it can learn, and an optimizer for it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    model.cuda()
    inputs = torch.randn(32, 8, device="cuda")
    _, options = capturable((optimizer_class, {}))
    optimizer = optimizer_class(model.parameters(), lr=0.01, **options)
    return model, inputs, inputs.sum(dim=1, keepdim=True), optimizer


@pytest.mark.torch_kernels
def test_a_graphed_model_trains(optimizer_class):
    """make_graphed_callables for forward and backward, the step beside it."""
    model, inputs, targets, optimizer = training(optimizer_class)
    graphed = torch.cuda.make_graphed_callables(model, (inputs,))
    losses = []
    for _ in range(50):
        optimizer.zero_grad(set_to_none=False)
        loss = torch.nn.functional.mse_loss(graphed(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.torch_kernels
def test_a_graph_of_the_whole_iteration_trains(optimizer_class):
    """Warmed up on another stream than the default one: what autograd keeps for the parameters
    belongs to the stream it is made on, and a capture may not wait for the default stream."""
    model, inputs, targets, optimizer = training(optimizer_class)

    def iteration():
        optimizer.zero_grad(set_to_none=False)
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        first, _, _ = (iteration().item() for _ in range(3))
    torch.cuda.current_stream().wait_stream(stream)
    whole = torch.cuda.CUDAGraph()
    with torch.cuda.graph(whole, stream=stream):
        loss = iteration()
    for _ in range(97):
        whole.replay()
    assert loss.item() < first
    assert all(s["step"].item() == 100 for s in optimizer.state.values() if "step" in s)


@pytest.mark.torch_kernels
def test_the_current_stream_is_used(optimizer_class):
    """The step waits for what its stream does, not for other streams, and the other way round."""
    twins = CudaTwins(optimizer_class, {}, shapes=[(1000,)])
    twins.step(1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    (p,) = twins.params
    before = p.detach().clone()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        twins.cuda.step()
        at_once = torch.cuda.Event()
        at_once.record()
    assert not at_once.query()  # the step is queued behind the sleep
    assert torch.equal(p.detach(), before)  # the default stream sees none of it yet
    torch.cuda.current_stream().wait_stream(stream)
    twins.cpu.step()
    twins.assert_same()


@pytest.mark.torch_kernels
def test_concurrent_streams_advance_their_own_steps(optimizer_class):
    """Two optimizers stepping at the same time do not share a counter of arrived blocks."""
    pairs = [
        (CudaTwins(optimizer_class, {}, shapes=[(300_000,)]), torch.cuda.Stream()) for _ in range(2)
    ]
    for twins, _ in pairs:
        twins.step(1)
    torch.cuda.synchronize()
    for _ in range(200):
        for twins, stream in pairs:
            with torch.cuda.stream(stream):
                twins.cuda.step()
    torch.cuda.synchronize()
    for twins, _ in pairs:
        for _ in range(200):
            twins.cpu.step()
        twins.assert_same()
