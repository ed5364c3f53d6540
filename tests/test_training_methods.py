"""Each loss against a plain loop over its formula, with gradients by central differences, in float64."""

import copy
import math

import pytest
import torch
from torch import nn

from rctaf.attacks import cross_entropy, divergence_from, pgd
from rctaf.config import RunConfig
from rctaf.models import SplitBatchNorm2d, make_model
from rctaf.models.norm import eval_mode
from rctaf.training.batchnorm import NormStatistics
from rctaf.training.methods import View, make_method
from rctaf.training.schedules import Budget

CLASSES, BATCH = 4, 3


class Table(nn.Module):
    """A "network" whose logits are parameters: image i holds the row numbers of its own logits."""

    def __init__(self, rows):
        super().__init__()
        torch.manual_seed(0)
        self.logits = nn.Parameter(2 * torch.randn(rows, CLASSES, dtype=torch.float64))

    def forward(self, x):
        return self.logits[x.flatten().long()]


def softmax(z):
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / sum(e) for v in e]


def ce(z, y):
    return -math.log(softmax(z)[y])


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def check(method, formula, n_views=1, scale=1.0):
    """Compare value and gradient of ``method.loss`` with ``formula(logits, labels, held)``.

    ``logits[v][which][i]`` is a list of logits of view v, image i (which: 0 clean, 1 attacked); ``held`` is a copy
    that the differences below do not move: the formula uses it wherever the method must stop the gradient.
    """
    rows = 2 * n_views * BATCH
    model = Table(rows)
    model.logits.data *= scale
    index = torch.arange(rows).reshape(n_views, 2, BATCH, 1, 1, 1)
    views = [View(index[v, 0], index[v, 1], norm_set=min(v, 1)) for v in range(n_views)]
    y = torch.tensor([2, 0, 3])
    outcome = method.loss(model, views, y)
    outcome.loss.backward()

    def value(flat):
        return formula(flat.reshape(n_views, 2, BATCH, CLASSES).tolist(), y.tolist(), held)

    base = model.logits.detach().clone()
    held = base.reshape(n_views, 2, BATCH, CLASSES).tolist()
    assert outcome.loss.item() == pytest.approx(value(base), rel=1e-12)
    step = 1e-5  # the difference is then right to about step^2 + rounding / step = 1e-10 + 1e-11
    for i in range(rows):
        for j in range(CLASSES):
            up, down = base.clone(), base.clone()
            up[i, j] += step
            down[i, j] -= step
            slope = (value(up) - value(down)) / (2 * step)
            assert model.logits.grad[i, j].item() == pytest.approx(slope, rel=1e-7, abs=1e-8)
    return outcome, base.reshape(n_views, 2, BATCH, CLASSES)


def make(**settings):
    return make_method(RunConfig(**settings))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_standard_loss():
    outcome, logits = check(make(method="standard"), lambda z, y, held: mean(map(ce, z[0][0], y)))
    assert torch.equal(outcome.clean_logits, logits[0, 0])
    assert outcome.attacked_logits is None


def test_pgd_loss_sees_attacked_images_only():
    outcome, logits = check(make(method="pgd"), lambda z, y, held: mean(map(ce, z[0][1], y)))
    assert torch.equal(outcome.attacked_logits, logits[0, 1])
    assert outcome.clean_logits is None


def trades_formula(lam):
    def formula(z, y, held):
        clean, attacked = z[0]
        return mean(
            ce(c, label) + lam * kl(softmax(c), softmax(a)) for c, a, label in zip(clean, attacked, y, strict=True)
        )

    return formula


def test_trades_loss_moves_both_sides_of_the_divergence():
    outcome, logits = check(make(method="trades", lam=6.0), trades_formula(6.0))
    assert torch.equal(outcome.clean_logits, logits[0, 0])
    assert torch.equal(outcome.attacked_logits, logits[0, 1])


@pytest.fixture
def network():
    torch.manual_seed(1)
    model = make_model("resnet_small", activation=nn.Softplus, in_channels=1, n_classes=10, width=2).train()
    g = torch.Generator().manual_seed(2)
    return model, torch.rand(16, 1, 8, 8, generator=g), torch.arange(16) % 10


