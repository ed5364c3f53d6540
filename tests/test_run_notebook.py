"""The experiment notebook: its parameters are RunConfig's, and a small run of it ends in a true record."""

import ast
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import torch
from papermill.exceptions import PapermillExecutionError

from rctaf import data, evaluation, models, records
from rctaf.config import RunConfig
from rctaf.notebooks import execute_notebook
from rctaf.replay import compare
from rctaf.training import train

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


def cells_of_code() -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(RUN, as_version=4).cells if cell.cell_type == "code"]


def test_only_the_tagged_cell_sets_settings() -> None:
    """Else a cell run again reads what a later one made of a setting, and the run has another id."""
    for cell in cells_of_code():
        names = (node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name))
        stored = {name.id for name in names if isinstance(name.ctx, ast.Store)}
        tagged = "parameters" in cell.metadata.get("tags", [])
        assert stored & RunConfig.model_fields.keys() == (RunConfig.model_fields.keys() if tagged else set())


def test_a_norm_whose_square_came_out_negative_is_no_zero(capsys) -> None:
    estimate = SimpleNamespace(rms=None, rms_interval=(0.0, 0.5), probes=64)
    others = {"effective_curvature": lambda *a: [], "input_curvature": lambda *a, **kw: estimate}
    tools = SimpleNamespace(hessian_diagonal_norm=lambda *a, **kw: estimate, **others)
    x, y = torch.zeros(2, 1, 8, 8), torch.zeros(2)
    (cell,) = (cell for cell in cells_of_code() if "hessian_diagonal_norm" in cell.source)
    names = {"config": RunConfig(), "evaluation": tools, "test_x": x, "test_y": y, "device": "cpu", "metrics": {}}
    names |= {"pgd20": lambda model, x, *a, **kw: x, "torch": torch, "dataclasses": SimpleNamespace(asdict=vars)}
    exec(cell.source, {"model": None, "F": torch.nn.functional, "radius": 0.1, **names})
    said = "rms not determined (its square came out negative), 95 % interval 0 to 0.5, 64 probes"
    assert capsys.readouterr().out == f"hessian_clean: {said}\nhessian_adversarial: {said}\n"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> records.Record:
    store = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RCTAF_RESULTS", str(store))
        patch.delenv("OMP_NUM_THREADS", raising=False)
        execute_notebook(RUN, store / "run.ipynb", SMALL, cwd=ROOT)
        found = records.load(RunConfig(**SMALL).run_id)
    assert found is not None
    return found


def test_record_holds_every_measurement(record: records.Record) -> None:
    metrics = record.metrics
    assert metrics["curvature"] == pytest.approx(7.0)
    assert len(record.history["loss"]) == 2
    assert record.provenance["threads"] == 1  # as a grid makes it, though nothing but the notebook says so
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
    in_inputs = metrics["input_curvature"]
    assert (in_inputs["images"], in_inputs["epsilon"]) == (16, 0.1)
    assert min(in_inputs["spectral_norm"], in_inputs["linearity_error"]) > 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alhpa": 7}, r"no such setting: alhpa \(perhaps alpha\)"),
        ({"n_eval": 501}, "n_eval=501: digits has 500 test images"),
        ({"hessian_images": 501}, "hessian_images=501: digits has 500 test images"),
    ],
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


def rebuilt(record: records.Record) -> torch.nn.Module:
    """The network that the page "Reproducing" makes of a record and its checkpoint."""
    text = (ROOT / "book/reproducing.md").read_text()
    (block,) = (part.split("```")[0] for part in text.split("```python\n")[1:] if "checkpoint.pt" in part)
    names: dict[str, torch.nn.Module] = {}
    exec(block.replace("0123456789ab", record.run_id), names)
    return names["model"]


def test_the_page_reproducing_rebuilds_a_trained_network(record, monkeypatch, capsys) -> None:
    assert record.path is not None
    monkeypatch.setenv("RCTAF_RESULTS", str(record.path.parents[2]))
    rebuilt(record)
    assert capsys.readouterr().out == f"({round(500 * record.metrics['clean_accuracy'])}, 500)\n"


def test_the_page_reproducing_rebuilds_an_average(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    config = RunConfig(epochs=1, method="standard", n_train=200, averaging="step", averaging_decay=0.5)
    model = models.from_config(config, in_channels=1, n_classes=10)
    train(model, data.load("digits", 200), config, checkpoint=records.local_dir(config.run_id) / "checkpoint.pt")
    records.write(records.Record(config, {}, {}, {}))
    for name, value in rebuilt(records.Record(config, {}, {}, {})).named_parameters():
        assert torch.equal(value, model.get_parameter(name)), name


def test_a_finished_run_is_made_anew_and_not_from_its_old_weights(record, tmp_path, monkeypatch) -> None:
    assert record.path is not None
    folder = tmp_path / "local" / record.run_id
    shutil.copytree(record.path.parent, folder)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    for value in saved["model"].values():
        value.zero_()  # as another activation would leave other weights
    torch.save(saved, folder / "checkpoint.pt")
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    execute_notebook(RUN, tmp_path / "run.ipynb", SMALL, cwd=ROOT)
    again = records.load(record.run_id)
    assert again is not None
    assert {row[-1] for row in compare(record, again, [])} == {"identical"}
    assert records.read(record.path) == record
    assert "made anew from the start" in (tmp_path / "run.ipynb").read_text()


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
