"""Adversarial weight perturbation and averaging, against their definitions; budgets and recipes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rctaf import recipes
from rctaf.config import RunConfig
from rctaf.data import load
from rctaf.models import from_config, make_model
from rctaf.training import loop, train
from rctaf.training.schedules import Budget, budget, learning_rate
from rctaf.training.weights import WeightAverage, perturbed


@pytest.fixture
def network():
    torch.manual_seed(1)
    model = make_model("resnet_small", activation=nn.Softplus, in_channels=1, n_classes=10, width=2).train()
    return model, torch.rand(16, 1, 8, 8), torch.arange(16) % 10


def test_the_perturbation_is_an_sgd_step_of_a_copy_rescaled_to_the_weights(network):
    """As the originals do it: a proxy takes one step of any learning rate, its change is scaled to |w|."""
    model, x, y = network
    before = copy.deepcopy(model)
    proxy = copy.deepcopy(model)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.2)
    (-F.cross_entropy(proxy(x), y)).backward()
    optimizer.step()
    with perturbed(model, lambda: F.cross_entropy(model(x), y), gamma=0.005):
        for (name, w), old, new in zip(model.named_parameters(), before.parameters(), proxy.parameters(), strict=True):
            change = new - old
            expected = old + 0.005 * change * old.norm() / change.norm() if old.ndim > 1 else old
            # the proxy's change is a float32 difference of nearly equal weights
            torch.testing.assert_close(w, expected, rtol=1e-4, atol=1e-6, msg=name)
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before.buffers(), strict=True) if a.ndim)
    for w, old in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(w, old, rtol=1e-6, atol=1e-7)


def test_the_optimisers_step_survives_the_restoration(network):
    model, x, y = network
    conv = model.stem[0].weight
    before = conv.detach().clone()
    with perturbed(model, lambda: F.cross_entropy(model(x), y), gamma=0.1), torch.no_grad():
        conv += 1
    torch.testing.assert_close(conv.detach(), before + 1)


def test_the_perturbation_ends_with_an_error_too(network):
    model, x, y = network
    before = copy.deepcopy(model)
    with pytest.raises(KeyboardInterrupt), perturbed(model, lambda: F.cross_entropy(model(x), y), gamma=0.1):
        raise KeyboardInterrupt
    torch.testing.assert_close(list(model.parameters()), list(before.parameters()))


def test_the_average_is_the_recursion(network):
    model, *_ = network
    average = WeightAverage(model, 0.9)
    average.restart()
    states = []
    for step in range(4):
        with torch.no_grad():
            for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
                tensor += 0.1 * step + 0.01
        states.append({k: v.double().clone() for k, v in model.state_dict().items()})
        if step == 0:
            average.restart()
        else:
            average.update()
    average.install()
    for name, value in model.state_dict().items():
        expected = states[0][name]
        for state in states[1:]:
            expected = 0.9 * expected + 0.1 * state[name]
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("averaging", ["step", "epoch"])
def test_the_trained_model_is_the_average(averaging):
    """Copied at the end of epoch 1, averaged in epochs 2 and 3, by step or by epoch."""
    dataset = load("digits", 100)
    common = {"method": "standard", "width": 2, "epochs": 3, "batch_size": 50}
    live = []

    def watch(wanted):
        def progress(done, total, row):
            if (row is None) == (averaging == "step") and done >= 2:
                live.append({k: v.double().clone() for k, v in wanted.state_dict().items()})

        return progress

    plain = RunConfig(**common)
    model = from_config(plain, in_channels=1, n_classes=10)
    train(model, dataset, plain, progress=watch(model))
    assert len(live) == (5 if averaging == "step" else 3)  # the first is the end of epoch 1
    averaged = RunConfig(**common, averaging=averaging, averaging_decay=0.7, averaging_from=2)
    model = from_config(averaged, in_channels=1, n_classes=10)
    train(model, dataset, averaged)
    for name, value in model.state_dict().items():
        expected = live[0][name]
        for state in live[1:]:
            expected = 0.7 * expected + 0.3 * state[name]
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_budgets_of_the_recipes():
    c = RunConfig(epochs=200, epsilon="8/255", epsilon_ramp=True, attack_steps=2, attack_step_size="8/255")
    assert budget(c, 50) == Budget(2 / 255, 2, 2 / 255)  # the low budget: two steps of the ramped epsilon
    c = RunConfig(epochs=200, epsilon="8/255", epsilon_ramp=True, attack_steps=5)
    assert budget(c, 50) == Budget(2 / 255, 5, 0.5 / 255)  # a quarter of the ramped epsilon where no step is set
    c = RunConfig(**recipes.settings("dajat"))
    for epoch in (1, 50, 51, 200):
        e = 8 / 255 * epoch / 200
        assert budget(c, epoch) == Budget(e, 5, e / 2)
    c = RunConfig(**recipes.settings("dajat-intended"))
    expected = {1: (2, 1), 50: (2, 1), 51: (3, 2 / 3), 100: (3, 2 / 3), 101: (4, 0.5), 150: (4, 0.5), 151: (5, 0.5)}
    for epoch, (steps, part) in expected.items():
        found = budget(c, epoch)
        assert found.steps == steps
        assert found.step_size == pytest.approx(8 / 255 * epoch / 200 * part)
    c = RunConfig(**recipes.settings("dajat-intended") | {"epochs": 10, "averaging_from": 8})
    # quarters of 10 epochs end after 2, 5 and 7
    assert [budget(c, epoch).steps for epoch in range(1, 11)] == [2, 2, 3, 3, 3, 4, 4, 5, 5, 5]


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_a_configuration_with_a_source_for_each_number(name):
    recipe = recipes.read(name)
    assert recipe["title"]
    assert all(set(entry) == {"value", "source"} and entry["source"] for entry in recipe["settings"].values())
    config = RunConfig(**recipes.settings(name))
    kept = config.model_dump()
    lost = {k for k, v in recipes.settings(name).items() if v is not None and kept[k] != v}
    assert not lost  # a setting that the method does not use has no place in its recipe


def test_notes_of_a_recipe_follow_those_of_the_one_it_is_based_on():
    notes = {name: recipes.read(name)["notes"] for name in recipes.names()}
    assert notes["dajat-low"] == notes["dajat"]  # it has none of its own
    for name, base in [("acat", "dajat"), ("dajat-wrn", "dajat"), ("dkl-cifar100", "dkl")]:
        assert notes[name].startswith(f"{notes[base]} ")


def test_recipes_differ_where_they_should():
    assert RunConfig(**recipes.settings("trades")).weight_decay == 2e-4
    different = {k for k, v in recipes.settings("trades-5e-4").items() if recipes.settings("trades")[k] != v}
    assert different == {"weight_decay"}
    assert RunConfig(**recipes.settings("acat")).norm_sets == 1
    assert RunConfig(**recipes.settings("dajat")).norm_sets == 2
    assert [learning_rate(RunConfig(**recipes.settings("trades")), e) for e in (74, 75)] == pytest.approx([0.1, 0.01])
    with pytest.raises(ValueError, match=r"recipe must be one of acat, .*, got 'pgd-at'"):
        recipes.settings("pgd-at")


# wrn_34_10 is wrn_28_10 with three blocks more
@pytest.mark.parametrize("network", ["resnet_small", "resnet18", "preact_resnet18", "wrn_28_10"])
@pytest.mark.parametrize("method", ["standard", "pgd", "trades", "mart", "dajat", "dkl"])
def test_every_method_trains_every_family(method, network):
    config = RunConfig(
        method=method, network=network, width=4, epochs=2, batch_size=32, attack_steps=1, lr=0.05, epsilon="0.1",
        n_train=224, auto_views=1,
    )  # fmt: skip
    dataset = load("digits", config.n_train)
    model = from_config(config, in_channels=1, n_classes=10)
    history = train(model, dataset, config)
    assert history["loss"][1] < history["loss"][0]
    assert all(torch.isfinite(p).all() for p in model.parameters())


EXTRAS = {
    "dajat": {"epsilon_ramp": True, "attack_schedule": "as_intended", "averaging": "step"},
    "dkl": {"epsilon_ramp": True, "attack_steps": 1, "attack_mse": True, "averaging": "epoch"},
}


@pytest.mark.parametrize("method", EXTRAS)
def test_state_of_methods_and_average_survives_a_kill(method, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 0.0)
    config = RunConfig(
        method=method, width=2, epochs=3, batch_size=64, augment="crop", awp=0.005, awp_from=2, averaging_from=2,
        averaging_decay=0.9, **EXTRAS[method],
    )  # fmt: skip
    dataset = load("digits", 128)

    class Killed(Exception):
        pass

    def kill(done, total, row):
        if done == 5:
            raise Killed

    def run(**kw):
        model = from_config(config, in_channels=1, n_classes=10)
        history = train(model, dataset, config, **kw)
        history.pop("seconds")
        return history, model.state_dict()

    whole = run()
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Killed):
        run(checkpoint=path, progress=kill)
    for _ in range(2):  # resumed, and read again after the end
        history, state = run(checkpoint=path)
        assert history == whole[0]
        assert all(torch.equal(v, whole[1][k]) for k, v in state.items())


@pytest.mark.parametrize("network", ["resnet18", "wrn_28_10"])
def test_the_full_networks_take_a_step_of_each_method(network):
    dataset = load("digits", 4)
    common = {"network": network, "epochs": 1, "lr": 0.01, "attack_steps": 1}
    model = from_config(RunConfig(**common, method="dajat"), in_channels=1, n_classes=10)
    before = [p.detach().clone() for p in model.parameters()]
    for method in ("standard", "pgd", "trades", "mart", "dkl", "dajat"):
        train(model, dataset, RunConfig(**common, method=method))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True) if p.ndim > 1)