def test_trades_updates_batch_norm_three_times_as_the_original(network):
    model, x, y = network
    other = copy.deepcopy(model)
    attacked = (x + 0.1).clamp(0, 1)
    make(method="trades").loss(model, [View(x, attacked)], y).loss.backward()
    with torch.no_grad():
        for images in (x, attacked, x):
            other(images)
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        if "running" in name:
            # one update is recovered by a subtraction that costs a factor 10 of float32's 1e-7
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d, (6, 4)), (nn.BatchNorm2d, (6, 4, 3, 3)), (nn.BatchNorm3d, (6, 4, 2, 2, 2))]
)
@pytest.mark.parametrize("momentum", [0.1, 0.3])
def test_statistics_are_those_of_the_norms_own_forwards(norm, shape, momentum):
    x, z = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).double()
    model = nn.Sequential(norm(4, momentum=momentum), norm(4, momentum=momentum), norm(4, track_running_stats=False))
    model, other = model.double(), copy.deepcopy(model.double())
    statistics = NormStatistics(model)
    model(x)
    update = statistics.last_update()
    model(z)
    statistics.apply(update)
    for images in (x, z, x):
        other(images)
    running = [(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True) if a.ndim]
    assert len(running) == 4
    for ours, theirs in running:
        torch.testing.assert_close(ours, theirs)
    statistics.restore()
    assert [float(ours.sum()) for ours, _ in running] == [0, 4, 0, 4]


@pytest.mark.parametrize("momenta", [(0.1, 0.2), (None, None), (0.1, None)])
def test_statistics_of_norms_without_one_momentum_are_refused(momenta):
    model = nn.Sequential(*(nn.BatchNorm2d(2, momentum=momentum) for momentum in momenta))
    given = ", ".join(dict.fromkeys(map(str, momenta)))
    with pytest.raises(ValueError, match=f"one number as momentum.*got {given}$"):
        NormStatistics(model)


@pytest.mark.parametrize(
    ("method", "updates"), [("standard", 1), ("pgd", 1), ("trades", 2), ("mart", 2), ("dajat", 2), ("dkl", 2)]
)
def test_training_mode_forwards_per_step(network, method, updates):
    model, x, y = network
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    make(method=method).loss(model, [View(x, x)], y)
    assert modes == [True] * updates


@pytest.mark.parametrize(
    ("method", "forwards"), [("standard", 0), ("pgd", 3), ("trades", 4), ("mart", 3), ("dajat", 4), ("dkl", 4)]
)
def test_attacks_run_in_evaluation_mode_with_one_natural_forward(network, method, forwards):
    model, x, y = network
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    attacked = make(method=method).attack(model, x, y, Budget(0.1, 3, 0.05), torch.Generator().manual_seed(0))
    assert modes == [False] * forwards
    assert model.training
    assert (attacked is x) == (method == "standard")


@pytest.mark.parametrize("method", ["trades", "dajat"])
def test_the_trades_attack_ascends_the_divergence_from_a_gaussian_start(network, method):
    model, x, y = network
    ours = make(method=method).attack(model, x, y, Budget(0.1, 3, 0.05), torch.Generator().manual_seed(0))
    with eval_mode(model), torch.no_grad():
        objective = divergence_from(model(x))
    generator = torch.Generator().manual_seed(0)
    expected = pgd(model, x, objective, epsilon=0.1, steps=3, step_size=0.05, start="gaussian", generator=generator)
    assert torch.equal(ours, expected)


def test_mart_loss_holds_nothing_fixed():
    def formula(z, y, held):
        total = []
        for clean, attacked, label in zip(*z[0], y, strict=True):
            p, q = softmax(clean), softmax(attacked)
            others = [q[k] for k in range(CLASSES) if k != label]
            boosted = -math.log(q[label]) - math.log(1.0001 - max(others) + 1e-12)
            divergence = sum(a * (math.log(a) - math.log(b + 1e-12)) for a, b in zip(p, q, strict=True))
            total.append(boosted + 5.0 * divergence * (1.0000001 - p[label]))
        return mean(total)

    outcome, logits = check(make(method="mart", lam=5.0), formula)
    assert torch.equal(outcome.clean_logits, logits[0, 0])
    assert torch.equal(outcome.attacked_logits, logits[0, 1])


