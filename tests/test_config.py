"""One definition of an experiment: what it accepts, what it refuses, and the ids that must never move."""

import math
import re
from itertools import combinations
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from rctaf import activations, names
from rctaf._startup import Unreadable
from rctaf.config import _USED_BY, Grid, RunConfig, parse_epsilon
from rctaf.evaluation import effective_curvature
from rctaf.family import baseline_rms_curvature, curvature, rms_curvature_at_start
from rctaf.models import NETWORKS, from_config
from rctaf.training import Method
from rctaf.training.methods import make_method

ROOT = Path(__file__).resolve().parent.parent
SCALES = ("digits", "fashion", "paper")  # what else is under grids/ is a reader's own
GRIDS = [ROOT / "grids/quick.yaml", *sorted(path for scale in SCALES for path in ROOT.glob(f"grids/{scale}/**/*.yaml"))]

# Committed records are found by these ids. A change here orphans the evidence: give a new field a
# default that means "as before", or raise SCHEMA and run everything again.
GOLDEN = {
    "67d6291b3014": {},
    "8a81d0fdf407": {"alpha": 28, "beta": 0, "seed": 3},
    "f6c5e29293d4": {"activation": "relu", "epochs": 8, "n_eval": 200},
    "5d10cb8b90de": {"method": "standard", "autoattack": "none", "hessian_probes": 0},
    "68a1d24da282": {"dataset": "cifar10", "network": "resnet18", "epsilon": "8/255", "attack_steps": 10},
}


@pytest.mark.parametrize("run_id", GOLDEN)
def test_golden_ids(run_id):
    assert RunConfig(**GOLDEN[run_id]).run_id == run_id


def test_one_experiment_has_one_id():
    config = RunConfig(alpha=2.5, seed=4)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert RunConfig(**config.model_dump(mode="json")).run_id == config.run_id
    assert RunConfig(alpha=7).run_id == RunConfig(alpha=7.0).run_id
    # settings that the choice does not use cannot split it
    assert RunConfig(activation="relu", alpha=3, beta=2).run_id == RunConfig(activation="relu").run_id
    assert RunConfig(method="standard", lam=2, attack_steps=9) == RunConfig(method="standard")
    assert RunConfig(activation="relu", alpha_learned=True) == RunConfig(activation="relu")
    assert RunConfig(norm="none", gain=10) == RunConfig(norm="none")
    assert RunConfig(awp_from=5, averaging_from=3, averaging_decay=0.9) == RunConfig()
    assert RunConfig(method="dajat", auto_views=0, lam_jsd=9.0) == RunConfig(method="dajat", auto_views=0)
    released = {"method": "dajat", "attack_schedule": "as_released"}
    assert RunConfig(**released, attack_steps=9, attack_step_size="0.1") == RunConfig(**released)
    # nor can another way to write the same number
    for same in (
        ["8/255", "8 / 255", "16/510"],
        ["3/255", "1/85"],
        ["0.15", "0.150", "3/20", 0.15],
        ["0.2", "51/255", ".2"],
        ["0.00775", "31/4000"],
    ):
        assert len({RunConfig(epsilon=text, attack_step_size=text).run_id for text in same}) == 1
        assert RunConfig(epsilon=same[-1]).epsilon == same[0]
    assert RunConfig(epsilon="8/255", epsilon_eval="16/510") == RunConfig(epsilon="8/255")
    # nor a budget of a training without attack, nor the usual step written out, which is the same to the last bit
    assert RunConfig(method="standard", epsilon="0.1", epsilon_eval="0.2") == RunConfig(method="standard", epsilon=0.2)
    for budget, step in [("0.15", "0.0375"), ("8/255", "2/255"), ("0.031", "0.00775")]:
        assert parse_epsilon(step) == parse_epsilon(budget) / 4
        assert RunConfig(epsilon=budget, attack_step_size=step) == RunConfig(epsilon=budget)
    # and every setting that it does use tells two experiments apart
    changed = [{}, {"alpha": 7}, {"beta": 2}, {"seed": 1}, {"lam": 5}, {"method": "pgd"}, {"epsilon": "8/255"}]
    changed += [{"gain": 10.0}, {"head_lr": 0.01}, {"alpha_learned": True}, {"epsilon_eval": "0.1"}]
    changed += [{"activation": "gelu"}, {"activation": "gelu", "sharpness": 2.0}]
    changed += [{"attack_step_size": "0.1"}, {"method": "standard"}, {"method": "standard", "epsilon_eval": "0.1"}]
    assert len({RunConfig(**settings).run_id for settings in changed}) == len(changed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alhpa": 3}, "alhpa"),
        ({"alpha": 0}, "greater than 0"),
        ({"alpha": float("nan")}, "finite"),
        ({"alpha": 1001}, "less than or equal to 1000"),
        ({"method": "dajat", "label_smoothing": 1}, "less than 1"),
        ({"averaging": "step"}, "averaging_decay: must be given"),
        ({"alpha": None}, "alpha: must be given"),
        ({"beta": None}, "beta: must be given"),
        ({"activation": "elu", "sharpness": None}, "sharpness: must be given"),
        ({"gain": None}, "gain: must be given"),
        ({"lr_schedule": "step"}, "lr_drops: must be given"),
        (
            {"epsilon_larger": "0.1"},
            "epsilon_larger=0.1: expected no less than the budget of the evaluation, 0.15, or None",
        ),
        ({"lr_schedule": "step", "lr_drops": [5, 3]}, "expected epochs after the first, each once and in order"),
        ({"lr_schedule": "step", "lr_drops": [1]}, "expected epochs after the first"),
        ({"beta": -1}, "greater than or equal to 0"),
        ({"beta": 1.5}, "integer"),
        ({"activation": "rleu"}, "'relu'"),
        ({"epsilon": "8/0"}, 'such as "8/255"'),
        ({"epsilon": True}, "string"),
        (
            {"averaging": "step", "averaging_decay": 0.9, "averaging_from": 21},
            "averaging_from=21 is after the last epoch",
        ),
        ({"awp": 0.005, "awp_from": 21}, "awp_from=21 is after the last epoch, 20"),
        ({"hessian_probes": 32}, "at least 64 probes"),
        ({"epsilon": "2"}, r"\(0, 1\]"),
        ({"method": "standard", "epsilon": "2", "epsilon_eval": "0.1"}, r"\(0, 1\]"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"autoattack": "quick"}, "'screening'"),
        ({"method": ["trades"]}, "'standard', 'pgd'"),
        ({"activation": {"rctaf": 1}}, "'relu'"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValidationError, match=message):
        RunConfig(**settings)


