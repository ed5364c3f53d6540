"""The networks: published sizes, and the proof that nothing but the given activation is nonlinear."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from rctaf.config import RunConfig
from rctaf.models import NETWORKS, SplitBatchNorm2d, from_config, make_model, select_norm
from rctaf.models.norm import start_at_gain
from rctaf.models.resnet import Block, PreActBlock, _Parts

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


def statistics_of_their_own(model):
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 2)
    return model.double().eval()


@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 6, 1), (4, 4, 2)])
@pytest.mark.parametrize("kind", [Block, PreActBlock])
def test_blocks_are_the_published_formulas(kind, shape):
    inputs, outputs, stride = shape
    torch.manual_seed(0)
    block = statistics_of_their_own(kind(inputs, outputs, stride, _Parts(nn.Tanh, "batch", 1)))
    x = torch.randn(3, inputs, 8, 8, dtype=torch.float64)

    def conv(conv, x, stride=1, padding=1):
        return F.conv2d(x, conv.weight, None, stride, padding)

    def norm(norm, x):
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]

    same = (inputs, stride) == (outputs, 1)
    if kind is Block:  # He et al. 2016a
        branch = norm(block.norm2, conv(block.conv2, norm(block.norm1, conv(block.conv1, x, stride)).tanh()))
        shortcut = x if same else norm(block.shortcut[1], conv(block.shortcut[0], x, stride, 0))
        expected = (branch + shortcut).tanh()
    else:  # He et al. 2016b: an identity carries x itself, a projection reads what the branch reads
        h = norm(block.norm1, x).tanh()
        branch = conv(block.conv2, norm(block.norm2, conv(block.conv1, h, stride)).tanh())
        expected = branch + (x if same else conv(block.shortcut, h, stride, 0))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_stage_but_the_first_halves_the_resolution_and_doubles_the_channels(network):
    model, shapes = narrow(network), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    model(torch.rand(2, 3, 32, 32))
    stages, depth = {"resnet_small": (3, 1), "wrn_28_10": (3, 4), "wrn_34_10": (3, 5)}.get(network, (4, 2))
    assert shapes == [(4 * 2**stage, 32 // 2**stage, 32 // 2**stage) for stage in range(stages) for _ in range(depth)]


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
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    without = from_config(RunConfig(network=network, width=2, norm="none"), in_channels=1, n_classes=10)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in without.modules())


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
    assert not any(tensor.any() for block in model.blocks for tensor in block.conv2.parameters())
    x, y = torch.rand(16, 3, 16, 16), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(2):  # the first step only fills the empty convolutions
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("network", NETWORKS)
def test_with_norm_no_weight_begins_empty(network):
    assert all(p.any() for p in narrow(network).parameters() if p.ndim > 1)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_wide_networks_begin_as_the_original(norm):
    """Normal weights of variance 2 over the outputs times the area, but for the empty convolutions; no bias."""
    torch.manual_seed(0)
    model = make_model("wrn_28_10", activation=nn.ReLU, in_channels=3, n_classes=10, width=32, norm=norm)
    assert not model.classifier.bias.any()
    found = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.any()]
    assert len(found) == 1 + 3 + (12 if norm == "none" else 24)
    for conv in found:
        w = conv.weight.detach().double().flatten()
        # a mean square of n normal draws has the relative deviation sqrt(2 / n); 5 of these
        share = w.square().mean() * conv.out_channels * conv.kernel_size[0] ** 2 / 2
        assert share.item() == pytest.approx(1, abs=5 * (2 / len(w)) ** 0.5)


def test_the_stem_of_a_wide_network_has_16_channels_or_as_few_as_its_first_stage():
    stems = {4: 4, 16: 16, 64: 16}
    for width, channels in stems.items():
        model = make_model("wrn_28_10", activation=nn.ReLU, in_channels=3, n_classes=10, width=width)
        assert model.stem[0].out_channels == channels


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
    for wrong in (2, -1):
        with pytest.raises(ValueError, match=f"between 0 and 1, got {wrong}"):
            select_norm(model, wrong)


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
    for gain in (3.0, 0.5):
        config = RunConfig(network="resnet18", width=2, method="dajat", gain=gain)
        model = from_config(config, in_channels=3, n_classes=10)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == 40
        assert all((norm.weight == gain).all() for norm in norms)
    without = nn.BatchNorm2d(2, track_running_stats=False)
    start_at_gain(nn.Sequential(without), 3.0)
    assert (without.weight == 3).all()
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
