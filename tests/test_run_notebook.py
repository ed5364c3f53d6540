"""The experiment notebook: its parameters are RunConfig's, and a small run of it ends in a true record."""

import ast
import json
from pathlib import Path

import nbformat
import papermill
import pytest
import torch
from papermill.exceptions import PapermillExecutionError

from rctaf import data, evaluation, models, records
from rctaf.config import RunConfig
from rctaf.notebooks import execute_notebook

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "notebooks" / "experiments" / "run.ipynb"
SMALL = {
    "alpha": 14, "epochs": 2, "n_train": 200, "n_eval": 40, "attack_steps": 2, "hessian_images": 16,
    "hessian_probes": 64, "seed": 3, "epsilon_eval": "0.1",
}  # fmt: skip


def test_parameters_cell_is_run_config() -> None:
    notebook = nbformat.read(RUN, as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    assert values == {name: field.default for name, field in RunConfig.model_fields.items()}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> records.Record:
    store = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RCTAF_RESULTS", str(store))
        patch.setenv("OMP_NUM_THREADS", "1")
        execute_notebook(RUN, store / "run.ipynb", SMALL, cwd=ROOT)
        found = records.load(RunConfig(**SMALL).run_id)
    assert found is not None
    return found


def test_record_holds_every_measurement(record: records.Record) -> None:
    metrics = record.metrics
    assert metrics["curvature"] == pytest.approx(7.0)
    assert len(record.history["loss"]) == 2
    assert record.provenance["threads"] == 1
    assert {"clean_accuracy", "pgd20_accuracy", "pgd20_larger_accuracy", "screening_accuracy"} <= metrics.keys()
    assert "robust_accuracy" not in metrics  # that is the name of AutoAttack's standard version alone
    assert metrics["autoattack"]["epsilon"] == 0.1
    assert record.history["epsilon"] == [0.15, 0.15]
    # a stronger attack, or a larger ball, leaves no more images
    assert metrics["screening_accuracy"] <= metrics["pgd20_accuracy"] + 1 / 40
    assert metrics["pgd20_larger_accuracy"] <= metrics["pgd20_accuracy"]
    for name in ("hessian_clean", "hessian_adversarial"):
        low, high = metrics[name]["rms_interval"]
        assert low <= metrics[name]["rms"] <= high
    assert len(metrics["effective_curvature"]) == 7  # stem and three blocks of two


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"alhpa": 7}, "no such setting: alhpa; there are dataset"), ({"n_eval": 501}, "digits has 500 test images")],
)
def test_papermill_alone_refuses_what_cannot_be(parameters, message, tmp_path, monkeypatch) -> None:
    """``papermill -p`` warns at a name that it does not know, and runs on the default."""
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    monkeypatch.chdir(ROOT)
    with pytest.raises(PapermillExecutionError, match=message):
        papermill.execute_notebook(RUN, tmp_path / "run.ipynb", parameters=parameters, progress_bar=False)
    assert not list(tmp_path.glob("local/*"))


def test_numbers_belong_to_the_checkpoint(record: records.Record) -> None:
    """Rebuild the network from the checkpoint and measure again, outside the notebook."""
    config, images = record.config, data.load("digits")
    model = models.from_config(config, in_channels=1, n_classes=10)
    assert record.path is not None
    saved = torch.load(record.path.parent / "checkpoint.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    correct, n = evaluation.accuracy(model, images.test_x, images.test_y)
    assert record.metrics["clean_accuracy"] == correct / n
    assert json.loads(record.path.read_text())["id"] == config.run_id


def test_learned_alphas_are_recorded_and_are_no_parameters_of_the_hessian(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = {**SMALL, "epochs": 1, "alpha_learned": True, "gain": 2.0, "head_lr": 0.25}
    execute_notebook(RUN, tmp_path / "run.ipynb", settings, cwd=ROOT)
    record = records.load(RunConfig(**settings).run_id)
    assert record is not None
    metrics = record.metrics
    assert metrics["curvature"] == pytest.approx(7.0)  # where they started
    assert metrics["alphas"] == [record.history[f"alpha_{place}"][-1] for place in range(1, 8)]
    # with its alpha each layer's curvature is alpha / 2 at order 1, and kappa over std is alpha
    layers = metrics["effective_curvature"]
    assert [layer["kappa"] / layer["std"] for layer in layers] == pytest.approx(metrics["alphas"], rel=1e-9)
    assert [2 * layer["curvature"] for layer in layers] == pytest.approx(metrics["alphas"], rel=1e-9)
    assert metrics["hessian_clean"]["parameters"] == metrics["parameters"] - 7
    assert metrics["autoattack"]["version"] == "screening"