def smoothed_ce(z, y, smoothing):
    log_p = [math.log(p) for p in softmax(z)]
    wrong = smoothing / (len(z) - 1)
    return -sum(((1 - smoothing) if k == y else wrong) * log_p[k] for k in range(len(z)))


def dajat_formula(lam, lam_jsd, smoothing):
    def formula(z, y, held):
        views = [
            mean(
                smoothed_ce(c, label, smoothing) + lam * kl(softmax(c), softmax(a))
                for c, a, label in zip(clean, attacked, y, strict=True)
            )
            for clean, attacked in z
        ]
        divergences = []
        for i in range(len(y)):
            p = [softmax(z[v][0][i]) for v in range(len(z))]
            mixture = [max(mean(column), 1e-7) for column in zip(*p, strict=True)]  # as in the original
            divergences.append(mean(kl(p_v, mixture) for p_v in p))
        return mean(views) + lam_jsd * mean(divergences)

    return formula


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("auto_views", [0, 1, 2])
def test_dajat_loss(auto_views, smoothing):
    method = make(method="dajat", lam=11.0, lam_jsd=2.0, auto_views=auto_views, label_smoothing=smoothing)
    assert method.views == ("base", "auto", "auto")[: 1 + auto_views]
    outcome, logits = check(method, dajat_formula(11.0, 2.0, smoothing), n_views=1 + auto_views)
    assert torch.equal(outcome.clean_logits, logits[0, 0])  # accuracies are those of the base view


def test_dajat_bounds_the_mixture_of_its_views_from_below():
    """Logits up to 30 apart: some class has a mixture below 1e-7, others between that and 1e-3."""
    method = make(method="dajat", lam=0.5, lam_jsd=2.0, auto_views=1)
    check(method, dajat_formula(0.5, 2.0, 0.0), n_views=2, scale=5.0)


def test_the_dajat_weight_perturbation_sees_the_base_view_without_smoothing():
    method = make(method="dajat", lam=11.0, label_smoothing=0.1)
    model = Table(6 * BATCH)
    index = torch.arange(6 * BATCH).reshape(3, 2, BATCH, 1, 1, 1)
    views = [View(index[v, 0], index[v, 1], min(v, 1)) for v in range(3)]
    value = method.ascent_loss(model, views, torch.tensor([2, 0, 3])).item()
    z = model.logits.detach().reshape(3, 2, BATCH, CLASSES).tolist()
    assert value == pytest.approx(trades_formula(11.0)(z, [2, 0, 3], z), rel=1e-12)


def dkl_formula(lam, lam_mse, weights):
    def formula(z, y, held):
        total = []
        for i, label in enumerate(y):
            clean, attacked = z[0][0][i], z[0][1][i]
            target = softmax(held[0][0][i])
            soft = -sum(t * math.log(q) for t, q in zip(target, softmax(attacked), strict=True))
            d = [c - a for c, a in zip(clean, attacked, strict=True)]
            w = weights[label]
            squared = sum(w[j] * w[k] * (d[j] - d[k]) ** 2 for j in range(CLASSES) for k in range(CLASSES))
            total.append(ce(clean, label) + lam * soft + lam_mse / 4 * squared)
        return mean(total)

    return formula


def class_means(temperature, steps):
    """The table after an epoch of (logits, labels) steps; uniform rows for classes that were not seen."""
    sums = [[0.0] * CLASSES for _ in range(CLASSES)]
    for logits, labels in steps:
        for z, label in zip(logits, labels, strict=True):
            for k, p in enumerate(softmax([v / temperature for v in z])):
                sums[label][k] += p
    return [[v / sum(row) for v in row] if sum(row) else [1 / CLASSES] * CLASSES for row in sums]


