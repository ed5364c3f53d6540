import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rctaf.evaluation import accuracy, mean_loss, pgd_accuracy
from rctaf.training.attacks import cross_entropy, pgd


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(40, 1, 4, 4, generator=generator), torch.randint(0, 5, (40,), generator=generator)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(), nn.Linear(8, 5))


def test_counts_are_those_of_a_plain_loop_in_eval_mode_for_every_batch_size(model, images):
    x, y = images
    model.train()
    model[0].eval()  # a mode of its own, to be kept
    before = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    counts = {accuracy(model, x, y, batch_size=size) for size in (1, 7, 40, 100)}
    means = [mean_loss(model, x, y, batch_size=size) for size in (7, 100)]
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.eval()
    expected = sum(int(model(x[i : i + 1]).argmax()) == int(y[i]) for i in range(len(x)))
    assert counts == {(expected, 40)}
    losses = [-model(x[i : i + 1]).log_softmax(1)[0, y[i]].item() for i in range(len(x))]
    assert means == pytest.approx([sum(losses) / 40] * 2, rel=1e-6)  # float32 sums of 40 terms of order 1


def test_unequal_numbers_are_refused(model, images):
    x, y = images
    with pytest.raises(ValueError, match="40 images and 39 labels"):
        accuracy(model, x, y[:-1])
    with pytest.raises(ValueError, match="40 images and 39 labels"):
        pgd_accuracy(model, x, y[:-1], 0.1)
    with pytest.raises(ValueError, match="40 images and 39 labels"):
        mean_loss(model, x, y[:-1])
    with pytest.raises(ValueError, match="0 images and 0 labels"):
        mean_loss(model, x[:0], y[:0])


def test_pgd_on_a_linear_model_finds_exactly_the_images_that_can_be_fooled(images):
    # Two classes of a linear model: the best perturbation moves every pixel by epsilon against the
    # sign of the weight difference, so the true count is known.
    x = images[0] * 0.4 + 0.3  # away from 0 and 1: no clipping
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).requires_grad_(False)
    linear[1].bias[1] -= linear(x).diff(dim=1).median()  # both classes occur
    y = linear(x).argmax(1)
    distance = linear(x).diff(dim=1)[:, 0].abs() / linear[1].weight.diff(dim=0).abs().sum()
    first, second = distance.sort().values[19:21]
    epsilon = float(first + second) / 2  # 20 images are nearer to the boundary than this
    assert epsilon < 0.3
    assert pgd_accuracy(linear, x, y, epsilon) == (20, 40)


class Sine(nn.Module):
    def forward(self, x):
        return (10 * x).sin()


def test_pgd_takes_20_steps_of_a_quarter_from_uniform_starts_of_its_seed(images):
    """The count against the attack itself, batch by batch, on a model so rough that the start decides."""
    x, _ = images
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), Sine(), nn.Linear(32, 5)).requires_grad_(False)
    y = model(x).argmax(1)
    settings = {"epsilon": 0.05, "steps": 20, "step_size": 0.0125, "start": "uniform"}
    expected = []
    for seed in range(8):
        generator, left = torch.Generator().manual_seed(seed), 0
        for a, b in zip(x.split(15), y.split(15), strict=True):
            attacked = pgd(model, a, cross_entropy(b), **settings, generator=generator)
            left += int((model(attacked).argmax(1) == b).sum())
        expected.append((left, 40))
    assert len(set(expected)) > 2
    assert [pgd_accuracy(model, x, y, 0.05, seed=seed, batch_size=15) for seed in range(8)] == expected


def test_pgd_is_repeatable_monotone_in_the_budget_and_leaves_the_model_alone(model, images):
    x, _ = images
    y = model.eval()(x).argmax(1)
    model.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    counts = [pgd_accuracy(model, x, y, epsilon, seed=5)[0] for epsilon in (0.0, 0.05, 0.2, 0.6)]
    assert counts == [pgd_accuracy(model, x, y, epsilon, seed=5)[0] for epsilon in (0.0, 0.05, 0.2, 0.6)]
    assert counts[0] == len(x)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    F.cross_entropy(model(x), y).backward()  # the parameters still learn
    assert all(p.grad is not None for p in model.parameters())
