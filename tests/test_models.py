"""The networks: published sizes, and the proof that nothing but the given activation is nonlinear."""

import pytest
import torch
from torch import fx, nn

from rctaf.config import RunConfig
from rctaf.models import NETWORKS, SplitBatchNorm2d, from_config, make_model, select_norm

ACTIVATIONS_IN = {"resnet_small": 7, "resnet18": 17, "preact_resnet18": 17, "wrn_28_10": 25, "wrn_34_10": 31}


class Marked(nn.Module):
    """An activation that a traced graph shows as one node."""

    def forward(self, x):
        return torch.tanh(x)


class Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, (Marked, SplitBatchNorm2d)) or super().is_leaf_module(module, name)


def narrow(network, activation=Marked, **kw):
    return make_model(network, activation=activation, in_channels=3, n_classes=10, width=4, **kw)


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("network", "classes", "sets", "parameters"),
    [
        ("resnet18", 10, 1, 11_173_962),
        ("resnet18", 100, 1, 11_220_132),
        ("resnet18", 10, 2, 11_183_562),
        ("preact_resnet18", 10, 1, 11_172_170),
        ("wrn_28_10", 10, 1, 36_479_194),
        ("wrn_34_10", 10, 1, 46_160_474),
    ],
)
def test_parameter_counts_are_the_published_ones(network, classes, sets, parameters):
    with torch.device("meta"):  # sizes without memory or initialisation
        model = make_model(network, activation=nn.ReLU, in_channels=3, n_classes=classes, norm_sets=sets)
    assert count(model) == parameters


