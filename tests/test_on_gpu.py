"""What training and evaluation promise, on a GPU where there is one. The kernels are tested in test_triton.py."""

import os

import pytest
import torch
import torch.nn.functional as F
from test_training import Killed, config, kill_in_epoch, run, same
from torch import nn

from rctaf import data, evaluation
from rctaf.attacks import pgd20
from rctaf.models import from_config
from rctaf.models.frozen import Frozen
from rctaf.training import loop, train

DEVICE = os.environ.get("RCTAF_TEST_DEVICE", "cuda")  # cpu: to try these tests themselves
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(scope="module")
def digits():
    x = torch.rand(4, 4, device=DEVICE)
    nn.Linear(4, 4, device=DEVICE)(x).sum().backward()  # any process may have had such a product before it trains
    return data.load("digits", 200, device=DEVICE)


def trained(digits):
    model = from_config(config(width=8), in_channels=1, n_classes=10).to(DEVICE)
    train(model, digits, config(width=8))
    return model


SETTINGS = [
    {"method": "standard"},
    {"method": "trades", "beta": 0},
    {"method": "trades", "precision": "bf16", "awp": 0.005, "averaging": "step", "averaging_decay": 0.9},
    {"method": "mart", "activation": "relu", "augment": "crop_flip"},
    {"method": "dajat", "beta": 2, "augment": "crop_flip"},
    {"method": "dkl", "precision": "bf16"},
    {"method": "pgd", "compiled": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_run_repeats_and_resumes_bit_for_bit(settings, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 0.0)
    c, path = config(**settings), tmp_path / "checkpoint.pt"
    wanted = run(c, digits)
    assert same(wanted, run(c, digits))
    with pytest.raises(Killed):
        run(c, digits, checkpoint=path, progress=kill_in_epoch(3, steps=4))
    assert same(wanted, run(c, digits, checkpoint=path))


def test_a_trained_network_is_measured_as_on_the_cpu(digits):
    model = trained(digits)
    x, y = data.to_float(digits.test_x[:64]), digits.test_y[:64]
    there = model.cpu(), x.cpu(), y.cpu()
    wanted = evaluation.hessian_diagonal_norm(there[0], F.cross_entropy, *there[1:], max_probes=64)
    logits = there[0](there[1])
    model.to(DEVICE)
    torch.testing.assert_close(model(x).cpu(), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(Frozen(model, x)(x).cpu(), logits, rtol=1e-4, atol=1e-4)
    found = evaluation.hessian_diagonal_norm(model, F.cross_entropy, x, y, max_probes=64)
    # this part is exact, float32 apart; the other is estimated from probes that another generator draws
    assert found.gauss_newton_square == pytest.approx(wanted.gauss_newton_square, rel=1e-3)
    low, high = found.rms_interval
    assert low < wanted.rms_interval[1]
    assert wanted.rms_interval[0] < high
    for here, cpu in zip(*(evaluation.effective_curvature(*pair) for pair in ((model, x), there[:2])), strict=True):
        assert here.kappa == pytest.approx(cpu.kappa, rel=1e-3)
    model.cpu()
    wanted = evaluation.input_curvature(*there, 0.1)
    found = evaluation.input_curvature(model.to(DEVICE), x, y, 0.1)
    assert found.gradient_l1 == pytest.approx(wanted.gradient_l1, rel=1e-3)
    # both from random starts, which the two generators draw differently
    assert found.spectral_norm == pytest.approx(wanted.spectral_norm, rel=1e-2)
    assert found.linearity_error == pytest.approx(wanted.linearity_error, rel=5e-2)


def test_autoattack_leaves_no_more_than_pgd(digits):
    model = trained(digits)
    x, y = data.to_float(digits.test_x[:64]), digits.test_y[:64]
    found = evaluation.autoattack(model, x, y, 0.1, "standard", batch_size=40)
    left = [found["clean"], *(step["robust"] for step in found["waterfall"])]
    assert left == sorted(left, reverse=True)
    again = evaluation.autoattack(model, x, y, 0.1, "standard", batch_size=40)
    assert again["mask"] == found["mask"]
    correct, n = evaluation.accuracy(model, pgd20(model, x, y, 0.1), y)
    assert n == found["n"]
    assert found["robust"] <= correct + 1  # APGD need not find what PGD finds, but nearly always does


def test_curvature_of_an_activation_with_parameters(digits):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.PReLU(), nn.Flatten()).to(DEVICE)
    (layer,) = evaluation.effective_curvature(model, data.to_float(digits.test_x[:64]))
    assert layer.curvature is None  # its slope jumps
