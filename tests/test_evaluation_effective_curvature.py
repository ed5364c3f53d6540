import json
import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rctaf.activations import ACTIVATION_MODULES, RCTAF, Sharpened, make_activation
from rctaf.evaluation import effective_curvature
from rctaf.models import make_model


class Net(nn.Module):
    """Batch norm directly before the first activation, a sum before the second."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), first
        self.mix, self.act2, self.head = nn.Conv2d(3, 3, 1), second, nn.Linear(3, 4)

    def parts(self, x):
        z = self.norm(self.conv(x))
        h = self.act(z)
        z2 = h + self.mix(h)
        return z, z2, self.head(self.act2(z2).mean((2, 3)))

    def forward(self, x):
        return self.parts(x)[-1]


def network(first: nn.Module, second: nn.Module) -> Net:
    torch.manual_seed(0)
    net = Net(first, second).double().eval()
    net.norm.weight.data = torch.tensor([0.5, -2.0, 1.0]).double()
    net.norm.bias.data = torch.tensor([0.3, 0.0, -1.0]).double()
    net.norm.running_var.uniform_(0.1, 1)
    return net


@pytest.fixture
def images():
    return torch.rand(30, 1, 5, 5, generator=torch.Generator().manual_seed(0)).double()


def test_definitions(images):
    net = network(RCTAF(14.0, 1), RCTAF(4.0, 2)).train()
    first, second = effective_curvature(net, images, batch_size=7)
    assert net.training
    with torch.no_grad():
        z, z2, _ = net.eval().parts(images)
    assert (first.name, second.name) == ("act", "act2")
    for layer, pre, alpha, bound in ((first, z, 14, 7), (second, z2, 4, 4)):
        std = pre.std(correction=0).item()
        assert layer.std == pytest.approx(std, rel=1e-12)
        assert layer.kappa == pytest.approx(alpha * std, rel=1e-12)
        assert layer.curvature == pytest.approx(bound, rel=1e-12)
        assert layer.curvature_std == pytest.approx(bound * std, rel=1e-12)
    assert first.gain_kappa == pytest.approx([7, 28, 14])
    assert second.gain_kappa is None
    json.dumps([asdict(layer) for layer in (first, second)], allow_nan=False)


@pytest.mark.parametrize("beta", [0, 1, 2, 5])
@pytest.mark.parametrize("k", [0.1, 3.0, 10.0])
def test_unchanged_when_sharpness_is_traded_for_gain(images, beta, k):
    # (α, gain, bias) -> (α/k, k gain, k bias); the next linear maps divide by k
    net = network(RCTAF(20.0, beta), RCTAF(5.0, beta))
    before, logits = effective_curvature(net, images), net(images).detach()
    twin = network(RCTAF(20.0 / k, beta), RCTAF(5.0 / k, beta))
    twin.load_state_dict(net.state_dict())
    twin.norm.weight.data *= k
    twin.norm.bias.data *= k
    twin.mix.bias.data *= k
    twin.head.weight.data /= k
    after = effective_curvature(twin, images)
    torch.testing.assert_close(twin(images).detach(), logits, rtol=1e-10, atol=1e-12)
    for one, other in zip(before, after, strict=True):
        assert other.kappa == pytest.approx(one.kappa, rel=1e-10)
        assert other.curvature_std == pytest.approx(one.curvature_std, rel=1e-10)
        assert other.gain_kappa == (None if one.gain_kappa is None else pytest.approx(one.gain_kappa, rel=1e-10))
        assert other.curvature == pytest.approx(one.curvature / k, rel=1e-10)  # the naked curvature does change


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swish", 0.5),
        ("softplus", 0.25),
        ("gelu", math.sqrt(2 / math.pi)),
        ("elu", 1.0),
        ("mish", None),
        ("relu", None),
        ("leaky_relu", None),
        ("selu", None),
    ],
)
def test_baselines(images, name, expected):
    (layer, _) = effective_curvature(network(make_activation(name), make_activation(name)), images)
    assert layer.kappa is None
    assert layer.gain_kappa is None
    assert layer.std > 0
    if name == "mish":
        import mpmath

        with mpmath.workdps(30):
            second = lambda x: mpmath.diff(lambda t: t * mpmath.tanh(mpmath.log(1 + mpmath.exp(t))), x, 2)  # noqa: E731
            at = mpmath.findroot(lambda x: mpmath.diff(second, x), -0.1)
            expected = float(second(at))
    if expected is None:
        assert layer.curvature is None
        assert layer.curvature_std is None
    else:
        # 1e-10 where the maximum is smooth; ELU reaches its 1 only from one side
        assert layer.curvature == pytest.approx(expected, rel=1e-10)
        assert layer.curvature_std == pytest.approx(expected * layer.std, rel=1e-10)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.ReLU(inplace=True), None),
        (nn.ReLU6(), None),  # jumps at 0 and 6
        (nn.Hardswish(), None),  # at -3 and 3, by a half
        (nn.PReLU(), None),
        (nn.PReLU(3), None),
        (nn.PReLU(3, init=1), 0.0),  # a straight line in every channel
        (nn.RReLU(), None),
        (nn.Threshold(0.1, 20), None),
        (nn.ELU(alpha=1.05), None),  # by a twentieth, at 0
        (nn.CELU(), 1.0),
        (nn.Softplus(beta=40), 10.0),  # steep, and yet no jump
    ],
)
def test_other_activations_of_pytorch(images, module, expected):
    layer = effective_curvature(network(module, module).train(), images)[0]
    assert layer.curvature == (expected if expected is None else pytest.approx(expected, rel=1e-10))


def test_a_deviation_far_from_zero_in_single_precision():
    x = 300 + torch.randn(400, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    (layer,) = effective_curvature(nn.Sequential(nn.SiLU()), x)
    # float32 squares of 9e4 would be rounded to some hundredths
    assert layer.std == pytest.approx(x.double().std(correction=0).item(), rel=1e-9)


def test_every_activation_that_can_be_replaced_is_measured(images):
    for kind in ACTIVATION_MODULES:
        settings = {RCTAF: (2.0, 1), Sharpened: ("gelu", 2.0), nn.Threshold: (0.1, 20)}.get(kind, ())
        assert effective_curvature(nn.Sequential(kind(*settings).double()), images), kind


@pytest.mark.parametrize("network_name", ["resnet_small", "preact_resnet18"])
def test_every_activation_of_our_networks_is_met_once(network_name):
    torch.manual_seed(0)
    width = {} if network_name == "resnet_small" else {"width": 4}
    net = make_model(network_name, activation=lambda: RCTAF(14.0, 1), in_channels=1, n_classes=10, **width)
    layers = effective_curvature(net, torch.rand(8, 1, 8, 8))
    modules = [name for name, module in net.named_modules() if isinstance(module, RCTAF)]
    assert sorted(layer.name for layer in layers) == sorted(modules)
    # which read a norm directly: where a residual block ends in an activation, that one reads norm + shortcut
    after_sum = {f"blocks.{n}.act2" for n in range(3)} if network_name == "resnet_small" else set()
    assert {layer.name for layer in layers if layer.gain_kappa is None} == after_sum
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_what_the_caller_is_in_changes_nothing(images):
    net = network(nn.PReLU(3).double(), RCTAF(4.0, 2))
    expected = effective_curvature(net, images)
    with torch.inference_mode():
        assert effective_curvature(net, images) == expected
    with torch.device("meta"):  # in place of a GPU as the device where tensors are made
        assert effective_curvature(net, images) == expected


def test_hooks_of_an_activation_see_the_networks_own_values_only(images):
    net, seen = network(nn.SiLU(), nn.Mish()), []
    net.act.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    effective_curvature(net, images)
    assert seen == [(30, 3, 5, 5)]


def test_a_compiled_network_is_measured_as_it_is(images):
    net = network(nn.SiLU(), RCTAF(4.0, 2))
    expected = [layer.std for layer in effective_curvature(net, images)]
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        compiled(images)  # what has been compiled takes no notice of later hooks
    assert [layer.std for layer in effective_curvature(compiled, images)] == expected


def test_what_computes_a_weight_is_no_layer(images):
    net = network(nn.SiLU(), nn.SiLU())
    nn.utils.parametrize.register_parametrization(net.mix, "weight", nn.Softplus().double())
    assert [layer.name for layer in effective_curvature(net, images)] == ["act", "act2"]


def test_nothing_to_measure_is_said(images):
    with pytest.raises(ValueError, match="no images"):
        effective_curvature(network(nn.SiLU(), nn.SiLU()), images[:0])

    class Called(nn.Module):
        def forward(self, x):
            return F.relu(x)

    with pytest.raises(ValueError, match="no activation module"):
        effective_curvature(Called(), images)


def test_a_diverged_network_is_no_network_without_curvature(images):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), RCTAF(3.0, 1)).double()
    for broken in (float("nan"), float("inf")):
        model[0].bias.data[1] = broken
        with pytest.raises(ValueError, match="into activation '1' is not finite: has the training diverged"):
            effective_curvature(model, images)


def test_an_activation_that_is_called_by_keyword(images):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.relu = RCTAF(3.0, 1), nn.ReLU()

        def forward(self, x):
            return self.relu(input=self.act(input=x))

    first, second = effective_curvature(Net(), images)
    assert first.std == pytest.approx(images.double().std(correction=0).item())
    assert second.name == "relu"
