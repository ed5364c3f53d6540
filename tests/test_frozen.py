"""The frozen network against the network itself, in float64."""

import copy
import random

import pytest
import torch
from torch import nn

from rctaf import RCTAF
from rctaf.models import make_model, select_norm
from rctaf.models.frozen import Frozen, Unsupported


def trained(model, x, seed=0):
    """Statistics and gains that are not those of a new network."""
    torch.manual_seed(seed)
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for _ in range(3):
            model(x + torch.randn_like(x))
    return model


def gradient(model, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).logsumexp(1).sum(), x)[0]


def assert_same(frozen, model, x):
    """Up to rounding: 1e-11 is 10,000 times double precision's unit, for up to 28 layers of sums over 300 terms."""
    torch.testing.assert_close(frozen(x), model(x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradient(frozen, x), gradient(model, x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("network", ["resnet_small", "resnet18", "preact_resnet18", "wrn_28_10"])
def test_a_frozen_network_is_the_network_in_evaluation_mode(network, norm):
    model = make_model(network, activation=lambda: RCTAF(4, 1), in_channels=1, n_classes=10, width=4, norm=norm)
    model, x = model.double(), torch.rand(5, 1, 8, 8, dtype=torch.double)
    trained(model, x)
    before = copy.deepcopy(model.state_dict())
    frozen = Frozen(model, x)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(isinstance(module, nn.BatchNorm2d | nn.Conv2d) for module in frozen.modules())
    outputs = frozen(x)  # whatever the mode
    model.eval()
    torch.testing.assert_close(outputs, model(x), rtol=1e-11, atol=1e-11)
    assert_same(frozen, model, torch.rand(9, 1, 8, 8, dtype=torch.double))


def test_small_convolutions_become_matrices_and_large_ones_stay():
    model = make_model("resnet_small", activation=nn.ReLU, in_channels=1, n_classes=10)
    parts = {size: Frozen(model, torch.rand(1, 1, size, size))._parts for size in (8, 28)}
    assert [part.as_matrix for part in parts[8]] == [True, False, False, False, False, False, True, True, True]
    assert not any(part.as_matrix for part in parts[28])


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, 3, padding="same", bias=False),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1), groups=2),
        nn.Conv2d(4, 6, 1),
    ],
)
@pytest.mark.parametrize("size", [6, 40])  # as matrices and as convolutions
def test_every_kind_of_convolution(conv, size):
    x = torch.rand(3, 4, size, size, dtype=torch.double)
    for following in (nn.Identity(), nn.BatchNorm2d(6, eps=0.1)):
        model = trained(nn.Sequential(copy.deepcopy(conv), following, nn.Softplus(), nn.Flatten()).double(), x)
        frozen = Frozen(model, x)
        assert frozen._parts[0].as_matrix == (size == 6)
        assert_same(frozen, model.eval(), x)


def test_a_norm_that_two_read_and_one_that_reads_no_convolution():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.conv, self.second = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            h = self.conv(self.first(x))
            return (self.second(h) + h).flatten(1)  # h itself is read too: nothing to fold into

    x = torch.rand(4, 2, 5, 5, dtype=torch.double)
    model = trained(Net().double(), x)
    assert_same(Frozen(model, x), model.eval(), x)


class OwnForward(nn.Module):
    def __init__(self, channels=2):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 1)


class AsksForTheMode(OwnForward):
    def forward(self, x):
        return nn.functional.dropout(self.conv(x), 0.5, self.training).flatten(1)


class NamesItsInput(OwnForward):
    def forward(self, x):
        return self.conv(input=x).flatten(1)


class ComputesInVain(OwnForward):
    def forward(self, x):
        self.conv(x)
        return x.flatten(1)


class UsesItsWeights(OwnForward):
    def forward(self, x):
        return nn.functional.conv2d(x, 2 * self.conv.weight).flatten(1)


@pytest.mark.parametrize("made", [AsksForTheMode, NamesItsInput, ComputesInVain, UsesItsWeights])
def test_what_a_forward_may_do_besides(made):
    model, x = made().double(), torch.rand(4, 2, 5, 5, dtype=torch.double)
    frozen = Frozen(model, x)
    assert_same(frozen, model.eval(), x)
    with torch.no_grad():
        model.conv.weight.mul_(3)
    frozen.refresh()
    assert_same(frozen, model, x)


def test_a_network_of_linear_layers_has_nothing_to_fold():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).double(), torch.rand(3, 1, 4, 4, dtype=torch.double)
    assert_same(Frozen(model, x), model, x)


