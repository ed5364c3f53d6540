import pytest
import torch
from torch import nn

from rctaf.evaluation import accuracy, mean_loss


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
        mean_loss(model, x, y[:-1])
    with pytest.raises(ValueError, match="0 images and 0 labels"):
        mean_loss(model, x[:0], y[:0])


def test_labels_in_a_column_are_refused(model, images):
    # they would be compared with the predictions of all images: more of them right than there are images
    x, y = images
    with pytest.raises(ValueError, match=r"vector \[40\] of class numbers, got \[40, 1\]"):
        accuracy(model, x, y[:, None])
