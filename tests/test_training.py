"""The loop: repeatable and resumable to the last bit, honest about divergence, faithful in its bookkeeping."""

import math
import resource

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rctaf import arithmetic
from rctaf.activations import fix_alphas
from rctaf.config import RunConfig
from rctaf.data import load
from rctaf.models import SplitBatchNorm2d, from_config
from rctaf.training import Diverged, Method, loop, schedules, train
from rctaf.training.methods import Outcome, Standard


@pytest.fixture(scope="module")
def digits():
    return load("digits", 200)


def config(**settings):
    return RunConfig(**{"width": 2, "epochs": 3, "batch_size": 64, "attack_steps": 2, "n_train": 200, **settings})


def run(config, dataset, **kw):
    model = from_config(config, in_channels=1, n_classes=10).to(dataset.train_x.device)
    history = train(model, dataset, config, **kw)
    history.pop("seconds")
    return history, model.state_dict()


def same(a, b):
    return a[0] == b[0] and all(torch.equal(v, b[1][k]) for k, v in a[1].items())


class Killed(Exception):
    pass


def kill_in_epoch(epoch, steps):
    def progress(done, total, row):
        if row is None and done > (epoch - 1) * steps + 1:
            raise Killed

    return progress


SETTINGS = [
    {"method": "standard"},
    {"method": "pgd", "augment": "crop"},
    {"method": "trades", "activation": "relu", "augment": "crop_flip"},
    {"method": "trades", "precision": "bf16", "decay_gains": False},
    {"method": "trades", "alpha": 2.0, "alpha_learned": True, "gain": 5.0, "head_lr": 0.04},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_run_repeats_and_resumes_bit_for_bit(settings, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 0.0)
    c, path = config(**settings), tmp_path / "deep" / "checkpoint.pt"
    whole = run(c, digits)
    assert same(whole, run(c, digits))
    with pytest.raises(Killed):
        run(c, digits, checkpoint=path, progress=kill_in_epoch(3, steps=4))
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]  # no partial file stays
    calls = []
    assert same(whole, run(c, digits, checkpoint=path, progress=lambda *a: calls.append(a)))
    assert len(calls) == 4 + 1  # only the third epoch was trained again
    calls.clear()
    assert same(whole, run(c, digits, checkpoint=path, progress=lambda *a: calls.append(a)))
    assert calls == []


COMPILED = [
    ("inductor", {"method": "pgd", "n_train": 192}),  # the compiler itself, half a minute for two functions
    # what it is given: two sets of norms, two sizes of a batch, and everything that changes weights from outside
    ("aot_eager", {"method": "dajat", "auto_views": 1, "awp": 0.005, "averaging": "step", "averaging_decay": 0.9}),
    ("aot_eager", {"method": "trades", "alpha_learned": True, "precision": "bf16", "n_train": 190}),
]


@pytest.mark.parametrize(("backend", "settings"), COMPILED)
def test_a_compiled_run_is_the_plain_one_up_to_rounding(backend, settings, tmp_path, monkeypatch):
    """bf16 has three digits; in single precision an epoch amplifies the last digits by a few hundred."""
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 0.0)
    if backend != "inductor":
        compiler = torch.compile
        monkeypatch.setattr(torch, "compile", lambda module, options, **kw: compiler(module, backend=backend, **kw))
    c, path = config(**settings, compiled=True, epochs=2), tmp_path / "checkpoint.pt"
    images = load("digits", c.n_train)
    plain, _ = run(config(**settings, epochs=2), images)
    counters = torch._dynamo.utils.counters
    counters.clear()
    whole = run(c, images)
    # training (with each set of norms); attack; its natural logits; its first step where that has a precision of its
    # own; all again for a second size of a batch
    assert counters["stats"]["unique_graphs"] == {"pgd": 2, "dajat": 4, "trades": 2 * 4}[c.method]
    assert not counters["graph_break"]
    assert whole[0]["loss"][0] == pytest.approx(plain["loss"][0], rel=1e-3)
    with pytest.raises(Killed):
        run(c, images, checkpoint=path, progress=kill_in_epoch(2, steps=math.ceil(len(images.train_x) / 64)))
    assert same(whole, run(c, images, checkpoint=path))


def test_a_full_disk_is_named_and_costs_no_checkpoint(digits, tmp_path):
    path, c = tmp_path / "checkpoint.pt", config(method="standard")
    path.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limits[1]))  # no file may be larger: a disk as full
    try:
        with pytest.raises(OSError, match=f"{path}"):
            loop._Run(from_config(c, in_channels=1, n_classes=10), digits, c, lambda *args: None).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(left.name, left.read_bytes()) for left in tmp_path.iterdir()] == [("checkpoint.pt", b"before")]