def test_dkl_loss_uses_uniform_weights_first_then_last_epochs_class_means():
    method = make(method="dkl", lam=4.0, lam_mse=20.0, temperature=3.0)
    uniform = [[1 / CLASSES] * CLASSES for _ in range(CLASSES)]
    first, logits = check(method, dkl_formula(4.0, 20.0, uniform))
    other = copy.copy(first)
    object.__setattr__(other, "clean_logits", torch.randn(2, CLASSES, dtype=torch.float64))
    method.observe(first, torch.tensor([2, 0, 3]))
    method.observe(other, torch.tensor([2, 2]))
    check(method, dkl_formula(4.0, 20.0, uniform))  # nothing changes within the epoch
    method.end_epoch()
    means = class_means(3.0, [(logits[0, 0].tolist(), [2, 0, 3]), (other.clean_logits.tolist(), [2, 2])])
    torch.testing.assert_close(method.state_dict()["means"], torch.tensor(means, dtype=torch.float64))
    check(method, dkl_formula(4.0, 20.0, means))
    method.observe(first, torch.tensor([2, 0, 3]))
    method.end_epoch()  # of that epoch's images alone
    table = torch.tensor(class_means(3.0, [(logits[0, 0].tolist(), [2, 0, 3])]), dtype=torch.float64)
    table[1] = 1 / CLASSES  # never seen
    torch.testing.assert_close(method.state_dict()["means"], table)
    method.observe(other, torch.tensor([2, 2]))
    method.end_epoch()
    torch.testing.assert_close(method.state_dict()["means"][0], table[0])  # not seen again: it keeps its row


@pytest.mark.parametrize("attack_mse", [False, True])
def test_the_dkl_attack(network, attack_mse):
    model, x, y = network
    method = make(method="dkl", attack_mse=attack_mse)
    method._means = torch.rand(10, 10).softmax(1)
    ours = method.attack(model, x, y, Budget(0.1, 2, 0.05), torch.Generator().manual_seed(0))
    with eval_mode(model), torch.no_grad():
        natural = model(x)
    soft = divergence_from(natural)

    def objective(logits):
        value = soft(logits)
        if attack_mse:
            d, w = natural - logits, method._means[y]
            pairs = (w[:, :, None] * w[:, None, :] * (d[:, :, None] - d[:, None, :]) ** 2).sum()
            value = value + pairs / 4
        return value

    generator = torch.Generator().manual_seed(0)
    expected = pgd(model, x, objective, epsilon=0.1, steps=2, step_size=0.05, start="gaussian", generator=generator)
    # the two forms of the sum round differently, which may turn the sign of a gradient that is almost zero
    assert (ours != expected).double().mean() < 0.01
    plain = make(method="dkl").attack(model, x, y, Budget(0.1, 2, 0.05), torch.Generator().manual_seed(0))
    assert torch.equal(ours, plain) != attack_mse


@pytest.mark.parametrize(("method", "start"), [("pgd", "uniform"), ("mart", "gaussian")])
def test_attacks_on_the_cross_entropy_and_their_starts(network, method, start):
    model, x, y = network
    ours = make(method=method).attack(model, x, y, Budget(0.1, 3, 0.05), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    expected = pgd(model, x, cross_entropy(y), epsilon=0.1, steps=3, step_size=0.05, start=start, generator=generator)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(("method", "order"), [("mart", "clean attacked"), ("dkl", "attacked clean")])
def test_batch_norm_sees_clean_and_attacked_images_in_the_originals_order(network, method, order):
    model, x, y = network
    attacked = (x + 0.1).clamp(0, 1)
    other = copy.deepcopy(model)
    make(method=method).loss(model, [View(x, attacked)], y)
    with torch.no_grad():
        for images in (x, attacked) if order == "clean attacked" else (attacked, x):
            other(images)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))


def test_dajat_gives_each_kind_of_view_its_own_norms():
    torch.manual_seed(0)
    model = make_model(
        "resnet_small", activation=nn.Softplus, in_channels=1, n_classes=10, width=2, norm_sets=2
    ).train()
    x = torch.rand(8, 1, 8, 8)
    views = [View(x, x, 0), View(x, x, 1), View(x, x, 1)]
    make(method="dajat").loss(model, views, torch.arange(8)).loss.backward()
    norms = [m for m in model.modules() if isinstance(m, SplitBatchNorm2d)]
    assert {tuple(int(s.num_batches_tracked) for s in norm.sets) for norm in norms} == {(2, 4)}
    assert {norm.active for norm in norms} == {0}
    assert all(s.weight.grad is not None for norm in norms for s in norm.sets)
