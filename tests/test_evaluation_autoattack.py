import base64
import copy
import importlib
import importlib.util
import itertools
import json
import sys
import time
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rctaf.activations import RCTAF
from rctaf.config import RunConfig
from rctaf.evaluation import autoattack, robustbench_entry, unpack_mask
from rctaf.evaluation.autoattack import _survives
from rctaf.records import Record

EPSILON = 0.12
BATCH = 16
STEPS = 10


@cache
def shortened(name: str) -> type:
    """The AutoAttack class of one package, with fewer iterations for our loop and the package's own alike."""
    package = importlib.import_module(name)

    class Shortened(package.AutoAttack):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            for attack in (self.apgd, self.apgd_targeted):
                attack.n_iter = STEPS
                attack.n_iter_2, attack.n_iter_min, attack.size_decr = 3, 1, 1
            self.fab.n_iter = 5
            self.square.n_queries = 200

    return Shortened


@pytest.fixture(autouse=True, scope="module", params=["pyautoattack", "autoattack"])
def package(request):
    """Every test runs with each of the two packages that is installed; the other one cannot be found meanwhile."""
    name = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module(name), "AutoAttack", shortened(name))
        patch.setitem(sys.modules, {"pyautoattack": "autoattack", "autoattack": "pyautoattack"}[name], None)
        yield name


def small_model(classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(64, classes)
    ).eval()