def test_another_seed_is_another_run(digits):
    assert not same(run(config(method="standard"), digits), run(config(method="standard", seed=1), digits))


def test_the_history_has_a_row_per_epoch_and_the_loss_falls(digits):
    c = config(epochs=6)
    model = from_config(c, in_channels=1, n_classes=10)
    history = train(model, digits, c)
    assert not model.training
    assert {len(column) for column in history.values()} == {6}
    assert history["epoch"] == [1, 2, 3, 4, 5, 6]
    assert history["loss"][-1] < history["loss"][0]
    assert history["epsilon"] == [0.15] * 6
    assert all(0 <= a <= 1 for name in ("train_accuracy", "train_robust_accuracy") for a in history[name])


def test_the_columns_say_what_the_method_saw(digits):
    standard, _ = run(config(method="standard"), digits)
    assert "train_robust_accuracy" not in standard
    assert standard["epsilon"] == [0, 0, 0]
    madry, _ = run(config(method="pgd"), digits)
    assert madry["train_accuracy"] == madry["train_robust_accuracy"]


def test_progress_counts_every_step(digits):
    calls = []
    c = config(method="standard")
    train(from_config(c, in_channels=1, n_classes=10), digits, c, progress=lambda *a: calls.append(a))
    assert [done for done, _, row in calls if row is None] == list(range(1, 13))
    assert {total for _, total, _ in calls} == {12}
    assert [(done, row["epoch"]) for done, _, row in calls if row] == [(4, 1), (8, 2), (12, 3)]


def test_a_loss_that_is_not_finite_stops_the_run(digits):
    c = config(method="standard", lr=1e30, norm="none")
    with pytest.raises(Diverged, match=r"the loss became (nan|inf) in epoch 1, step \d of 4 \(digits resnet_small"):
        run(c, digits)


def test_a_running_statistic_that_is_not_finite_stops_the_run(digits):
    """The loss of training uses the statistics of the batch, and does not see it."""
    c = config(method="standard")
    model = from_config(c, in_channels=1, n_classes=10)
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))

    def spoil(done, total, row):
        if done == 5:  # in the second epoch
            norm.running_var[0] = torch.inf

    with pytest.raises(Diverged, match=r"a running statistic of the network is not finite after epoch 2 \(digits"):
        train(model, digits, c, progress=spoil)