def test_it_follows_the_network_when_told():
    x = torch.rand(6, 1, 8, 8, dtype=torch.double)
    model = make_model("resnet_small", activation=nn.SiLU, in_channels=1, n_classes=10, width=2, norm_sets=2).double()
    frozen = Frozen(model, x)
    old = frozen(x)
    for norm_set in (0, 1):
        select_norm(model, norm_set)
        trained(model, x, seed=norm_set)
    for norm_set in (0, 1):
        select_norm(model, norm_set)
        frozen.refresh()
        model.eval()
        assert_same(frozen, model, x)
        model.train()
    assert not torch.allclose(frozen(x), old)


def test_no_gradient_reaches_the_network():
    model = make_model("resnet_small", activation=nn.SiLU, in_channels=1, n_classes=10, width=2)
    frozen = Frozen(model, torch.rand(1, 1, 8, 8))
    convolutions = [p for part in frozen._parts for p in (part.weight, part.bias)]
    assert not any(p.requires_grad for p in convolutions)
    frozen(torch.rand(2, 1, 8, 8)).sum().backward()
    assert all(p.grad is None for name, p in model.named_parameters() if "classifier" not in name)


def test_it_is_made_where_gradients_are_off_too():
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).double(), torch.rand(3, 1, 8, 8, dtype=torch.double)
    with torch.no_grad():
        frozen = Frozen(model, x)
    assert_same(frozen, model, x)


def test_half_precision_where_the_caller_asks_for_it():
    model = make_model("resnet_small", activation=nn.SiLU, in_channels=1, n_classes=10).eval()
    x = torch.rand(16, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        frozen = Frozen(model, x)
        low = frozen(x)
    assert low.dtype == torch.bfloat16
    assert all(part.weight.dtype == torch.float32 for part in frozen._parts)
    # bfloat16 keeps 8 bits: 0.4 % a rounding, a few of them one after another
    full = model(x).detach()
    torch.testing.assert_close(low.detach().float(), full, rtol=0, atol=0.03 * full.abs().max().item())


def test_what_cannot_be_frozen_says_why():
    x = torch.rand(2, 1, 8, 8)
    conv = nn.Conv2d(1, 2, 3)
    of_batch = nn.BatchNorm2d(2)
    of_batch.running_mean = of_batch.running_var = None  # how some make it use each batch's own

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Noisy(OwnForward):
        def forward(self, x):
            return (self.conv(x) + torch.randn(1)).flatten(1)

    class Masked(OwnForward):  # hides its gradients from an attack
        def forward(self, x):
            with torch.no_grad():
                h = self.conv(x)
            return h.flatten(1)

    class Adapts(OwnForward):  # a defence that moves every image along its own gradient
        def forward(self, x):
            with torch.enable_grad():
                z = x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(self.conv(z).square().sum(), z)
            return self.conv(x - slope).flatten(1)

    class Padded(OwnForward):  # a random-padding defence, by a generator that torch does not know
        def forward(self, x):
            left = random.randrange(5)
            return self.conv(nn.functional.pad(x, (left, 4 - left))).flatten(1)

    class WithRelu(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    class Counts(OwnForward):  # a different function every time, without any random number
        calls = 0

        def forward(self, x):
            self.calls += 1
            return self.calls * self.conv(x).flatten(1)

    class Drifts(Counts):  # by 0.2 % from one call to the next
        def forward(self, x):
            return super().forward(x) * (1 + 0.002 * self.calls) / self.calls

    def hooked(register):
        model = nn.Sequential(copy.deepcopy(conv), nn.Flatten())
        getattr(model[0], register)(lambda *_: None)
        return model

    for model, message in [
        (Masked(1), "cannot be traced: it switches gradients off"),
        (Adapts(1), "its trace cannot be run: element 0 of tensors does not require grad"),
        (Padded(1), "draws random numbers"),
        (Counts(1), "does something that its trace does not show"),
        (Drifts(1), "does something that its trace does not show"),
        (nn.Sequential(conv, WithRelu(2)), "holds a WithRelu"),
        (nn.Sequential(conv, nn.RReLU()), "holds a RReLU"),
        (hooked("register_forward_pre_hook"), "0 has hooks"),
        (hooked("register_forward_hook"), "0 has hooks"),
        (hooked("register_full_backward_hook"), "0 has hooks"),
        (Noisy(1), "makes a tensor that does not depend on its input"),
        (nn.Sequential(conv, nn.Dropout()), "holds a Dropout"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")), "holds a Conv2d"),
        (nn.Sequential(conv, Branching()), "cannot be traced"),
        (nn.Sequential(conv, nn.BatchNorm2d(2, track_running_stats=False)), "holds a BatchNorm2d"),
        (nn.Sequential(conv, of_batch), "holds a BatchNorm2d"),
        (nn.Sequential(nn.BatchNorm2d(1, affine=False)), "holds a BatchNorm2d"),
    ]:
        with pytest.raises(Unsupported, match=message):
            Frozen(model, x)
