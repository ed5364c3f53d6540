import pytest
import torch

from rctaf.evaluation import accuracy, mean_loss


def test_counts_are_those_of_a_plain_loop_in_eval_mode_for_every_batch_size(perceptron, random_images):
    x, y = random_images
    perceptron.train()
    perceptron[0].eval()  # a mode of its own, to be kept
    before = [module.training for module in perceptron.modules()]
    state = {name: value.clone() for name, value in perceptron.state_dict().items()}
    counts = {accuracy(perceptron, x, y, batch_size=size) for size in (1, 7, 40, 100)}
    means = [mean_loss(perceptron, x, y, batch_size=size) for size in (7, 100)]
    assert [module.training for module in perceptron.modules()] == before
    assert all(torch.equal(value, state[name]) for name, value in perceptron.state_dict().items())
    perceptron.eval()
    expected = sum(int(perceptron(x[i : i + 1]).argmax()) == int(y[i]) for i in range(len(x)))
    assert counts == {(expected, 40)}
    losses = [-perceptron(x[i : i + 1]).log_softmax(1)[0, y[i]].item() for i in range(len(x))]
    assert means == pytest.approx([sum(losses) / 40] * 2, rel=1e-6)  # float32 sums of 40 terms of order 1


def test_unequal_numbers_are_refused(perceptron, random_images):
    x, y = random_images
    with pytest.raises(ValueError, match="40 images and 39 labels"):
        accuracy(perceptron, x, y[:-1])
    with pytest.raises(ValueError, match="40 images and 39 labels"):
        mean_loss(perceptron, x, y[:-1])
    with pytest.raises(ValueError, match="0 images and 0 labels"):
        mean_loss(perceptron, x[:0], y[:0])


def test_labels_in_a_column_are_refused(perceptron, random_images):
    # they would be compared with the predictions of all images: more of them right than there are images
    x, y = random_images
    with pytest.raises(ValueError, match=r"vector \[40\] of class numbers, got \[40, 1\]"):
        accuracy(perceptron, x, y[:, None])


def test_a_model_that_has_diverged_is_refused(perceptron, random_images):
    # its predictions would all be class 0
    x, y = random_images
    assert accuracy(perceptron, x[:0], y[:0]) == (0, 0)
    with torch.no_grad():
        next(perceptron.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="logits are not finite: has the training diverged"):
        accuracy(perceptron, x, y, batch_size=7)


@pytest.mark.parametrize("wrong", [-1, 1000])
def test_labels_outside_the_classes_are_refused(perceptron, random_images, wrong):
    x, y = random_images
    y = y.clone()
    y[3] = wrong
    with pytest.raises(ValueError, match=rf"labels must be class numbers from 0 to \d+, these lie in .*{wrong}"):
        accuracy(perceptron, x, y, batch_size=7)