def test_checkpoints_that_do_not_fit_are_refused(digits, tmp_path):
    path = tmp_path / "checkpoint.pt"
    c = config(method="standard", epochs=1)
    run(c, digits, checkpoint=path)
    with pytest.raises(ValueError, match="written with another lr, seed; delete it to start again"):
        run(config(method="standard", epochs=1, lr=0.2, seed=3), digits, checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        run(c, digits, checkpoint=path)
    # files of others that PyTorch can read
    for other in (from_config(c, in_channels=1, n_classes=10).state_dict(), {"config": None}, [1, 2], torch.zeros(3)):
        torch.save(other, path)
        with pytest.raises(ValueError, match=r"not a readable checkpoint .*; delete it to start again$"):
            run(c, digits, checkpoint=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(device="cuda"), "begun on cuda, this is cpu; go on there or delete it$"),
        (
            lambda content: content["config"].update(cutout=4),
            r"by another version \(no such setting: cutout; there are dataset, .*\); delete it to start again$",
        ),
        (lambda content: content.pop("history"), r"not a readable checkpoint \(it lacks 'history'\); delete it to"),
    ],
)
def test_a_checkpoint_of_another_machine_or_version_is_refused_before_anything_changes(
    digits, tmp_path, change, message
):
    path, c = tmp_path / "checkpoint.pt", config(method="standard", epochs=1)
    run(c, digits, checkpoint=path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        run(c, digits, checkpoint=path)


def test_a_checkpoint_older_than_a_setting_is_taken_up(digits, tmp_path):
    path, c = tmp_path / "checkpoint.pt", config(method="standard", epochs=1)
    whole = run(c, digits, checkpoint=path)
    content = torch.load(path, weights_only=True)
    del content["config"]["head_lr"]
    torch.save(content, path)
    assert same(whole, run(c, digits, checkpoint=path))


def test_every_image_is_used_once_per_epoch_in_parts_of_one_size(digits, monkeypatch):
    seen = []

    class Spy(Method):
        def attack(self, model, x, y, budget, generator):
            seen.append(x)
            return x

        def loss(self, model, views, y):
            logits = model(views[0].clean)
            return Outcome(nn.functional.cross_entropy(logits, y), logits, None)

    monkeypatch.setattr(loop, "make_method", lambda config: Spy())
    run(config(method="standard", epochs=2, batch_size=150), digits)
    assert [len(x) for x in seen] == [100, 100, 100, 100]  # not 150 and 50
    expected = digits.train_x.flatten(1).sum(1).sort().values
    for epoch in (seen[:2], seen[2:]):
        assert torch.equal(torch.cat(epoch).flatten(1).sum(1).sort().values, expected)
    assert not torch.equal(seen[0], seen[2])


class Plain(Method):
    """Sees a base and an AutoAugment view, notes what it is given, and has losses that are known."""

    views = ("base", "auto")

    def __init__(self, losses=(1.0, 2.0, 6.0)):
        self.attacks, self.losses = [], list(losses)

    def attack(self, model, x, y, budget, generator):
        sets = {m.active for m in self.network.modules() if isinstance(m, SplitBatchNorm2d)}
        self.attacks.append((generator, sets))
        return x

    def loss(self, model, views, y):
        logits = model(views[0].clean)
        return Outcome(0 * logits.sum() + self.losses.pop(0), logits, None)


def test_every_stream_of_numbers_and_every_set_of_norms_has_one_use(digits, monkeypatch):
    method, made, augmented, policies = Plain(), {}, [], []
    generators, augment, auto_augment = loop.make_generators, loop.augment, loop.auto_augment

    def make(seed, device):
        made.update(generators(seed, device))
        return made

    def spy(x, kind, generator):
        augmented.append((kind, generator))
        return augment(x, kind, generator)

    def auto_spy(x, generator):
        policies.append(generator)
        return auto_augment(x, generator)

    for name, value in (("make_generators", make), ("augment", spy), ("auto_augment", auto_spy)):
        monkeypatch.setattr(loop, name, value)
    monkeypatch.setattr(loop, "make_method", lambda config: method)
    c = config(method="dajat", auto_views=1, augment="crop", batch_size=67, epochs=1)
    method.network = from_config(c, in_channels=1, n_classes=10)
    history = train(method.network, digits, c)
    assert history["loss"] == [3]  # the mean of its three steps
    assert method.attacks == [(made["attack"], {0}), (made["attack"], {1})] * 3
    assert augmented == [("crop", made["augment"])] * 6
    assert policies == [made["policy"]] * 3


def test_an_infinite_loss_is_told_at_its_own_step(digits, monkeypatch):
    method = Plain([1.0, math.inf, 1.0])
    monkeypatch.setattr(loop, "make_method", lambda config: method)
    method.network = from_config(c := config(batch_size=67, epochs=1), in_channels=1, n_classes=10)
    method.views = ("base",)
    with pytest.raises(Diverged, match="the loss became inf in epoch 1, step 2 of 3"):
        train(method.network, digits, c)


@pytest.mark.parametrize(("first", "expected"), [(1, [1, 2, 3]), (3, [3])])
def test_weights_are_perturbed_from_the_epoch_that_was_asked_for(digits, monkeypatch, first, expected):
    epochs, perturb = [], loop.perturbed

    def spy(model, ascent_loss, gamma):
        epochs.append(method.steps // 4 + 1)
        assert gamma == 0.005
        return perturb(model, ascent_loss, gamma)

    class Counted(Standard):
        steps = 0

        def observe(self, outcome, y):
            self.steps += 1

    method = Counted()
    monkeypatch.setattr(loop, "make_method", lambda config: method)
    monkeypatch.setattr(loop, "perturbed", spy)
    run(config(method="standard", awp=0.005, awp_from=first), digits)
    assert epochs == [epoch for epoch in expected for _ in range(4)]


def test_the_order_of_the_images_does_not_depend_on_the_method(digits, monkeypatch):
    permutation, orders = torch.randperm, []

    def spy(n, **options):
        orders[-1].append(permutation(n, **options))
        return orders[-1][-1]

    monkeypatch.setattr(torch, "randperm", spy)
    for method in ({"method": "standard"}, {"method": "trades"}, {"method": "dajat", "auto_views": 1}):
        orders.append([])
        run(config(**method, epochs=2, augment="crop", seed=5), digits)
    for found in orders[1:]:
        assert all(torch.equal(a, b) for a, b in zip(orders[0], found, strict=True))
    assert not torch.equal(*orders[0])
    first = {
        name: torch.rand(1, generator=g).item() for name, g in loop.make_generators(3, torch.device("cpu")).items()
    }
    assert len(set(first.values())) == 4


def test_decay_gains_chooses_what_weight_decay_acts_on():
    model = from_config(config(), in_channels=1, n_classes=10)
    (everything,) = loop.make_optimizer(model, config()).param_groups
    assert len(everything["params"]) == len(list(model.parameters()))
    weights, spared = loop.make_optimizer(model, config(decay_gains=False)).param_groups
    assert weights["weight_decay"] == 5e-4
    assert spared["weight_decay"] == 0
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert {id(p) for p in weights["params"]} == matrices
    assert len(weights["params"]) + len(spared["params"]) == len(everything["params"])


def test_learned_alphas_are_not_decayed_and_their_course_is_recorded(digits):
    c = config(method="standard", alpha=3.0, alpha_learned=True)
    model = from_config(c, in_channels=1, n_classes=10)
    decayed, spared = loop.make_optimizer(model, c).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].rsplit(".")[-1] for p in spared["params"]} == {"log_alpha"}
    assert len(spared["params"]) == 7
    assert spared["weight_decay"] == 0
    assert decayed["weight_decay"] == 5e-4
    history = train(model, digits, c)
    alphas = fix_alphas(model)
    assert alphas == [history[f"alpha_{place}"][-1] for place in range(1, 8)]
    assert len(history["alpha_7"]) == 3
    assert all(alpha != pytest.approx(3, rel=1e-4) for alpha in alphas)