def test_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().alpha = 2.0


def test_from_notebook_reads_settings_only():
    assert RunConfig.from_notebook({"alpha": 3.0, "np": object(), "seed": 2}) == RunConfig(alpha=3.0, seed=2)


def test_from_notebook_refuses_a_misspelt_parameter_until_it_is_mended():
    right = "".join(f"{name} = {value!r}\n" for name, value in RunConfig().model_dump().items())
    wrong = right.replace("\nalpha =", "\nalhpa =")
    assert wrong != right
    session = {**RunConfig().model_dump(), "In": ["", "%matplotlib inline", "other = 1", wrong]}
    with pytest.raises(ValueError, match=r"^no such setting: alhpa \(perhaps alpha\); there are dataset, "):
        RunConfig.from_notebook(session)  # a kernel may still have an alpha from before
    session["In"] += [right, "later = 2"]
    assert RunConfig.from_notebook(session) == RunConfig()


def test_from_notebook_refuses_what_papermill_only_warns_of():
    right = "".join(f"{name} = {value!r}\n" for name, value in RunConfig().model_dump().items())
    session = {**RunConfig(seed=4).model_dump(), "In": [right, "# Parameters\nseed = 4\n"]}
    assert RunConfig.from_notebook(session) == RunConfig(seed=4)
    session["In"][-1] += "sed = 4\n"
    with pytest.raises(ValueError, match=r"^no such setting: sed \(perhaps seed\)"):
        RunConfig.from_notebook(session)


def test_from_notebook_says_in_one_line_what_is_wrong_with_a_value():
    with pytest.raises(ValueError, match=r"^epochs=0: Input .* 1; epsilon='2': a budget .* \"8/255\" .*$") as caught:
        RunConfig.from_notebook({"epochs": 0, "epsilon": "2"})
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, ValidationError)


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.15", 0.15), (" 1 / 4 ", 0.25), ("1", 1.0)])
def test_parse_epsilon(text, value):
    assert parse_epsilon(text) == value


def test_the_budget_of_the_evaluation_is_its_own_where_one_is_given():
    assert RunConfig(epsilon="8/255").evaluation_epsilon == "8/255"
    assert RunConfig(epsilon="8/255", epsilon_eval="0.1").evaluation_epsilon == "0.1"
    assert RunConfig(method="standard", epsilon_eval="0.1").evaluation_epsilon == "0.1"