@pytest.fixture(scope="module")
def problem():
    """A small model trained for a moment on blobs, so that some images resist and some do not."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(10, 1, 4, 4, generator=generator)
    y = torch.arange(60) % 10
    x = (centres[y] + 0.1 * torch.randn(60, 1, 4, 4, generator=generator)).clamp(0, 1)
    model = small_model().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    model.zero_grad()
    return model.eval(), x[:40], y[:40]


@pytest.fixture(scope="module")
def standard(problem, package):
    model, x, y = problem
    return autoattack(model, x, y, EPSILON, seed=3, batch_size=BATCH)


def test_standard_is_the_packages_standard_at_full_strength(package):
    full = shortened(package).__mro__[1](nn.Identity(), eps=0.1, version="standard", device="cpu")
    assert full.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (full.apgd.n_iter, full.apgd_targeted.n_iter, full.fab.n_iter, full.square.n_queries) == (
        100,
        100,
        100,
        5000,
    )
    assert (full.apgd.n_restarts, full.apgd_targeted.n_target_classes, full.fab.n_target_classes) == (1, 9, 9)


def test_every_verdict_is_the_packages_own(problem, standard, package):
    model, x, y = problem
    reference = shortened(package)(model, eps=EPSILON, seed=3, version="standard", device="cpu")
    options = {"batch_size": BATCH} if package == "pyautoattack" else {"bs": BATCH, "return_labels": True}
    with torch.random.fork_rng():
        _, labels = reference.run_standard_evaluation(x, y, **options)
    sys.settrace(None)
    expected = (labels == y).numpy()
    assert unpack_mask(standard["mask"], 40).tolist() == expected.tolist()
    assert 5 < expected.sum() < 35  # neither all nor none, or the comparison would show nothing
    assert standard["robust"] == expected.sum()
    assert standard["robust_accuracy"] == expected.mean()


@pytest.fixture
def calls(package, monkeypatch):
    """What the attacks are called with: their name, settings and images."""
    made = []
    whole = shortened(package)(nn.Identity(), eps=0.1, device="cpu")
    for attack in (whole.apgd, whole.apgd_targeted, whole.fab, whole.square):
        kind = type(attack)

        def perturb(self, x, *args, original=kind.perturb, **options):
            plain = {name: value for name, value in vars(self).items() if isinstance(value, int | float | str)}
            made.append((type(self).__name__, plain, x.tolist()))
            return original(self, x, *args, **options)

        monkeypatch.setattr(kind, "perturb", perturb)
    return made


def test_every_attack_is_called_as_the_package_calls_it(problem, package, calls):
    model, x, y = problem
    reference = shortened(package)(model, eps=EPSILON, seed=3, version="standard", device=x.device)
    with torch.random.fork_rng():
        reference.run_standard_evaluation(x, y, **{"batch_size" if package == "pyautoattack" else "bs": BATCH})
    sys.settrace(None)
    expected = calls.copy()
    calls.clear()
    autoattack(model, x, y, EPSILON, seed=3, batch_size=BATCH)
    assert len({name for name, *_ in expected}) == 4
    assert calls == expected


def test_the_entry_is_complete_and_json(standard, package):
    again = json.loads(json.dumps(standard, allow_nan=False))
    assert again == standard
    assert [step["attack"] for step in standard["waterfall"]] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    counts = [standard["clean"], *(step["robust"] for step in standard["waterfall"])]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == standard["robust"]
    assert (standard["n"], standard["seed"], standard["batch_size"]) == (40, 3, BATCH)
    assert standard["implementation"] == package
    assert standard["warnings"] == []


def test_screening_is_the_beginning_of_standard(problem, standard):
    model, x, y = problem
    screening = autoattack(model, x, y, EPSILON, "screening", seed=3, batch_size=BATCH)
    assert screening["waterfall"] == standard["waterfall"][:2]
    assert screening["clean"] == standard["clean"]


class Interruptible(nn.Module):
    """Raises after a number of forward passes, wherever that is."""

    calls = 0
    limit: float = float("inf")

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.register_forward_pre_hook(lambda *_: None)  # so that it is not frozen, and its forward never called again

    def forward(self, x):
        Interruptible.calls += 1
        if Interruptible.calls > Interruptible.limit:
            raise KeyboardInterrupt
        return self.inner(x)


class Shifted(nn.Module):
    """Moves images by a number that is neither among its weights nor in its name."""

    def __init__(self, inner: nn.Module, by: int):
        super().__init__()
        self.inner, self.by = inner, by

    def forward(self, x):
        return self.inner(x.roll(self.by, -1))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8, 0.999])
def test_an_interrupted_evaluation_repeats_at_most_one_batch(problem, tmp_path, share):
    model, x, y = problem
    wrapped, state = Interruptible(model), tmp_path / "state.json"
    run = {"seed": 1, "batch_size": BATCH, "state": state}
    Interruptible.calls, Interruptible.limit = 0, float("inf")
    whole = autoattack(wrapped, x, y, EPSILON, "screening", **run | {"state": tmp_path / "whole.json"})
    total = Interruptible.calls
    assert total > 2 * 9 * (STEPS + 2)  # several batches: there is a middle to be interrupted in
    Interruptible.calls, Interruptible.limit = 0, share * total
    with pytest.raises(KeyboardInterrupt):
        autoattack(wrapped, x, y, EPSILON, "screening", **run)
    spent = Interruptible.calls
    Interruptible.calls, Interruptible.limit = 0, float("inf")
    resumed = autoattack(wrapped, x, y, EPSILON, "screening", **run)
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    # The largest batch is one of APGD-T: 9 targets of STEPS + 2 passes, and the checks.
    assert spent + Interruptible.calls - total <= 9 * (STEPS + 2) + 10
    Interruptible.calls = 0
    assert autoattack(wrapped, x, y, EPSILON, "screening", **run)["mask"] == whole["mask"]
    assert Interruptible.calls == -(-len(x) // BATCH)  # a finished state attacks nothing: the logits that name it


def test_the_state_of_another_model_or_setting_is_not_used(problem, tmp_path):
    model, x, y = problem
    x, y, state = x[:10], y[:10], tmp_path / "state.json"
    first = autoattack(model, x, y, 0.01, "screening", state=state)
    fresh = autoattack(model, x, y, 0.5, "screening")
    assert fresh["robust"] < first["robust"]
    assert autoattack(model, x, y, 0.5, "screening", state=state)["mask"] == fresh["mask"]
    state.write_text("{ torn")
    assert autoattack(model, x, y, 0.5, "screening", state=state)["mask"] == fresh["mask"]
    assert autoattack(small_model(), x, y, 0.5, "screening", state=state)["clean"] < first["clean"]
    # nor that of the same weights with another sharpness (SiLU has 1) or in another forward, of other images or labels
    other = nn.Sequential(*(RCTAF(9.0, 1) if isinstance(part, nn.SiLU) else part for part in model))
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True))
    for changed in ((other, x, y), (Shifted(model, 1), x, y), (model, 1 - x, y), (model, x, (y + 1) % 10)):
        state.unlink()
        autoattack(
            Shifted(model, 0) if isinstance(changed[0], Shifted) else model, x, y, 0.05, "screening", state=state
        )
        kept = state.read_text()
        fresh = autoattack(*changed, 0.05, "screening")["mask"]
        assert autoattack(*changed, 0.05, "screening", state=state)["mask"] == fresh
        assert state.read_text() != kept  # begun anew, though ten images may end alike
    keys = []
    for settings in ({}, {"seed": 1}, {"batch_size": 5}, {"version": "standard"}):
        state.unlink()
        autoattack(model, x[:4], y[:4], 0.05, **{"version": "screening", **settings}, state=state)
        keys.append(json.loads(state.read_text())["key"])
    assert len(set(keys)) == 4


def test_model_generators_and_tracer_are_left_alone(problem):
    _, x, _ = problem
    model = small_model().to(torch.bfloat16).train()
    before, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    y = copy.deepcopy(model).float().eval()(x[:4]).argmax(1)

    def tracer(frame, event, argument):
        return None

    outer = sys.gettrace()
    sys.settrace(tracer)
    try:
        result = autoattack(model, x[:4], y, 0.1, "screening")
        kept = sys.gettrace()
    finally:
        sys.settrace(outer)
    assert kept is tracer
    assert result["n"] == result["clean"] == 4  # so that there was something to attack
    assert all(v.dtype == before[k].dtype and torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_model_in_training_mode_that_cannot_be_frozen_is_attacked_in_eval_mode(problem):
    model, x, y = problem
    found = autoattack(Interruptible(copy.deepcopy(model)).train(), x, y, EPSILON, "screening", batch_size=BATCH)
    assert found["mask"] == autoattack(model, x, y, EPSILON, "screening", batch_size=BATCH)["mask"]


class Noisy(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 0.1 * torch.randn(len(x), 10)


class Dynamic(nn.Module):
    """Moves every image along its own gradient, as a defence that adapts to its input."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.inner(z).square().sum(), z)
        return self.inner(x - 0.001 * slope)