def test_head_lr_acts_on_the_classifiers_weights_alone():
    model = from_config(config(), in_channels=1, n_classes=10)
    rest, head = loop.make_optimizer(model, config(head_lr=0.01)).param_groups
    assert [id(p) for p in head["params"]] == [id(model.classifier.weight)]
    assert len(rest["params"]) == len(list(model.parameters())) - 1
    assert head["lr_factor"] == 0.01
    assert head["lr_factor"] * head["weight_decay"] == pytest.approx(rest["weight_decay"], rel=1e-15)


def test_the_loop_multiplies_the_rate_by_the_factor(digits):
    """One step: only the classifier's weights move, and by the tenth part, when everything else has rate 0."""
    moves = []
    for factor in (1.0, 0.1):
        c = config(method="standard", epochs=1, batch_size=200, head_lr=factor, weight_decay=0.0)
        model = from_config(c, in_channels=1, n_classes=10)
        before = model.classifier.weight.detach().clone()
        train(model, digits, c)
        moves.append(model.classifier.weight.detach() - before)
    torch.testing.assert_close(moves[1], 0.1 * moves[0], rtol=1e-4, atol=1e-7)  # differences of float32 weights


@pytest.mark.parametrize("gains_too", [False, True])
def test_a_gain_and_the_rates_that_undo_it(gains_too):
    """(alpha, gain 1) and (alpha / g, gain g) stay one function through steps with momentum and weight decay.

    With head_lr = 1/g^2, when gains and shifts are held; when they are trained, with g^2 times their rate and its
    inverse in their decay besides. With the common rate they part.
    """
    g, lr = 4.0, 0.02
    x, y = torch.rand(32, 1, 8, 8, dtype=torch.float64), torch.arange(32) % 10
    ends = {}
    for name, kw in {
        "plain": {"alpha": 8.0},
        "undone": {"alpha": 8.0 / g, "gain": g, "head_lr": 1 / g**2},
        "common": {"alpha": 8.0 / g, "gain": g},
    }.items():
        c = config(lr=lr, weight_decay=0.01, **kw)
        model = from_config(c, in_channels=1, n_classes=10).double()
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.eps = 1e-30  # else the norms would not take the gain out altogether
            norm.requires_grad_(False)
        optimizer = loop.make_optimizer(model, c)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        if gains_too:
            k = g if name == "undone" else 1.0
            gains = [p.requires_grad_() for norm in norms for p in norm.parameters()]
            optimizer.add_param_group({"params": gains, "lr": lr * k**2, "weight_decay": 0.01 / k**2})
        for _ in range(8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        ends[name] = model(x).detach()
    torch.testing.assert_close(ends["undone"], ends["plain"], rtol=1e-8, atol=1e-8)  # rounding, grown over 8 steps
    assert (ends["common"] - ends["plain"]).abs().max() > 0.01


@pytest.mark.parametrize("head_lr", [1.0, 0.1])
def test_sgd_is_the_textbook_update(digits, head_lr):
    """One step from fresh buffers: w - lr (gradient + weight decay * w); the classifier's gradient times head_lr."""
    c = config(method="standard", epochs=1, batch_size=200, lr=0.05, weight_decay=0.01, head_lr=head_lr)
    model = from_config(c, in_channels=1, n_classes=10)
    order = torch.randperm(200, generator=loop.make_generators(0, torch.device("cpu"))["order"])
    nn.functional.cross_entropy(model(digits.train_x[order]), digits.train_y[order]).backward()
    share = {"classifier.weight": head_lr}
    expected = {k: (p - 0.05 * (share.get(k, 1.0) * p.grad + 0.01 * p)).detach() for k, p in model.named_parameters()}
    _, state = run(c, digits)
    for k, value in expected.items():
        # float32: the fused kernel rounds in another order, and channels_last sums in another order
        torch.testing.assert_close(state[k], value, rtol=1e-4, atol=1e-6)


def test_momentum_carries_the_step_before(digits):
    """Two steps over all images by the textbook; the order of the images only rounds otherwise."""
    c = config(method="standard", epochs=2, batch_size=200, lr=0.05, weight_decay=0.01)
    model = from_config(c, in_channels=1, n_classes=10)
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for epoch in (1, 2):
        model.zero_grad()
        nn.functional.cross_entropy(model(digits.train_x), digits.train_y).backward()
        with torch.no_grad():
            for p, v in zip(model.parameters(), velocity, strict=True):
                v.mul_(0.9).add_(p.grad + 0.01 * p)
                p.sub_(schedules.learning_rate(c, epoch) * v)
    _, state = run(c, digits)
    for name, p in model.named_parameters():
        torch.testing.assert_close(state[name], p.detach(), rtol=1e-3, atol=1e-5)  # without it they are 0.01 away


def test_accuracy_in_training_is_a_share_of_the_images(digits):
    """Of one epoch that learns next to nothing: what the network at the start gets right, in training mode."""
    c = config(method="trades", epochs=1, batch_size=200, lr=1e-9, attack_steps=1, epsilon="1e-6")
    model = from_config(c, in_channels=1, n_classes=10)
    share = (model(digits.train_x).argmax(1) == digits.train_y).double().mean().item()
    assert 0 < share < 0.5
    history, _ = run(c, digits)
    # a logit nearly as high as the highest may win in another order of sums, or after an attack of a millionth
    assert history["train_accuracy"] == [pytest.approx(share, abs=0.011)]
    assert history["train_robust_accuracy"] == [pytest.approx(share, abs=0.011)]


def test_schedules_are_the_recipes():
    c = config(epochs=200, lr=0.2)
    assert schedules.learning_rate(c, 1) == 0.2
    assert schedules.learning_rate(c, 101) == pytest.approx(0.1)
    assert schedules.learning_rate(c, 200) == pytest.approx(0.1 * (1 + math.cos(math.pi * 199 / 200)))
    c = config(epochs=76, lr=0.1, lr_schedule="step", lr_drops=[75, 90, 100])
    assert [schedules.learning_rate(c, e) for e in (1, 74, 75, 76)] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert schedules.budget(config(epsilon="8/255"), 1) == schedules.Budget(8 / 255, 2, 2 / 255)
    assert schedules.budget(config(epsilon="0.031", attack_step_size="0.007"), 1).step_size == 0.007


@pytest.mark.parametrize("method", ["pgd", "trades", "mart", "dajat", "dkl"])
def test_bf16_is_for_the_network_and_not_for_the_loss(method, digits, monkeypatch):
    """Autocast on a CPU leaves softmax and logarithms in the precision of their input."""
    seen = []

    def spy(name, function):
        def call(x, *args, **kwargs):
            seen.append((name, x.dtype))
            return function(x, *args, **kwargs)

        return call

    monkeypatch.setattr(Tensor, "softmax", spy("softmax", Tensor.softmax))
    monkeypatch.setattr(Tensor, "log_softmax", spy("log_softmax", Tensor.log_softmax))
    monkeypatch.setattr(F, "cross_entropy", spy("cross_entropy", F.cross_entropy))
    monkeypatch.setattr(F, "linear", spy("linear", F.linear))
    run(config(method=method, precision="bf16", epochs=1, n_train=64), digits)
    assert {"cross_entropy", "linear"} <= {name for name, _ in seen}
    assert {dtype for name, dtype in seen if name != "linear"} == {torch.float32}


@pytest.mark.parametrize("setting", [(False, False), (True, True), (True, False)])
def test_deterministic_algorithms_are_required_inside_and_only_there(setting):
    def now():
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    enabled, warn_only = setting
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    try:
        with arithmetic.deterministic():
            assert now() == (True, False)
        assert now() == setting
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