def test_the_small_network_on_digits_has_20_thousand_parameters():
    assert count(make_model("resnet_small", activation=nn.ReLU, in_channels=1, n_classes=10)) == 19_810


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("network", NETWORKS)
def test_no_other_nonlinearity_in_the_graph(network, norm):
    model = narrow(network, norm=norm)
    graph = Tracer().trace(model)
    modules = dict(model.named_modules())
    marked, seen = [], set()
    for node in graph.nodes:
        if node.op == "call_module":
            module = modules[node.target]
            if isinstance(module, Marked):
                marked.append(module)
            assert isinstance(module, (Marked, nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Identity))
        elif node.op in ("call_function", "call_method"):
            seen.add(getattr(node.target, "__name__", node.target))
    assert seen == {"add", "mean"}  # the residual sum and the global average pooling
    assert len(marked) == ACTIVATIONS_IN[network]
    assert len(set(map(id, marked))) == len(marked)  # one instance per place


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("network", NETWORKS)
def test_with_the_identity_as_activation_the_network_is_affine(network, norm):
    model = narrow(network, nn.Identity, norm=norm).double().eval()
    x, y = torch.rand(2, 5, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        mixed = model(0.3 * x + 0.7 * y)
        # identical up to rounding of a few hundred float64 additions
        torch.testing.assert_close(mixed, 0.3 * model(x) + 0.7 * model(y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_configured_activation_is_the_only_one(network):
    config = RunConfig(network=network, width=2, activation="rctaf", alpha=3.0, beta=2)
    model = from_config(config, in_channels=1, n_classes=10)
    kinds = [m for m in model.modules() if type(m).__name__ == "RCTAF"]
    assert len(kinds) == ACTIVATIONS_IN[network]
    assert all((m.alpha, m.beta) == (3.0, 2) for m in kinds)


def test_initial_weights_depend_on_the_seed_alone(monkeypatch):
    def flat(model):
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    def weights(seed):
        return flat(from_config(RunConfig(seed=seed), in_channels=1, n_classes=10))

    torch.manual_seed(0)
    expected = flat(make_model("resnet_small", activation=nn.ReLU, in_channels=1, n_classes=10))
    torch.manual_seed(5)
    number = torch.rand(3)
    torch.manual_seed(5)
    # the generators of all GPUs
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the caller's generators were used"))
    first = weights(0)
    assert torch.equal(torch.rand(3), number)  # the caller's generator was not used
    assert torch.equal(first, expected)
    with torch.device("meta"):
        elsewhere = weights(0)
    assert torch.equal(first, elsewhere)
    assert not torch.equal(first, weights(1))


@pytest.mark.parametrize("network", NETWORKS)
def test_channels_last_gives_the_same_logits(network):
    model = narrow(network).eval()
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        plain = model(x)
        last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    # float32 sums in another order
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_without_norm_every_branch_begins_empty_and_gradients_reach_every_weight(network):
    model = narrow(network, nn.Softplus, norm="none")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert all(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d))
    assert all(not block.conv2.weight.any() for block in model.blocks)
    x, y = torch.rand(16, 3, 16, 16), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(2):  # the first step only fills the empty convolutions
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_split_norm_keeps_statistics_and_gains_apart():
    model = narrow("resnet18", norm_sets=2)
    norms = [m for m in model.modules() if isinstance(m, SplitBatchNorm2d)]
    assert len(norms) == 20
    x = torch.rand(8, 3, 16, 16)
    select_norm(model, 1)
    model(x).sum().backward()
    for norm in norms:
        used, idle = norm.sets[1], norm.sets[0]
        assert used.num_batches_tracked == 1
        assert idle.num_batches_tracked == 0
        assert used.bias.grad is not None
        assert idle.bias.grad is None
    model.eval()
    with torch.no_grad():
        auto = model(x)
        select_norm(model, 0)
        assert not torch.equal(model(x), auto)
    with pytest.raises(ValueError, match="between 0 and 1, got 2"):
        select_norm(model, 2)


def test_split_norm_with_one_set_in_use_is_plain_batch_norm():
    torch.manual_seed(0)
    plain = narrow("wrn_28_10")
    torch.manual_seed(0)
    split = narrow("wrn_28_10", norm_sets=3)
    x = torch.rand(8, 3, 16, 16)
    assert torch.equal(plain(x), split(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "vgg"}, "got 'vgg'"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"norm": "layer"}, "norm must be batch or none, got 'layer'"),
        ({"norm_sets": 0}, "norm_sets must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_model(**{"network": "resnet18", "activation": nn.ReLU, "in_channels": 3, "n_classes": 10, **settings})


@pytest.mark.parametrize("network", ["resnet_small", "resnet18"])
def test_a_gain_writes_the_same_function_at_the_start(network):
    """(alpha, gain 1) and (alpha / 8, gain 8): identity shortcuts and projections included, in both modes."""
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    settings = {"network": network, "width": 4, "seed": 5}
    for eps, close in ((1e-30, 1e-12), (1e-5, 1e-3)):  # without the norms' eps only rounding is left
        plain, scaled = (
            from_config(RunConfig(**settings, **kw), in_channels=1, n_classes=10).double()
            for kw in ({"alpha": 16.0}, {"alpha": 2.0, "gain": 8.0})
        )
        for model in (plain, scaled):
            for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
                norm.eps = eps
        assert {m.weight.unique().item() for m in scaled.modules() if isinstance(m, nn.BatchNorm2d)} == {8.0}
        for training in (False, True, False):  # at the very start, and with statistics of some images
            with torch.no_grad():
                one, other = plain.train(training)(x), scaled.train(training)(x)
            assert ((one - other).abs().max() / one.abs().max()).item() < close


def test_gain_reaches_every_set_of_a_split_norm_and_needs_norms_everywhere():
    model = from_config(RunConfig(network="resnet18", width=2, method="dajat", gain=3.0), in_channels=3, n_classes=10)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 40
    assert all((norm.weight == 3).all() for norm in norms)
    with pytest.raises(ValueError, match="gain=3 needs resnet_small or resnet18, got preact_resnet18"):
        RunConfig(network="preact_resnet18", gain=3.0)


def test_learned_alphas_one_for_each_place():
    config = RunConfig(alpha=4.0, beta=2, alpha_learned=True)
    model = from_config(config, in_channels=1, n_classes=10)
    alphas = [p for name, p in model.named_parameters() if name.endswith("log_alpha")]
    assert len(alphas) == ACTIVATIONS_IN["resnet_small"]
    plain = from_config(RunConfig(alpha=4.0, beta=2), in_channels=1, n_classes=10)
    assert count(model) == count(plain) + len(alphas)
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(model(x), plain(x))  # the same initial weights too
    assert config.curvature == 4
