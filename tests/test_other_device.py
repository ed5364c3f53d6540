"""Nothing assumes the CPU, and no training step waits for its device: shown without a GPU, on a device made of the CPU.

In a process of its own (see other_device.py). What a GPU computes is tested in test_on_gpu.py.
"""

import os

import other_device
import pytest
import torch
import torch.nn.functional as F
from test_training import config
from torch.utils import backend_registration

from rctaf import data, evaluation
from rctaf.attacks import pgd20
from rctaf.models import from_config
from rctaf.training import train

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="needs a younger PyTorch"
)
INSIDE = os.environ.get("RCTAF_TEST_OTHER_DEVICE") == "1"
inside = pytest.mark.skipif(not INSIDE, reason="test_in_a_process_of_its_own runs this")
if INSIDE:
    LIBRARY = other_device.register()


@pytest.mark.skipif(INSIDE, reason="runs as it is")
def test_in_a_process_of_its_own(passes_alone):
    passes_alone(__file__, RCTAF_TEST_OTHER_DEVICE="1")


@pytest.fixture
def waits():
    with other_device.present():
        other_device.waits.clear()
        yield other_device.waits


@inside
def test_the_device_refuses_what_a_gpu_refuses_and_notes_what_a_gpu_is_waited_for(waits):
    there, here = torch.ones(3, device="other"), torch.ones(3)
    with pytest.raises(RuntimeError, match="of the CPU"):
        there + here
    _ = there + here[0], there[torch.arange(2, device="other")], here.to("other", non_blocking=True)
    assert waits == []
    for wait in (
        lambda: there.sum().item(),
        lambda: bool(there.isfinite().all()),
        lambda: there.cpu(),
        lambda: here.to("other"),
        lambda: here.copy_(there),
        lambda: there.tolist(),
        lambda: there[there > 0],
        lambda: there[torch.tensor([0, 2])],
        lambda: there.nonzero(),
    ):
        wait()
        assert len(waits) == 1, waits
        waits.clear()


def trained(device, progress=None, **settings):
    c = config(**settings)
    model = from_config(c, in_channels=1, n_classes=10).to(device)
    return model, train(model, data.load("digits", 200, device=device), c, progress=progress)


SETTINGS = [
    {"method": "standard", "activation": "gelu", "augment": "crop_flip"},
    {"method": "pgd", "averaging": "epoch", "averaging_decay": 0.9},
    {"method": "trades", "beta": 0, "awp": 0.005, "averaging": "step", "averaging_decay": 0.9, "decay_gains": False},
    {"method": "trades", "alpha": 2.0, "alpha_learned": True, "gain": 5.0, "head_lr": 0.04, "precision": "bf16"},
    {"method": "mart", "activation": "relu"},
    {"method": "dajat", "beta": 2, "augment": "crop_flip", "auto_views": 1},
    {"method": "dkl", "network": "preact_resnet18", "attack_steps": 1, "epochs": 2},
]


@inside
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings["method"])
def test_training_waits_once_in_an_epoch(settings, waits):
    """For the sums of the epoch, when its last step is on its way; before its first, the order is sent."""
    seen = {}

    def progress(done, total, row):
        seen[done, row is None] = list(waits)
        waits.clear()

    _, history = trained("other", progress, **settings)
    steps = 4
    for epoch in range(len(history["loss"])):
        first, *others = (seen[epoch * steps + step, True] for step in range(1, steps + 1))
        assert others == [[]] * (steps - 1)
        if epoch:
            assert first == ["a copy to other"]
        assert "a copy to the CPU" in seen[(epoch + 1) * steps, False]


@inside
def test_training_and_evaluation_find_there_what_they_find_here(waits):
    """Up to rounding: the C kernel and small convolutions as matrices are the CPU's alone."""
    settings = {"method": "standard", "epochs": 8}
    digits = data.load("digits", 200)
    x, y = digits.test_x[:40], digits.test_y[:40]
    found = []
    for device in ("cpu", "other"):
        model, history = trained(device, **settings)
        images, labels = data.to_float(x.to(device)), y.to(device)
        estimate = evaluation.hessian_diagonal_norm(model, F.cross_entropy, images, labels, max_probes=64)
        kappa = [layer.kappa for layer in evaluation.effective_curvature(model, images)]
        in_inputs = evaluation.input_curvature(model, images, labels, 0.05)
        attacked = evaluation.autoattack(model, images, labels, 0.05, "screening", batch_size=40)
        correct, n = evaluation.accuracy(model, pgd20(model, images, labels, 0.05), labels)
        exact, rms = estimate.gauss_newton_square, estimate.rms
        found.append((history["loss"][-1], kappa, exact, rms, attacked, correct / n, in_inputs))
    (loss, kappa, exact, rms, attacked, pgd, in_inputs), there = found
    assert there[0] == pytest.approx(loss, rel=1e-2)  # eight epochs multiply a difference in the last digit
    assert there[1] == pytest.approx(kappa, rel=1e-2)
    assert there[2] == pytest.approx(exact, rel=5e-2)
    assert there[3] == pytest.approx(rms, rel=5e-2)
    assert there[5] == pytest.approx(pgd, abs=1 / 40)
    for name in ("gradient_l1", "spectral_norm", "linearity_error"):
        assert getattr(there[6], name) == pytest.approx(getattr(in_inputs, name), rel=5e-2)
    assert there[4]["clean"] == pytest.approx(attacked["clean"], abs=1)
    for step, wanted in zip(there[4]["waterfall"], attacked["waterfall"], strict=True):
        assert step["attack"] == wanted["attack"]
        assert step["robust"] == pytest.approx(wanted["robust"], abs=1)