class Coarse(nn.Module):
    """Reads images in steps, so that gradients say nothing: only the search of Square finds a way."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x * 16).round() / 16)


class Flat(nn.Module):
    """Logits that do not depend on the image: zero gradients."""

    def forward(self, x):
        return torch.arange(10.0).expand(len(x), 10) + 0 * x.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Noisy, "randomized defense"),
        (lambda inner: nn.Sequential(inner, nn.Softmax(1)), "probability distribution"),
        (lambda inner: Flat(), "zero gradient"),
    ],
)
def test_the_packages_warnings_reach_the_record(problem, make, message):
    model, x, y = problem
    result = autoattack(make(model), x[:10], torch.full((10,), 9) if make is not Noisy else y[:10], 0.05, "screening")
    assert any(message in warning for warning in result["warnings"]), result["warnings"]


def test_a_search_that_beats_the_gradients_is_warned_of(problem):
    model, x, _ = problem
    model = Coarse(model)
    found = autoattack(model, x, model(x).argmax(1), EPSILON)
    assert found["robust"] < found["waterfall"][2]["robust"]
    assert any("Square Attack has decreased" in warning for warning in found["warnings"])


def test_warnings_are_of_the_model_at_hand_and_outlast_an_interruption(problem, tmp_path):
    model, x, y = problem
    first, again = (autoattack(Dynamic(model), x, y, 0.05, "screening", state=tmp_path / "state") for _ in range(2))
    assert any("dynamic defense" in warning for warning in first["warnings"])
    assert again["warnings"] == first["warnings"]
    assert autoattack(model, x, y, 0.05, "screening")["warnings"] == []


def test_the_seconds_are_those_of_every_batch(problem, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", itertools.count().__next__)  # a batch takes one second
    model, x, y = problem
    found = autoattack(model, x, y, EPSILON, "screening", batch_size=BATCH)
    batches = [-(-images // BATCH) for images in (found["clean"], found["waterfall"][0]["robust"])]
    assert found["seconds"] == sum(batches) > 2


def test_an_attack_that_leaves_the_ball_is_an_error(problem):
    model, x, y = problem
    x = x.clamp(0.2, 0.7)
    assert _survives(model, x, x + EPSILON, y, EPSILON, "square").shape == y.shape
    for attacked in (x + EPSILON + 2e-6, torch.full_like(x, -1e-6), torch.full_like(x, 1 + 1e-6)):
        with pytest.raises(RuntimeError, match="square left the ball: distance"):
            _survives(model, x, attacked, y, 0.12 if attacked.min() > 0 and attacked.max() < 1 else 2.0, "square")


def test_nine_classes_try_eight_targets_and_say_so(problem, calls):
    _, x, _ = problem
    model = small_model(9)
    result = autoattack(model, x[:8], model(x[:8]).argmax(1), 0.01)
    assert result["clean"] == 8
    assert any("9 classes" in warning for warning in result["warnings"])
    targets = {name: settings["n_target_classes"] for name, settings, _ in calls if "n_target_classes" in settings}
    assert targets == {"APGDAttack_targeted": 8, "FABAttack_PT": 8}


def test_images_that_carry_gradients_are_attacked_like_others(problem):
    model, x, y = problem
    expected = autoattack(model, x, y, 0.1, "screening")
    assert autoattack(model, x.clone().requires_grad_(), y, 0.1, "screening")["mask"] == expected["mask"]


def test_bad_input_is_refused_in_one_line(problem):
    model, x, y = problem
    with pytest.raises(ValueError, match="at least 4 classes"):
        autoattack(small_model(3), x, y.clamp(max=2), 0.1)
    with pytest.raises(ValueError, match="standard, screening, got 'rand'"):
        autoattack(model, x, y, 0.1, "rand")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        autoattack(model, x * 255, y, 0.1)
    with pytest.raises(ValueError, match=r"these lie in \[-0\.1, 0\.9\]"):
        autoattack(model, x.clamp(0, 1).sub(0.1).clamp(max=0.9), y, 0.1)
    with pytest.raises(ValueError, match="40 and 39 given"):
        autoattack(model, x, y[:-1], 0.1)
    with pytest.raises(ValueError, match=r"vector \[40\] of class numbers, got \[40, 1\]"):
        autoattack(model, x, y[:, None], 0.1)  # compared with all predictions: more correct than there are images
    for epsilon in (8, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"epsilon must lie in \[0, 1\]"):
            autoattack(model, x, y, epsilon)
    broken = small_model()
    broken[0].weight.data[:] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        autoattack(broken, x, y, 0.1)
    for wrong in (-1, 10):
        with pytest.raises(ValueError, match=rf"class numbers from 0 to 9, these lie in .*{wrong}"):
            autoattack(model, x, torch.cat([y[1:], torch.tensor([wrong])]), 0.1)


def test_a_mask_of_another_number_of_images_is_refused():
    text = base64.b64encode(bytes([255] * 4)).decode()
    assert unpack_mask(text, 32).all()
    for n in (24, 33, 1000):
        with pytest.raises(ValueError, match=rf"holds 4 bytes, expected \d+ for {n} images"):
            unpack_mask(text, n)


class Keeping(nn.Module):
    """Keeps what it computed, which deepcopy refuses: by hand, in a list and by weight norm."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.log = inner, []
        self.last = nn.utils.weight_norm(nn.Linear(10, 10))

    def forward(self, x):
        self.features = self.inner(x)
        self.log = [self.features]
        return self.last(self.features)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_model_that_keeps_computed_tensors_is_attacked_and_left_alone(problem, tmp_path):
    model, x, y = problem
    keeping = Keeping(copy.deepcopy(model))
    keeping(x).sum().backward()
    features, state = keeping.features, tmp_path / "state.json"
    found = autoattack(keeping, x[:8], y[:8], EPSILON, "screening", state=str(state))  # a name is a path too
    assert state.exists()
    assert found["n"] == 8
    assert keeping.features is features


def test_robustbench_entry(standard):
    config = RunConfig(epsilon="0.12", epsilon_eval="0.1")
    entry = robustbench_entry(Record(config, {"autoattack": standard}, {}, {}))
    assert float(entry["autoattack_acc"]) == pytest.approx(100 * standard["robust_accuracy"], abs=0.005)
    assert entry["eps"] == "0.1"  # of the attack, not of the training
    with pytest.raises(ValueError, match="'screening'"):
        robustbench_entry(Record(config, {"autoattack": {**standard, "version": "screening"}}, {}, {}))
    assert np.isclose(float(entry["clean_acc"]), 100 * standard["clean"] / 40)