@pytest.mark.parametrize("text", ["", "0", "-1/255", "8:255", "1.5", "inf", "nan", "1 5/255", "15/2 55", "0. 15"])
def test_parse_epsilon_refuses(text):
    with pytest.raises(ValueError, match="a budget must be"):
        parse_epsilon(text)


def write(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"attack_steps": None}, "attack_steps"),  # TRADES without an attack
        ({"lam": None}, "lam"),
        ({"alpha_learned": None}, "alpha_learned"),  # would be False by another id
        ({"method": "dajat", "auto_views": None}, "auto_views"),
        ({"method": "dkl", "temperature": None, "lam_mse": None}, "lam_mse, temperature"),
        ({"awp": 0.005, "awp_from": None}, "awp_from"),
    ],
)
def test_a_setting_that_is_used_has_a_value(settings, missing):
    with pytest.raises(ValidationError, match=f"{missing}: must be given with these choices"):
        RunConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "relu", "alpha": None, "beta": None, "alpha_learned": None},
        {"method": "standard", "attack_steps": None, "lam": None},
        {"attack_schedule": "as_released", "attack_steps": None},
        {"epsilon_larger": None, "n_train": None, "n_eval": None, "width": None, "awp": None},
    ],
)
def test_none_says_that_a_setting_is_not_used(settings):
    chosen = {name: value for name, value in settings.items() if value is not None or name == "epsilon_larger"}
    assert RunConfig(**settings) == RunConfig(**chosen)


def test_curvature_axis(tmp_path):
    path = write(tmp_path, "name: g\nscale: s\nblocks: [{axes: {beta: [0, 1, 2, 5], curvature: [0.5, 7]}}]")
    cells = list(Grid.load(path).cells().values())
    assert [c.beta for c in cells] == [0, 0, 1, 1, 2, 2, 5, 5]
    for config, wanted in zip(cells, [0.5, 7.0] * 4, strict=True):
        assert config.curvature == pytest.approx(wanted, rel=1e-11)  # ids keep 12 digits
        assert curvature(config.alpha, config.beta) == config.curvature
        assert config.equal_curvature == wanted
    # the closed form alpha 2^(beta - 2) holds up to order 4
    assert [c.alpha for c in cells[:6]] == [2, 28, 1, 14, 0.5, 7]
    assert RunConfig(activation="relu").curvature is None
    (usual,) = Grid.load(write(tmp_path, "name: g\nscale: s\nblocks: [{axes: {curvature: [3]}}]")).cells().values()
    assert (usual.alpha, usual.beta) == (6, RunConfig().beta)  # the default is order 1


def test_curvature_axis_of_other_functions(tmp_path):
    path = write(tmp_path, "name: g\nscale: s\nblocks: [{axes: {activation: [elu, gelu], curvature: [0.25, 7]}}]")
    cells = Grid.load(path).cells().values()
    assert [c.sharpness for c in cells] == pytest.approx(
        [0.25, 7, 0.25 / math.sqrt(2 / math.pi), 7 * math.sqrt(math.pi / 2)]
    )
    assert {c.alpha for c in cells} == {None}
    for config in cells:
        model = from_config(config, in_channels=1, n_classes=10)
        for layer in effective_curvature(model, torch.rand(4, 1, 8, 8)):
            assert layer.curvature == pytest.approx(0.25 if config.sharpness < 1 else 7, rel=1e-9)
    assert RunConfig(activation="gelu", sharpness=1) == RunConfig(activation="gelu")
    assert RunConfig(activation="relu", sharpness=3) == RunConfig(activation="relu")
    assert RunConfig(activation="elu", sharpness=2).label == "digits resnet_small trades elu(sharpness=2) seed 0"


def test_rms_curvature_axis(tmp_path):
    text = "name: g\nscale: s\nblocks: [{axes: {beta: [0, 1, 2], rms_curvature: [0.5, 4]}}]"
    cells = list(Grid.load(write(tmp_path, text)).cells().values())
    for config, wanted in zip(cells, [0.5, 4.0] * 3, strict=True):
        # ids keep 9 digits of alpha
        assert rms_curvature_at_start(config.alpha, config.beta) == pytest.approx(wanted, rel=1e-8)
    # what committed records of this axis hang on, whatever computes the quadrature
    assert [c.alpha for c in cells] == [3.91339378, 240.638994, 1.56168622, 90.5373039, 0.646422233, 30.6204796]


