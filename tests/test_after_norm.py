"""RCT-AF after a batch norm, and after the sum of a residual block: what is saved, and that nothing else changes."""

import gc
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.func import functional_call, jvp
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

from rctaf import RCTAF, _after_norm, _kernels, _native, activate_sum
from rctaf._native import Summand
from rctaf.models import make_model

FORMATS = [torch.contiguous_format, torch.channels_last]
NETWORKS = ["resnet_small", "resnet18", "preact_resnet18", "wrn_28_10"]


def as_saved_by_autograd():
    """Within it the sum itself is saved, as it was before: the independent computation of the tests below."""
    return saved_tensors_hooks(lambda t: t, lambda t: t)


def network(name: str, beta: int | None, memory_format: torch.memory_format = torch.contiguous_format) -> nn.Module:
    torch.manual_seed(0)
    make = nn.ReLU if beta is None else lambda: RCTAF(7.0, beta)
    model = make_model(name, activation=make, in_channels=3, n_classes=10, width=8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.to(memory_format=memory_format).train()


def held_after_forward(model: nn.Module, images: torch.Tensor) -> int:
    """Bytes that a forward pass leaves allocated, by the profiler's account of every allocation."""
    model(images)
    with profile(profile_memory=True) as seen:
        logits = model(images)
    del logits
    return sum(e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_holds_what_it_holds_with_relu(name):
    images = torch.randn(32, 3, 32, 32)
    relu = held_after_forward(network(name, None), images)
    for beta in (0, 1, 2, 3):
        # three numbers per channel more; the last output, which the pooling does not need, less
        assert 0.95 * relu < held_after_forward(network(name, beta), images) < 1.005 * relu, beta
    with as_saved_by_autograd():  # or the comparison would show nothing
        assert held_after_forward(network(name, 1), images) > 1.2 * relu


def gradients(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    images = images.clone().requires_grad_()
    loss = F.cross_entropy(model(images), torch.arange(len(images), device=images.device) % 10)
    loss.backward()
    return [loss.detach(), images.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "formula"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("beta", [1, 2, 3])
def test_gradients_are_those_of_the_saved_sum(name, beta, memory_format, kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(_native, "_library", lambda: None)
    images = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(memory_format=memory_format)
    got = gradients(network(name, beta, memory_format), images)
    with as_saved_by_autograd():
        want = gradients(network(name, beta, memory_format), images)
    for a, b in zip(got, want, strict=True):
        # the norm's output rounded once more or once less, through up to 28 layers; often nothing differs at all
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("cudnn", [True, False], ids=["cudnn", "native"])
def test_gradients_on_a_gpu(cudnn, memory_format):
    images = torch.randn(20, 3, 32, 32, device="cuda").to(memory_format=memory_format)
    with torch.backends.cudnn.flags(enabled=cudnn, allow_tf32=False, deterministic=True):
        model = network("resnet18", 2, memory_format).cuda()
        assert served(model.stem(images))
        got = gradients(model, images)
        with as_saved_by_autograd():
            want = gradients(network("resnet18", 2, memory_format).cuda(), images)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_in_another_precision_throughout(dtype):
    norm, activation = nn.BatchNorm2d(48).to(dtype), RCTAF(7.0, 2)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    x = torch.randn(8, 48, 6, 6).to(dtype).requires_grad_()
    grad = torch.randn(8, 48, 6, 6).to(dtype)
    assert served(activation(norm(x)))
    got = torch.autograd.grad(activation(norm(x)), [x, *norm.parameters()], grad)
    with as_saved_by_autograd():
        want = torch.autograd.grad(activation(norm(x)), [x, *norm.parameters()], grad)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        # where the argument is rounded to its other neighbour, the slope moves by alpha times that
        difference = (a.double() - b.double()).norm() / b.double().norm()
        assert difference < 14 * torch.finfo(dtype).eps


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.skipif(not _native.available(), reason="no C compiler on this machine")
def test_the_norms_output_is_had_again_to_the_last_bit(dtype, memory_format):
    norm = nn.BatchNorm2d(48)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    x = torch.randn(8, 48, 6, 6).to(dtype).to(memory_format=memory_format).requires_grad_()
    grad = torch.randn(8, 48, 6, 6).to(dtype)
    got = torch.autograd.grad(RCTAF(7.0, 2)(norm(x)), [x, *norm.parameters()], grad)
    with as_saved_by_autograd():
        want = torch.autograd.grad(RCTAF(7.0, 2)(norm(x)), [x, *norm.parameters()], grad)
    # one fused multiply-add, as PyTorch's batch norm has it
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(3, 5, 6, 7), (2, 300, 3, 3), (1, 3, 40, 40), (40, 33), (2, 3, 4)])
@pytest.mark.skipif(not _native.available(), reason="no C compiler on this machine")
def test_the_kernel_adds_what_the_formula_adds(shape, memory_format, dtype):
    if len(shape) != 4 and memory_format is torch.channels_last:
        pytest.skip("channels_last is a format of four dimensions")
    generator = torch.Generator().manual_seed(0)
    x, other, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    x = x.to(memory_format=memory_format)  # the others in another order
    scale, shift = torch.rand(2, shape[1], generator=generator) + 0.5
    a, b = Summand(x, scale, shift), Summand(other, shift, scale)
    for terms in ((a,), (a, Summand(other)), (Summand(x), b), (a, b)):
        values = [_kernels.value(term) for term in terms]
        total = values[0] if len(terms) == 1 else values[0] + values[1]
        got = _native.derivative(terms, 7.0, 2, 1, grad)
        assert torch.equal(got, _native.derivative((Summand(total),), 7.0, 2, 1, grad))


@pytest.mark.parametrize("beta", [1, 2])
def test_any_derivative_goes_through_the_norm(beta):
    torch.manual_seed(0)
    norm, other, activation = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double(), RCTAF(2.0, beta)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    x, z, weight, bias = torch.randn(5, 3).double(), torch.randn(5, 3).double(), norm.weight.data, norm.bias.data
    inputs = [t.clone().requires_grad_() for t in (x, z, weight, bias)]

    def normed(x, z, weight, bias):
        return activation(functional_call(norm, {"weight": weight, "bias": bias}, x)) + z

    def residual(x, z, weight, bias):
        return activate_sum(activation, functional_call(norm, {"weight": weight, "bias": bias}, x), z)

    def projected(x, z, weight, bias):
        return activate_sum(activation, functional_call(norm, {"weight": weight, "bias": bias}, x), other(z * z))

    for function in (normed, residual, projected):
        node = function(*inputs).grad_fn
        assert "_OfSumBackward" in (type(node).__name__, type(node.next_functions[0][0]).__name__)
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def second_derivatives(beta: int, how: str) -> list[torch.Tensor]:
    """By x, by what the norms made of it, held as tensors or as edges of the graph, and by their parameters."""
    torch.manual_seed(0)
    norm, other, activation = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double(), RCTAF(2.0, beta)
    for parameter in (*norm.parameters(), *other.parameters()):
        nn.init.uniform_(parameter, 0.5, 1.5)
    x = torch.randn(5, 3).double().requires_grad_()
    y = norm(x)
    values = [y] if how == "alone" else [y, other(x**3)] if how == "two norms" else [y, x**3]
    loss = (activation(y) if how == "alone" else activate_sum(activation, *values)).square().sum()
    edges = [get_gradient_edge(value) for value in values]
    del y, values  # nobody holds the outputs any more
    gc.collect()
    wanted = [*edges, x, *norm.parameters()]
    first = torch.autograd.grad(loss, wanted, create_graph=True)
    second = torch.autograd.grad(sum((g**3).sum() for g in first), wanted, create_graph=True)
    return [*first, *second, *torch.autograd.grad(sum((g**2).sum() for g in second), wanted)]


@pytest.mark.parametrize("how", ["alone", "two norms", "a norm and a tensor"])
@pytest.mark.parametrize("beta", [1, 2, 3])
def test_higher_derivatives_by_the_norms_output_that_nobody_holds(beta, how):
    with as_saved_by_autograd():
        want = second_derivatives(beta, how)
    for a, b in zip(second_derivatives(beta, how), (w.detach() for w in want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11 * float(b.abs().max()))


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "formula"])
@pytest.mark.parametrize("how", ["alone", "two norms", "a norm and a tensor", "by a hook"])
@pytest.mark.parametrize("beta", [1, 2])
def test_second_derivative_by_the_norms_output(beta, how, kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(_native, "_library", lambda: None)
    torch.manual_seed(0)
    x, activation = torch.randn(5, 3, requires_grad=True), RCTAF(2.0, beta)
    values = [nn.BatchNorm1d(3)(x)]
    if how == "two norms":
        values.append(nn.BatchNorm1d(3)(x * x))
    if how == "a norm and a tensor":
        values.append(torch.randn(5, 3, requires_grad=True))
    out = activate_sum(activation, *values) if len(values) == 2 else activation(values[0])
    assert served(out)
    slope, bend = (_kernels.derivative(sum(values).detach().double(), 2.0, beta, n).float() for n in (1, 2))
    loss = out.sum() + (values[0] ** 2).sum()
    if how == "by a hook":
        seen = []
        values[0].register_hook(seen.append)
        torch.autograd.grad(loss, x, create_graph=True)
        torch.autograd.grad(seen[0].sum(), x)
        torch.testing.assert_close(seen[1], bend + 2)
        return
    (first,) = torch.autograd.grad(loss, values[0], create_graph=True)
    torch.testing.assert_close(first, slope + 2 * values[0])
    second = torch.autograd.grad(first.sum(), values)
    for got, extra in zip(second, (2, 0), strict=False):
        torch.testing.assert_close(got, bend + extra)


def served(y: torch.Tensor) -> bool:
    """Whether what a norm keeps was saved, and not its output."""
    return type(y.grad_fn).__name__ == "_OfSumBackward" and len(y.grad_fn.saved_tensors) > 2


def test_where_it_applies_and_where_it_does_not():
    x, activation = torch.randn(6, 4, 5, 5, requires_grad=True), RCTAF(7.0, 1)
    norm = nn.BatchNorm2d(4)
    assert served(activation(norm(x)))
    assert served(activation(nn.BatchNorm1d(4)(x.flatten(2))))
    assert served(activate_sum(activation, norm(x), x))
    assert not served(activation(x))
    assert not served(RCTAF(7.0, 0)(norm(x)))  # saves its output alone
    assert not served(activation(norm.eval()(x)))
    norm.train()
    assert not served(activation(nn.BatchNorm2d(4, affine=False)(x)))
    assert not served(activation(norm(x).view(6, -1)))
    assert not served(activate_sum(nn.SiLU(), norm(x), x))
    assert not served(activate_sum(activation, norm(x), x[:1]))  # broadcast: activation(x + y) knows how
    with torch.no_grad():
        assert activation(norm(x)).grad_fn is None
    with torch.inference_mode():
        unsaved = torch.randn_like(x)
    activate_sum(activation, norm(x), unsaved).sum().backward()


@pytest.mark.parametrize(
    "lacks", ["default hooks", "raw saved tensors", "module hooks", "global hooks", "what the norm saved"]
)
def test_a_pytorch_without_the_private_attributes_is_served_plainly(lacks, monkeypatch):
    x, activation, norm = torch.randn(6, 4, requires_grad=True), RCTAF(7.0, 1), nn.BatchNorm1d(4)
    if lacks == "default hooks":
        monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
    if lacks == "raw saved tensors":
        monkeypatch.setattr(_after_norm, "_STAND_INS", False)
    if lacks == "global hooks":
        monkeypatch.delattr(torch.nn.modules.module, "_has_any_global_hook")
        monkeypatch.setattr(RCTAF, "__call__", RCTAF.forward)  # which asks for it too
    if lacks == "module hooks":
        del activation._backward_hooks
        monkeypatch.setattr(RCTAF, "__call__", RCTAF.forward)
    if lacks == "what the norm saved":
        node = type("NativeBatchNormBackward0", (), {})()
        assert _after_norm._norm_behind(SimpleNamespace(grad_fn=node, output_nr=0, _version=0)) is None
        return
    y = norm(x)
    total = (y + x).detach()
    out = activate_sum(activation, y, x)
    assert not served(out)
    (got,) = torch.autograd.grad(out.sum(), y)
    torch.testing.assert_close(got, _kernels.derivative(total, 7.0, 1, 1))


def test_an_output_changed_in_place_is_taken_as_it_is():
    x, activation, norm = torch.randn(6, 4, requires_grad=True), RCTAF(7.0, 1), nn.BatchNorm1d(4)
    changed = norm(x)
    with torch.no_grad():
        changed.add_(1.0)
    assert not served(activation(changed))
    (got,) = torch.autograd.grad(activation(changed).sum(), x)
    (want,) = torch.autograd.grad(norm(x), x, _kernels.derivative(changed.detach(), 7.0, 1, 1))
    torch.testing.assert_close(got, want)


def test_a_norm_that_has_been_differentiated_is_no_longer_asked():
    x, norm = torch.randn(6, 4, requires_grad=True), nn.BatchNorm1d(4)
    y = norm(x)
    y.sum().backward()
    for z in (RCTAF(7.0, 1)(y), activate_sum(RCTAF(7.0, 1), y, torch.zeros(6, 4))):
        torch.testing.assert_close(z.detach(), F.silu(7 * y.detach()) / 7)
    y, z = norm(x), norm(x)
    with torch.no_grad():
        norm.weight.mul_(2)  # the backward pass of the norm will complain, if it is asked for
    torch.testing.assert_close(RCTAF(7.0, 1)(y), F.silu(7 * z) / 7)


@pytest.mark.parametrize("how", ["once", "twice", "sum"])
def test_the_bias_may_change_before_the_backward_pass(how):
    """As an optimiser of another loss does; batch norm itself does not keep its bias."""

    def run():
        torch.manual_seed(0)
        x, norm, activation = torch.randn(6, 4).double().requires_grad_(), nn.BatchNorm1d(4).double(), RCTAF(2.0, 2)
        nn.init.normal_(norm.bias)
        wanted = [x, norm.weight, norm.bias]
        y = activate_sum(activation, norm(x), x) if how == "sum" else activation(norm(x))
        with torch.no_grad():
            norm.bias.add_(1)
        first = torch.autograd.grad(y.square().sum(), wanted, create_graph=how != "once")
        if how == "once":
            return first
        return *first, *torch.autograd.grad(sum((g**3).sum() for g in first), wanted)

    with as_saved_by_autograd():
        want = run()
    for a, b in zip(run(), want, strict=True):
        torch.testing.assert_close(a, b)


def test_a_tangent_of_the_gradient_goes_through_the_norm():
    x, norm = torch.randn(6, 4, requires_grad=True), nn.BatchNorm1d(4)
    v, w = torch.randn(2, 6, 4)
    (want,) = torch.autograd.grad(RCTAF(2.0, 2)(norm(x)), x, w)  # linear in the gradient
    with forward_ad.dual_level():
        y = RCTAF(2.0, 2)(norm(x))
        assert served(y)
        (got,) = torch.autograd.grad(y, x, forward_ad.make_dual(v, w))
        torch.testing.assert_close(forward_ad.unpack_dual(got).tangent, want)


def test_hooks_are_called():
    x, activation, norm = torch.randn(6, 4, requires_grad=True), RCTAF(7.0, 1), nn.BatchNorm1d(4)
    seen = []
    with activation.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        activate_sum(activation, norm(x), x)
    torch.testing.assert_close(seen[0], norm(x) + x)
    with torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(None)):
        activate_sum(activation, x, x)
    assert len(seen) == 2
    with activation.register_full_backward_pre_hook(lambda *_: seen.append(None)):
        activate_sum(activation, x, x).sum().backward()
    assert len(seen) == 3
    activate_sum(activation, x, x).sum().backward()
    assert len(seen) == 3


def test_checkpoints_and_transforms_see_the_plain_function():
    model, images = network("resnet18", 2), torch.randn(8, 3, 16, 16)
    plain = gradients(model, images)
    model = network("resnet18", 2)
    through = gradients(checkpointed(model), images)
    for a, b in zip(plain[2:], [p.grad for p in model.parameters()], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))
    torch.testing.assert_close(plain[1], through[1], rtol=0, atol=1e-4 * float(plain[1].abs().max()))

    norm, activation = nn.BatchNorm1d(4, track_running_stats=False), RCTAF(7.0, 2)
    x, v = torch.randn(6, 4), torch.randn(6, 4)
    _, want = jvp(lambda x: activation(norm(x)), (x,), (v,))
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(activation(norm(forward_ad.make_dual(x.requires_grad_(), v)))).tangent
    torch.testing.assert_close(got, want)
    (back,) = torch.autograd.grad(activation(norm(x)), x, torch.ones_like(x))
    torch.testing.assert_close((back * v).sum(), want.sum())  # <J' 1, v> = <1, J v>


def test_a_network_compiles_whole():
    torch._dynamo.reset()
    images = torch.randn(8, 3, 8, 8)
    plain = gradients(network("resnet_small", 2), images)
    model = network("resnet_small", 2)
    compiled = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), images)
    for a, b in zip(compiled[:2], plain[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))


def checkpointed(model: nn.Module) -> nn.Module:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.model, x, use_reentrant=False)

    return Checkpointed()
