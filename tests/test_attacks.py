"""The inner attack against a plain per-pixel loop in float64, and what it must leave alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rctaf.attacks import cross_entropy, divergence_from, natural_logits, pgd, pgd20
from rctaf.evaluation import accuracy
from rctaf.models import make_model
from rctaf.models.norm import eval_mode


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = make_model("resnet_small", activation=nn.Softplus, in_channels=1, n_classes=10, width=2).train()
    return model, torch.rand(12, 1, 8, 8), torch.arange(12) % 10


SETTINGS = {"epsilon": 0.1, "steps": 4, "step_size": 0.04}


@pytest.mark.parametrize("start", ["uniform", "gaussian"])
def test_the_attack_stays_in_the_ball_and_in_the_pixel_range_and_raises_the_loss(network, start):
    model, x, y = network
    attacked = pgd(model, x, cross_entropy(y), **SETTINGS, start=start, generator=generator())
    assert not attacked.requires_grad
    assert (attacked - x).abs().max() <= 0.1 + 1e-7  # one rounding of a pixel in float32
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    model.eval()
    assert F.cross_entropy(model(attacked), y) > F.cross_entropy(model(x), y)


def test_bf16_attacks_from_where_single_precision_does(network):
    """bfloat16 has steps of 0.004 near 1: a start 0.001 away would be x again, and its gradient rounding."""
    model, x, y = network
    once = {"epsilon": 0.1, "steps": 1, "step_size": 0.04, "start": "gaussian"}

    def step():
        objective = divergence_from(natural_logits(model, x))
        return pgd(model, x, objective, **once, generator=generator())

    wanted = step()
    with torch.autocast("cpu", torch.bfloat16), eval_mode(model):
        assert model(x).dtype == torch.bfloat16
        assert torch.equal(step(), wanted)
        formats = []
        model.register_forward_hook(lambda *call: formats.append(call[-1].dtype))
        pgd(model, x, cross_entropy(y), **SETTINGS, start="gaussian", generator=generator())
    assert formats == [torch.float32, *[torch.bfloat16] * 3]  # the first step alone


def test_the_attack_runs_in_evaluation_mode_and_leaves_the_model_alone(network):
    model, x, y = network
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    before = copy.deepcopy(model.state_dict())
    pgd(model, x, cross_entropy(y), **SETTINGS, start="uniform", generator=generator())
    assert modes == [False] * 4
    assert model.training
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_mode_comes_back_after_an_error(network):
    model, *_ = network

    def fail():
        with eval_mode(model):
            assert not model.training
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.training


def test_every_step_follows_the_definition():
    """A linear model, whose cross-entropy gradient is sum_k (p_k - [k = y]) w_k, stepped pixel by pixel."""
    rng = generator(3)
    weight = torch.randn(4, 6, generator=rng, dtype=torch.float64)
    x = torch.rand(5, 1, 2, 3, generator=rng, dtype=torch.float64)
    y = torch.tensor([0, 3, 1, 2, 0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(weight)
    attacked = pgd(model, x, cross_entropy(y), **SETTINGS, start="uniform", generator=generator(7))
    start = pgd(
        model, x, cross_entropy(y), epsilon=0.1, steps=0, step_size=0.04, start="uniform", generator=generator(7)
    )
    for i in range(5):
        clean, pixels = x[i].flatten().tolist(), start[i].flatten().tolist()
        for _ in range(4):
            logits = [sum(w * p for w, p in zip(row, pixels, strict=True)) for row in weight.tolist()]
            p = torch.tensor(logits).softmax(0).tolist()
            for j in range(6):
                slope = sum((p[k] - int(k == y[i].item())) * weight[k, j].item() for k in range(4))
                # the sign is used, so the reference works unless a slope is lost in rounding
                assert abs(slope) > 1e-6
                moved = pixels[j] + (0.04 if slope > 0 else -0.04)
                moved = min(max(moved, clean[j] - 0.1), clean[j] + 0.1)
                pixels[j] = min(max(moved, 0.0), 1.0)
        torch.testing.assert_close(attacked[i].flatten(), torch.tensor(pixels, dtype=torch.float64), rtol=0, atol=1e-12)


def test_starts():
    x = torch.rand(200, 1, 8, 8, generator=generator(1))
    settings = {"epsilon": 0.1, "steps": 0, "step_size": 0.0, "generator": generator(2)}
    noise = pgd(nn.Identity(), x, cross_entropy(x), **settings, start="gaussian") - x
    # 12,800 draws: the mean of the sample is within 5 standard errors of 0, its deviation within 3 % of 0.001
    assert noise.mean().abs() < 5 * 0.001 / 12_800**0.5
    assert noise.std().item() == pytest.approx(0.001, rel=0.03)
    # not cut off at the pixel range, as in the original: the first gradient is taken beside a black pixel
    assert pgd(nn.Identity(), 0 * x, cross_entropy(x), **settings, start="gaussian").min() < 0
    inner = (x > 0.1) & (x < 0.9)
    started = pgd(nn.Identity(), x, cross_entropy(x), **settings, start="uniform")
    assert (started.min(), started.max()) == (0, 1)  # the first gradient is taken at an image
    noise = (started - x)[inner]
    assert noise.abs().max() <= 0.1 + 1e-7
    assert noise.std().item() == pytest.approx(0.2 / 12**0.5, rel=0.03)
    with pytest.raises(ValueError, match="got 'zero'"):
        pgd(nn.Identity(), x, cross_entropy(x), **settings, start="zero")


def test_it_attacks_where_gradients_are_off(network):
    model, x, y = network
    with torch.no_grad():
        off = pgd(model, x, cross_entropy(y), **SETTINGS, start="uniform", generator=generator())
    assert torch.equal(off, pgd(model, x, cross_entropy(y), **SETTINGS, start="uniform", generator=generator()))


def test_the_draw_comes_from_the_given_generator(network):
    model, x, y = network
    one, two, three = (
        pgd(model, x, cross_entropy(y), **SETTINGS, start="uniform", generator=generator(s)) for s in (4, 4, 5)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_soft_cross_entropy_has_the_gradient_of_the_kl_divergence_and_holds_the_target_fixed():
    natural = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    attacked = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(divergence_from(natural)(attacked), attacked)
    p, q = natural.detach().softmax(1), attacked.softmax(1)
    (kl,) = torch.autograd.grad((p * (p.log() - q.log())).sum(), attacked)
    torch.testing.assert_close(ours, kl)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(divergence_from(natural)(attacked), natural)


def test_pgd20_on_a_linear_model_finds_exactly_the_images_that_can_be_fooled(random_images):
    # Two classes of a linear model: the best perturbation moves every pixel by epsilon against the
    # sign of the weight difference, so the true count is known.
    x = random_images[0] * 0.4 + 0.3  # away from 0 and 1: no clipping
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).requires_grad_(False)
    linear[1].bias[1] -= linear(x).diff(dim=1).median()  # both classes occur
    y = linear(x).argmax(1)
    distance = linear(x).diff(dim=1)[:, 0].abs() / linear[1].weight.diff(dim=0).abs().sum()
    first, second = distance.sort().values[19:21]
    epsilon = float(first + second) / 2  # 20 images are nearer to the boundary than this
    assert epsilon < 0.3
    assert accuracy(linear, pgd20(linear, x, y, epsilon), y) == (20, 40)


class Sine(nn.Module):
    def forward(self, x):
        return (10 * x).sin()


def test_pgd20_takes_20_steps_of_a_quarter_from_uniform_starts_of_its_seed(random_images):
    """The images against the attack itself, batch by batch, on a model so rough that the start decides."""
    x, _ = random_images
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), Sine(), nn.Linear(32, 5)).requires_grad_(False)
    y = model(x).argmax(1)
    settings = {"epsilon": 0.05, "steps": 20, "step_size": 0.0125, "start": "uniform"}
    counts = set()
    for seed in range(8):
        one = generator(seed)  # for all batches
        parts = zip(x.split(15), y.split(15), strict=True)
        expected = torch.cat([pgd(model, a, cross_entropy(b), **settings, generator=one) for a, b in parts])
        attacked = pgd20(model, x, y, 0.05, seed=seed, batch_size=15)
        assert torch.equal(attacked, expected)
        counts.add(accuracy(model, attacked, y)[0])
    assert len(counts) > 2


def test_pgd20_is_repeatable_monotone_in_the_budget_and_leaves_the_model_alone(perceptron, random_images):
    x, _ = random_images
    y = perceptron.eval()(x).argmax(1)
    perceptron.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    attacked = [pgd20(perceptron, x, y, epsilon, seed=5) for epsilon in (0.0, 0.05, 0.2, 0.6)]
    with torch.inference_mode():
        again = [pgd20(perceptron, x, y, epsilon, seed=5) for epsilon in (0.0, 0.05, 0.2, 0.6)]
    assert all(torch.equal(a, b) for a, b in zip(attacked, again, strict=True))
    counts = [accuracy(perceptron, a, y)[0] for a in attacked]
    assert counts[0] == len(x)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert perceptron.training
    assert all(p.grad is None for p in perceptron.parameters())
    F.cross_entropy(perceptron(x), y).backward()  # the parameters still learn
    assert all(p.grad is not None for p in perceptron.parameters())


def test_pgd20_refuses_unequal_numbers(perceptron, random_images):
    x, y = random_images
    with pytest.raises(ValueError, match="40 images and 39 labels"):
        pgd20(perceptron, x, y[:-1], 0.1)


def test_pgd20_refuses_images_and_radii_in_other_units(perceptron, random_images):
    x, y = random_images
    with pytest.raises(ValueError, match=r"these lie in \[-?\d"):
        pgd20(perceptron, 2 * x - 1, y, 0.1)  # it would clamp them, and so move them further than 0.1
    for epsilon in (8, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"epsilon must lie in \[0, 1\]"):
            pgd20(perceptron, x, y, epsilon)


def test_pgd20_refuses_a_model_that_has_diverged(perceptron, random_images):
    x, y = random_images
    with torch.no_grad():
        next(perceptron.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="logits are not finite: has the training diverged"):
        pgd20(perceptron, x, y, 0.1)
    assert pgd20(perceptron, x[:0], y[:0], 0.1).shape == x[:0].shape