def test_rms_curvature_axis_of_other_functions(tmp_path):
    text = "name: g\nscale: s\nblocks: [{axes: {activation: [elu, gelu], rms_curvature: [0.5, 4]}}]"
    cells = list(Grid.load(write(tmp_path, text)).cells().values())
    for config, wanted in zip(cells, [0.5, 4.0] * 2, strict=True):
        assert baseline_rms_curvature(config.sharpness, config.activation) == pytest.approx(wanted, rel=1e-8)
    assert [c.sharpness for c in cells] == [1.38854542, 80.215221, 0.921577958, 51.7020779]  # as for alpha above


def test_seeds_come_first(tmp_path):
    path = write(
        tmp_path,
        "name: g\nscale: s\nblocks:\n"
        "- axes: {alpha: [1, 2], seed: [1, 0]}\n"
        "- {base: {activation: relu}, axes: {seed: [0, 1]}}",
    )
    cells = Grid.load(path).cells().values()
    assert [(c.seed, c.alpha) for c in cells] == [(0, 1), (0, 2), (0, None), (1, 1), (1, 2), (1, None)]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("[{axes: {alpha: [1], curvature: [2]}}]", "alpha or curvature, not both"),
        ("[{axes: {rms_curvature: [1], curvature: [2]}}]", "curvature or rms_curvature, not both"),
        ("[{base: {activation: elu, sharpness: 2, curvature: 2}}]", "sharpness or curvature, not both"),
        ("[{base: {activation: elu, rms_curvature: 2, curvature: 2}}]", "curvature or rms_curvature, not both"),
        ("[{base: {activation: elu, rms_curvature: -2}}]", "c (curvature) must be a finite number above 0, got -2"),
        ("[{base: {activation: relu, curvature: 2}}]", "curvature says nothing about relu"),
        ("[{base: {activation: relu, rms_curvature: 2}}]", "rms_curvature says nothing about relu"),
        ("[{axes: {alfa: [1]}}]", "no such setting: alfa (perhaps alpha); there are dataset, n_train, "),
        ("[{axes: {xyz: [1], epoch: [0]}, base: {epochs: 0}}]", "no such setting: xyz, epoch (perhaps epochs); there"),
        ("[{axes: {xyz: [1], epoch: [0]}, base: {epochs: 0}}]", "epochs=0: Input should be greater than or equal to 1"),
        ("[{axes: {alpha: [1, 1.0]}}]", "appears twice: digits resnet_small trades rctaf"),
        ("[{axes: {alpha: [1]}}, {axes: {seed: [0], alpha: [1]}}]", "appears twice"),
        ("[{base: {activation: relu}, axes: {alpha: [1, 2]}}]", "appears twice"),
        ("[{axis: {alpha: [1]}}]", "blocks.0.axis"),
        ("[{axes: {curvature: [-1]}}]", "-1"),
        ("[{base: {activation: [rctaf, relu]}}]", "activation=['rctaf', 'relu']: one value is expected; a list"),
        ("[{base: {recipe: [trades]}}]", "recipe=['trades']: one value is expected; a list of them belongs under axes"),
        ("[{base: {curvature: [1, 7]}}]", "curvature=[1, 7]: one value is expected"),
        ("[{base: {beta: [0, 1]}, axes: {curvature: [7]}}]", "beta=[0, 1]: one value is expected"),
        ("[{axes: {recipe: [[trades], dkl]}}]", "recipe=['trades']: one value is expected"),
        ("[{base: {recipe: {trades: }}}]", "recipe={'trades': None}: one value is expected"),
        ("[]", "blocks=[]: List should have at least 1 item"),
        ("[{axes: {seed: []}}]", "axes: seed: at least one value is expected, or there would be no run"),
        ("[{axes: {beta: [1]}}, {axes: {alpha: [1], seed: []}}]", "axes: seed: at least one value is expected"),
        ("[{base: {hessian_probes: 3}}]", ": hessian_probes=3: an interval needs at least 64 probes"),
        ("[{base: {lr_schedule: step}}]", ": lr_drops: must be given"),
        ("[{base: {seed: 1, alpha: 2, seed: 3}}]", "seed is given twice"),
        ("[{axes: {seed: [0]}}]\nblocks: [{axes: {seed: [1]}}]", "blocks is given twice"),
        ("[", "flow node"),
    ],
)
def test_bad_grids_end_in_one_line(tmp_path, blocks, message):
    path = write(tmp_path, f"name: g\nscale: s\nblocks: {blocks}")
    with pytest.raises(Unreadable) as error:  # a ValueError, which a script can catch
        Grid.load(path)
    text = str(error.value)
    assert message in text
    assert text.startswith(f"grid {path}: ")
    assert "\n" not in text


def test_a_list_is_the_value_of_one_setting(tmp_path):
    text = "name: g\nscale: s\nbase: {lr_schedule: step, lr_drops: [3, 4]}\nblocks: [{axes: {seed: [0]}}]"
    assert [config.lr_drops for config in Grid.load(write(tmp_path, text)).cells().values()] == [[3, 4]]


def test_what_a_grid_takes_over_from_an_anchor_can_be_overruled(tmp_path):
    text = "name: g\nscale: s\nblocks:\n- base: &first {alpha: 2, seed: 1}\n- base: {<<: *first, seed: 3}"
    assert [(c.alpha, c.seed) for c in Grid.load(write(tmp_path, text)).cells().values()] == [(2, 1), (2, 3)]


def test_files_that_are_no_grid(tmp_path):
    for text, message in [(None, "No such file"), ("", "a valid dictionary"), ("[1]", "a valid dictionary")]:
        path = tmp_path / "none.yaml" if text is None else write(tmp_path, text)
        with pytest.raises(Unreadable, match=f"^grid {path}: .*{message}"):
            Grid.load(path)


# --- the grids of the project ---------------------------------------------------------------------


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: str(path.relative_to(ROOT / "grids")))
def test_committed_grid(path):
    grid = Grid.load(path)
    assert grid.name == str(path.relative_to(ROOT / "grids").with_suffix(""))
    if path.parent.name != "paper":
        assert "reduced scale" in grid.scale  # printed under every figure drawn from it


def test_grids_share_runs_rather_than_repeat_them():
    """Within a scale, two cells that train the same model are one run: they agree on the evaluation too.

    All but those whose names end in autoattack, which exist to attack the same models again with all of AutoAttack.
    """
    evaluation = {"n_eval", "epsilon_larger", "autoattack", "hessian_images", "hessian_probes"}
    cells = [(p, c) for p in GRIDS if not p.stem.endswith("autoattack") for c in Grid.load(p).cells().values()]
    by_training = {}
    for path, config in cells:
        by_training.setdefault(config.model_dump_json(exclude=evaluation), []).append((path, config))
    for same in by_training.values():
        for (a, one), (b, other) in combinations(same, 2):
            assert one.run_id == other.run_id, f"{a} and {b} train {one.label} twice"


# --- every name is known everywhere ----------------------------------------------------------------------------------


def choices(field):
    return set(get_args(RunConfig.model_fields[field].annotation))


def test_activations_are_known_everywhere():
    assert choices("activation") == set(activations.ACTIVATIONS) == set(names.ACTIVATIONS)
    for name in activations.ACTIVATIONS:
        settings = {"alpha": 2.0, "beta": 1} if name == "rctaf" else {}
        module = activations.make_activation(name, **settings)
        assert isinstance(module, activations.ACTIVATION_MODULES)  # what replaces and freezes knows it
        model = torch.nn.Sequential(torch.nn.Flatten(), module)
        assert effective_curvature(model, torch.rand(4, 1, 2, 2))


def test_methods_and_networks_are_known_everywhere():
    assert choices("method") == set(_USED_BY["method"]) == set(names._METHODS)
    for method in choices("method"):
        assert isinstance(make_method(RunConfig(method=method)), Method)
    assert choices("network") == set(NETWORKS) == set(names._NETWORKS)
    assert choices("dataset") == set(names.DATASETS)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_channels_in_the_name_of_a_network_are_those_it_has(network):
    said = re.search(r"\((.*) channels\)", names.network_name(network, 24))[1]
    found = []
    for width in (24, None):
        with torch.device("meta"):
            model = from_config(RunConfig(network=network, width=width), in_channels=3, n_classes=10)
        convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
        found.append(list(dict.fromkeys(module.out_channels for module in convolutions[1:])))
    assert found[0] == [int(number) for number in said.split("/")]
    assert names.network_name(network, found[1][0]) == names.network_name(network)


def test_the_grid_of_the_page_reproducing(tmp_path):
    text = (ROOT / "book" / "reproducing.md").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    cells = Grid.load(path).cells().values()
    assert len(cells) == 3 * 3 * 6 + 3
    assert {c.network for c in cells} == {"resnet18"}
    assert {c.evaluation_epsilon for c in cells} == {"8/255"}
