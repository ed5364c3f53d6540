"""Replacing activations: every place there is, and no activation that stays without an error."""

from __future__ import annotations

import copy
import functools
import random
import threading
import types
from collections import Counter, UserDict, deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from rctaf import RCTAF, rctaf
from rctaf import replace_activations as replace
from rctaf.activations import ACTIVATION_MODULES
from rctaf.data import import_torchvision
from rctaf.models import NETWORKS, make_model
from rctaf.replacement import _copies

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def new():
    return RCTAF(alpha=2, beta=1)


def kinds(model):
    return Counter(type(m).__name__ for m in model.modules())


def test_resnet18_loses_every_relu():
    # torchvision's: 1 relu in the stem and 1 in each of 8 blocks, there used twice
    model = import_torchvision("models").resnet18(num_classes=3).eval()
    assert replace(model, new) == 9
    assert kinds(model)["ReLU"] == 0
    assert kinds(model)["RCTAF"] == 9
    calls = []
    for m in model.modules():
        if isinstance(m, RCTAF):
            m.register_forward_hook(lambda m, *_: calls.append(m))

    class NoRelu(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            assert "relu" not in getattr(func, "__name__", "")
            return func(*args, **(kwargs or {}))

    with NoRelu(), torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert len(calls) == 17


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("before", [nn.ReLU, new])
def test_every_activation_of_our_own_networks_is_replaced(network, before):
    """Which end a block with ``activate_sum``: its code names RCTAF, and makes none."""
    with torch.device("meta"):
        model = make_model(network, activation=before, in_channels=3, n_classes=10)
    held = sum(isinstance(m, ACTIVATION_MODULES) for m in model.modules())
    assert replace(model, lambda: RCTAF(alpha=5, beta=2)) == held > 0
    assert {(m.alpha, m.beta) for m in model.modules() if isinstance(m, ACTIVATION_MODULES)} == {(5.0, 2)}


def test_nested_shared_listed_and_every_kind():
    shared = nn.ReLU()
    model = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), shared, nn.ModuleList([shared, nn.GELU()])),
        nn.ModuleDict({"a": nn.PReLU(), "b": nn.Hardswish(), "gate": nn.Sigmoid(), "out": nn.Softmax(-1)}),
        nn.ReLU6(inplace=True),
        RCTAF(1, 0),
        nn.Dropout(),
    ).eval()
    assert replace(model, new) == 7
    assert model[0][1] is model[0][2][0]
    assert model[0][1] is not model[0][2][1]
    assert kinds(model)["RCTAF"] == 6  # the shared one counts once here
    assert kinds(model)["Sigmoid"] == kinds(model)["Softmax"] == 1
    assert not any(m.training for m in model.modules())
    assert replace(nn.Linear(2, 2), new) == 0


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.lin = nn.Linear(2, 2)

    def forward(self, x):
        return F.relu(self.relu(self.lin(x)))


class Method(Functional):
    def forward(self, x):
        return self.relu(x).relu()


class Untraceable(Functional):
    def forward(self, x):
        if x.sum() > 0:  # cannot be traced: depends on data
            x = self.relu(x)
        return self.help(x)

    def help(self, x):
        return helper(x)


def helper(x):
    return [torch.nn.functional.silu(v) for v in x]


class Inherits(Untraceable):
    def help(self, x):
        return super().help(x) if x.sum() > 1 else x


class Innocent(Functional):
    def forward(self, x):
        return self.relu(self.lin(x)) if x.sum() > 0 else self.lin.weight


class Alias(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.act = f

    def forward(self, x):
        return self.act(x) if x.sum() > 0 else -self.act(x)


class Elsewhere(nn.Module):
    """The function is found at run time only, which reading the code would miss and tracing does not."""

    def forward(self, x):
        return {"a": F.elu}["a"](x)


class Made(nn.Module):
    def forward(self, x):
        return nn.ReLU()(x)


class MadeUntraceable(nn.Module):
    def forward(self, x):
        return nn.ReLU()(x) if x.sum() > 0 else x


class MadeAnew(Functional):
    def forward(self, x):
        self.relu = nn.ELU()
        return self.relu(x)


class Global(nn.Module):
    def forward(self, x):
        return GLOBAL(x)


class GlobalUntraceable(nn.Module):
    def forward(self, x):
        return GLOBAL(x) if x.sum() > 0 else x


GLOBAL = nn.GELU()


class Holds(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.blocks = held

    def forward(self, x):
        return x if x.sum() > 0 else self.run(self.blocks, x)


class InnerFunctional(nn.Module):
    def forward(self, x):
        return F.mish(x)


class Aten(nn.Module):
    def forward(self, x):
        return torch.ops.aten.relu(x)


class AtenUntraceable(nn.Module):
    def forward(self, x):
        return torch.ops.aten.silu_.default(x) if x.sum() > 0 else x


class MethodUntraceable(nn.Module):
    def forward(self, x):
        return (x + 1).relu() if x.sum() > 0 else x


class ImportedUntraceable(nn.Module):
    def forward(self, x):
        from torch.nn.functional import hardswish as cut

        return cut(x) if x.sum() > 0 else x


@torch.no_grad()
def wrapped(x):
    return F.elu(x)


class WrappedUntraceable(nn.Module):
    def forward(self, x):
        return wrapped(x) if x.sum() > 0 else x


class MissingAsked(nn.Module):
    """A Proxy is never None, here where nothing jumps on it."""

    def forward(self, x, skip):
        missing = skip is None
        return F.relu(x) if missing else x + skip


class Evaluated(nn.Module):
    """A trace in training mode takes the other path."""

    def forward(self, x):
        return x.tanh() if self.training else F.relu(x)


class Decorated(nn.Module):
    @torch.no_grad()
    def forward(self, x):
        return F.relu(x) if x.sum() > 0 else x


class Optional(Functional):
    """A Proxy is never None."""

    def forward(self, x, skip=None):
        h = self.lin(x)
        if skip is None:
            return F.relu(h)
        return self.relu(h + skip)


class OneOfTwo(Functional):
    """Neither all defaults nor none of them gets here."""

    def forward(self, x, scale=None, *, shift=None):
        if scale is None:
            return self.relu(x)
        return F.relu(x * scale) if shift is None else self.relu(x * scale + shift)


class Required(Functional):
    def forward(self, x, skip):
        return F.relu(x) if skip is None else self.relu(x + skip)


class TypeOf(Functional):
    """A Proxy is no Tensor."""

    def forward(self, x):
        if isinstance(x, torch.Tensor):
            return F.relu(self.lin(x))
        return self.relu(self.lin(x[0]))


class TypeOfInside(Functional):
    def forward(self, x):
        return activated(x, self.relu)


def activated(x, act):
    return torch.celu(x) if torch.is_tensor(x) else act(x[0])


@torch.fx.wrap
def closed_to_traces(x):
    return helper(x)


class Wrapped(nn.Module):
    def forward(self, x):
        return closed_to_traces(x)


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()  # cannot be copied
        self.act = nn.ReLU()

    def forward(self, x):
        return F.relu(self.act(x))


class Squares(nn.Module):
    def forward(self, weight):
        return weight**2


def parametrized():
    """Its class is one that PyTorch makes; its forward is still ours."""
    made = Weighted()
    parametrize.register_parametrization(made, "weight", Squares())
    return made


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return F.relu(x * self.weight)


class Scaled(Weighted):
    def forward(self, x):
        return x * self.weight


class ScaledUntraceable(Weighted):
    def forward(self, x):
        return x * self.weight if x.sum() > 0 else x


class Positive(nn.Module):
    def forward(self, weight):
        return F.softplus(weight)


@pytest.mark.parametrize("make", [nn.Softplus, Positive, lambda: nn.Sequential(nn.Identity(), nn.Softplus())])
def test_what_computes_a_weight_is_no_activation_of_the_network(make):
    model = nn.Sequential(nn.Linear(2, 2), Scaled(), ScaledUntraceable(), nn.ReLU())
    for layer in model[:3]:
        parametrize.register_parametrization(layer, "weight", make())
    before = repr(model[:3])
    assert replace(model, new) == 1
    assert repr(model[:3]) == before


def test_a_module_that_computes_a_weight_too_is_replaced_where_it_is_an_activation():
    softplus = nn.Softplus()
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(softplus))
    parametrize.register_parametrization(model[0], "weight", softplus)
    assert replace(model, new) == 1
    assert model[0].parametrizations.weight[0] is softplus
    handle = softplus.register_forward_hook(lambda *_: None)
    model[1][0] = nn.ReLU()
    assert replace(model, new) == 1  # the hook stays where it is
    handle.remove()


def rectified(x):
    return torch.relu(x) + 1


class CallsScript(nn.Module):
    def __init__(self):
        super().__init__()
        self.compiled = torch.jit.script(rectified)

    def forward(self, x):
        return self.compiled(x)


def patched():
    """A layer of PyTorch's with a forward of its own, as a bound method."""
    made = nn.Linear(2, 2)
    made.forward = types.MethodType(lambda self, x: F.relu(x), made)
    return made


class BuiltIn(nn.Module):
    """Its forward is not Python."""

    forward = staticmethod(torch.relu)


def patched_with_a_built_in():
    made = Innocent()
    made.forward = torch.relu
    return made


def patched_twice():
    """A forward of its own behind a wrapper, as libraries put hooks around it."""
    made = Innocent()
    made.forward = lambda x: F.hardswish(x)
    made.forward = functools.update_wrapper(functools.partial(made.forward), made.forward)
    return made


class Untraced(nn.Module):
    """The check of the shape ends every trace: what follows can only be read."""

    def __init__(self, held=None):
        super().__init__()
        self.act, self.held, self.kind = nn.ReLU(), held, "gelu"

    def check(self, x):
        if x.shape[-1] != 2:
            raise ValueError(x.shape)

    def forward(self, x):
        self.check(x)
        return self.held(self.act(x))


class ComputedName(Untraced):
    def forward(self, x):
        self.check(x)
        return getattr(F, self.kind)(self.act(x))


class ConstantName(Untraced):
    def forward(self, x):
        self.check(x)
        return getattr(F, "gelu")(self.act(x))  # noqa: B009


class AsDefault(Untraced):
    def forward(self, x, act=F.gelu):
        self.check(x)
        return act(self.act(x))


def in_a_closure(act):
    class InAClosure(Untraced):
        def forward(self, x):
            self.check(x)
            return [act(v) for v in self.act(x)]

    return InAClosure()


def patched_with_a_closure():
    made, act = Untraced(torch.tanh), F.gelu
    old = made.forward
    made.forward = lambda z: act(old(z))
    return made


def patched_around_its_class():
    made = Calls(helper)
    old = made.forward
    made.forward = lambda z: old(z)
    return made


class Calls(Untraced):
    """Its first argument has another name."""

    def forward(this, x):
        this.check(x)
        return this.helped(x)

    def helped(this, x):
        return this.held(this.act(x))


def undeclared(function):
    def decorated(*args):
        return function(*args)

    return decorated


def after_gelu(function):
    @functools.wraps(function)
    def decorated(self, x):
        return F.gelu(function(self, x))

    return decorated


class DecoratedUnseen(Untraced):
    @undeclared
    def forward(self, x):
        self.check(x)
        return F.gelu(self.act(x))


class DecoratedWithAnActivation(Untraced):
    @after_gelu
    def forward(self, x):
        self.check(x)
        return self.act(x)


class Helper:
    def __init__(self, act):
        self.settings = {"act": act}

    def __call__(self, x):
        return self.settings["act"](x)


class GeluHelper:
    def __call__(self, x):
        return F.gelu(x)


class Each(Untraced):
    def forward(self, x):
        self.check(x)
        for f in self.held.values() if hasattr(self.held, "values") else self.held:
            x = f(x)
        return x


class ActivationFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return F.gelu(x)


class OwnAutograd(Untraced):
    def forward(self, x):
        self.check(x)
        return ActivationFunction.apply(self.act(x))


class OwnCall(Untraced):
    def __call__(self, x):
        return F.gelu(super().__call__(x))

    def forward(self, x):
        return self.act(x)


def lambdas_of_one_code():
    return [lambda x, f=f: f(x) for f in (torch.tanh, F.gelu)]


def exported():
    return torch.export.export(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), (torch.ones(1, 2),)).module()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (MethodUntraceable, r"0 \(MethodUntraceable\) calls relu"),
        (ImportedUntraceable, r"0 \(ImportedUntraceable\) calls hardswish"),
        (WrappedUntraceable, r"0 \(WrappedUntraceable\) calls elu"),
        (MissingAsked, r"0 \(MissingAsked\) calls relu"),
        (BuiltIn, r"0 \(BuiltIn\) calls code that cannot be read"),
        (patched_with_a_built_in, r"0 \(Innocent\) calls code that cannot be read"),
        (Made, r"0 \(Made\) calls ReLU"),
        (MadeUntraceable, r"0 \(MadeUntraceable\) calls ReLU"),
        (MadeAnew, r"0 \(MadeAnew\) calls ELU"),
        (Global, r"0 \(Global\) calls GELU"),
        (GlobalUntraceable, r"0 \(GlobalUntraceable\) calls GELU"),
        (lambda: Holds([nn.ReLU()]), r"0 \(Holds\) holds ReLU in 'blocks'"),
        (lambda: Holds({"a": (1, nn.Sequential(nn.SELU()))}), r"0 \(Holds\) holds SELU in 'blocks'"),
        (lambda: Holds([InnerFunctional()]), r"0\.blocks \(InnerFunctional\) calls mish"),
        (lambda: Holds([F.celu]), r"0 \(Holds\) calls celu"),
        (Aten, r"0 \(Aten\) calls relu"),
        (AtenUntraceable, r"0 \(AtenUntraceable\) calls silu_"),
        (exported, r"0 \(GraphModule\) calls relu"),
        (ComputedName, r"0 \(ComputedName\) calls code that cannot be read"),
        (ConstantName, r"0 \(ConstantName\) calls gelu"),
        (AsDefault, r"0 \(AsDefault\) calls gelu"),
        (lambda: in_a_closure(F.gelu), r"0 \(InAClosure\) calls gelu"),
        (lambda: in_a_closure(nn.Sequential(nn.GELU())), r"0 \(InAClosure\) calls GELU"),
        (lambda: in_a_closure(nn.Sequential(InnerFunctional())), r"0 \(InAClosure\) calls mish"),
        (patched_with_a_closure, r"0 \(Untraced\) calls gelu"),
        (patched_around_its_class, r"0 \(Calls\) calls silu"),
        (lambda: Calls(helper), r"0 \(Calls\) calls silu"),
        (DecoratedUnseen, r"0 \(DecoratedUnseen\) calls gelu"),
        (DecoratedWithAnActivation, r"0 \(DecoratedWithAnActivation\) calls gelu"),
        (lambda: Untraced(Helper(F.gelu)), r"0 \(Untraced\) calls gelu"),
        (lambda: Untraced(GeluHelper()), r"0 \(Untraced\) calls gelu"),
        (lambda: Untraced(functools.partial(helper)), r"0 \(Untraced\) calls silu"),
        (lambda: Untraced(functools.lru_cache(helper)), r"0 \(Untraced\) calls silu"),
        (lambda: Each([torch.tanh, lambda x: F.gelu(x)]), r"0 \(Each\) calls gelu"),
        (lambda: Each(lambdas_of_one_code()), r"0 \(Each\) calls gelu"),
        (lambda: Each({Helper(torch.tanh), Helper(F.gelu)}), r"0 \(Each\) calls gelu"),
        (lambda: Each({F.gelu}), r"0 \(Each\) calls gelu"),
        (lambda: Each({nn.GELU()}), r"0 \(Each\) holds GELU in 'held'"),
        (lambda: Each(deque([nn.GELU()])), r"0 \(Each\) holds GELU in 'held'"),
        (lambda: Each(UserDict(a=F.gelu)), r"0 \(Each\) calls gelu"),
        (lambda: Each(types.MappingProxyType({"a": F.gelu})), r"0 \(Each\) calls gelu"),
        (OwnAutograd, r"0 \(OwnAutograd\) calls gelu"),
        (OwnCall, r"0 \(OwnCall\) calls gelu"),
        (
            lambda: nn.TransformerEncoderLayer(8, 2, 16, activation=GeluHelper()),
            r"Layer\) calls gelu",
        ),
        (Evaluated, r"0 \(Evaluated\) calls relu"),
        (Decorated, r"0 \(Decorated\) calls relu"),
        (Locked, r"0 \(Locked\) calls relu"),
        (Functional, r"0 \(Functional\) calls relu"),
        (Method, r"0 \(Method\) calls relu"),
        (Untraceable, r"0 \(Untraceable\) calls silu"),
        (Inherits, r"0 \(Inherits\) calls silu"),
        (Elsewhere, r"0 \(Elsewhere\) calls elu"),
        (Optional, r"0 \(Optional\) calls relu"),
        (OneOfTwo, r"0 \(OneOfTwo\) calls relu"),
        (Required, r"0 \(Required\) calls relu"),
        (TypeOf, r"0 \(TypeOf\) calls relu"),
        (TypeOfInside, r"0 \(TypeOfInside\) calls celu"),
        (Wrapped, r"0 \(Wrapped\) calls silu"),
        (parametrized, r"0 \(ParametrizedWeighted\) calls relu"),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, activation=lambda x: F.mish(x)), r"Layer\) calls mish"),
        (patched, r"0 \(Linear\) calls relu"),
        (patched_twice, r"0 \(Innocent\) calls hardswish"),
        (CallsScript, r"0 \(CallsScript\) calls relu"),
        (
            lambda: torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.SiLU())),
            r"0 \(RecursiveScriptModule\) calls silu",
        ),
        (lambda: torch.fx.symbolic_trace(Functional()), r"calls relu"),
        (lambda: nn.RNN(2, 2, nonlinearity="relu"), r"0 \(RNN\) calls relu"),
    ],
)
def test_a_called_activation_is_never_passed_over(make, message):
    model = nn.Sequential(make(), nn.ReLU())
    before, attributes = kinds(model), [dict(vars(m)) for m in model.modules()]
    with pytest.raises(ValueError, match=message):
        replace(model, new)
    assert kinds(model) == before
    assert [dict(vars(m)) for m in model.modules()] == attributes


def test_data_dependent_forward_without_functional_activations_is_fine():
    model = nn.Sequential(Innocent())
    assert replace(model, new) == 1


class Refers(nn.Module):
    """Lists of what is registered, classes that are not called, an activation with a forward of its own."""

    class Shifted(nn.ReLU):
        def forward(self, x):
            return F.relu(x) + 0.1

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(2, 2), self.Shifted())
        self.blocks, self.kind = [self.block], {"kind": nn.ReLU}
        self.inner = lambda x: self.block[1](x)  # means this object, not a copy of it

    def forward(self, x):
        if x.sum(()) > 0:  # the code holds an empty tuple
            x = self.blocks[0](x)
        return self.inner(x)


def test_what_is_replaced_anyway_is_no_error():
    model = Refers()
    assert replace(model, new) == 1
    x = torch.randn(3, 2)
    assert torch.equal(model(x), model.inner(model.block(x)) if x.sum() > 0 else rctaf(x, 2, 1))


class ByNumber(Untraced):
    """Modules looked up by a computed name, a base class by its own, and a class that is only asked for."""

    class Base(Untraced):
        def __init__(self):
            super().__init__()
            self.act1, self.act2 = nn.ReLU(), nn.GELU()
            self.blocks = nn.ModuleList([nn.Linear(2, 2)])

        def forward(self, x):
            return getattr(self, "act1")(x)  # noqa: B009

    class Derived(Base):
        def forward(self, x):
            self.check(x)
            for i in (1, 2):
                x = getattr(self, f"act{i}")(x)
            for block in self.blocks:
                x = block(x) if isinstance(block, ByNumber.Base) else getattr(self.blocks[0], "forward")(x)  # noqa: B009
            return super(ByNumber.Derived, self).forward(  # noqa: UP008 (as older code writes it)
                getattr(x, "real", x)
            )


def test_modules_looked_up_by_computed_names_are_no_error():
    assert replace(ByNumber.Derived(), new) == 3


class Endless(Untraced):
    """Every look makes a new object that looks again."""

    class Matrix:
        @property
        def t(self):
            return Endless.Matrix()

        def __call__(self, x):
            return self.t(x)

    def forward(self, x):
        self.check(x)
        return self.held(x)


def test_reading_comes_to_an_end():
    assert replace(Endless(Endless.Matrix()), new) == 1


def test_what_is_compiled_without_an_activation_is_no_error():
    assert replace(nn.Sequential(torch.jit.script(nn.Linear(2, 2)), nn.ReLU()), new) == 1
    assert replace(nn.Sequential(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), nn.ReLU()), new) == 1


class Active(nn.Module):
    """A forward that leaves its mark on everything there is."""

    def __init__(self, after):
        super().__init__()
        self.lin, self.act, self.after = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.ReLU(), after
        self.register_buffer("steps", torch.zeros(()))
        self.table, self.log, self.count = torch.zeros(3), [], 0
        self.generator = torch.Generator()

    def forward(self, x):
        self.steps += 1
        self.table[0] += 1
        self.log.append(1)
        self.count += 1
        self.last = x
        with torch.no_grad():
            for p in self.parameters():
                p.clamp_(min=7)
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.randn(3, generator=self.generator)
        return self.after(self.act(self.lin(x)) + torch.randn(2))


def state_of_the_world(model):
    """Everything that Active could change, as something that can be compared."""
    return [
        {name: str(value) for name, value in vars(model).items()},
        [tensor.tolist() for tensor in model.state_dict().values()],
        model.generator.get_state().tolist(),
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("after", [torch.tanh, lambda x: F.relu(x), lambda x: x if x.sum() > 0 else -x])
def test_looking_for_activations_leaves_no_trace(after):
    model = Active(after)
    parameter, act = next(model.parameters()), model.act
    before = state_of_the_world(model)
    try:
        assert replace(model, new) == 1
        vars(model)["_modules"]["act"] = act
    except ValueError as error:
        assert "calls relu" in str(error)  # noqa: PT017
    assert state_of_the_world(model) == before
    assert next(model.parameters()) is parameter


def test_a_model_is_copied_without_the_memory_of_its_parameters():
    model = nn.Sequential(nn.Linear(300, 300), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.LazyLinear(2))
    made = _copies(model, model.modules())
    assert set(made) == set(model.modules())
    for old, copied in zip(model[:2].parameters(), made[model][:2].parameters(), strict=True):
        assert copied.shape == old.shape
        assert copied.device == old.device
        assert copied.untyped_storage().nbytes() == copied.element_size()


class LockedInnocent(Locked):
    def forward(self, x):
        return self.act(x)


def test_what_cannot_be_copied_is_still_replaced():
    class Branches(Functional):  # can be copied, and traced: no functional activation is ever called
        def forward(self, x):
            return self.relu(x) if self.relu is not None else F.relu(x)

    assert replace(nn.Sequential(LockedInnocent(), Alias(F.relu), Branches()), new) == 3
    assert replace(torch.compile(Branches(), backend="eager"), new) == 1


class Dropped(nn.Module):
    """The result of the call is not used: its argument is."""

    def __init__(self, act):
        super().__init__()
        self.act, self.lin = act, nn.Linear(2, 2)

    def forward(self, x):
        h = self.lin(x)
        self.act(h)
        return h


class Shortcut(Dropped):
    """The shortcut is the argument."""

    def forward(self, x):
        return self.lin(self.act(x)) + x


class Activated(Dropped):
    def forward(self, x):
        return self.lin(self.act(x))


class Around(nn.Module):
    """A shortcut around another module."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x) + x


class Residual(Dropped):
    """As in the ResNets of torchvision."""

    def forward(self, x):
        identity = x
        out = self.lin(x)
        out = self.act(out)
        out = self.lin(out)
        out += identity
        return self.act(out)


class PreActivation(Dropped):
    """The shortcut is the result."""

    def forward(self, x):
        x = self.act(x)
        return self.lin(x) + x


class Recursive(Dropped):
    def forward(self, x, again=None):
        return self.act(self.lin(x)) if again is None else self(x) + self.lin(x)


MODULE = nn.LeakyReLU(0.1, inplace=True)
KEYWORD = functools.partial(F.leaky_relu, negative_slope=0.1, inplace=True)
UNDERSCORE = functools.partial(F.leaky_relu_, negative_slope=0.1)


@pytest.mark.parametrize(
    ("make", "act", "relies"),
    [
        (Dropped, MODULE, r"0 \(Dropped\) relies on LeakyReLU\(inplace=True\), whose result it does not use"),
        (Dropped, UNDERSCORE, r"0 \(Dropped\) relies on leaky_relu_, whose result it does not use"),
        (Shortcut, MODULE, r"0 \(Shortcut\) relies on LeakyReLU\(inplace=True\), whose argument it uses again"),
        (Shortcut, KEYWORD, r"0 \(Shortcut\) relies on leaky_relu\(inplace=True\), whose argument it uses again"),
        (lambda act: Around(Activated(act)), MODULE, r"0 \(Around\) relies on LeakyReLU.* argument it uses again"),
        (lambda act: Around(nn.Sequential(act)), MODULE, r"0 \(Around\) relies on LeakyReLU.* argument it uses again"),
        (Residual, MODULE, None),
        (Residual, KEYWORD, None),
        (PreActivation, MODULE, None),
        (Recursive, MODULE, None),
        (lambda act: Around(Residual(act)), MODULE, None),
        (lambda act: nn.Sequential(nn.Linear(2, 2), act), MODULE, None),
    ],
)
def test_what_relies_on_an_activation_in_place_is_refused(make, act, relies):
    """And only that: what gives the same with the same activation not in place is replaced."""
    models = []
    for activation in (copy.deepcopy(act), nn.LeakyReLU(0.1)):
        torch.manual_seed(0)
        models.append(nn.Sequential(make(activation)))
    x = torch.randn(4, 2)
    with torch.no_grad():
        in_place, not_in_place = (model(x.clone()) for model in models)
    assert torch.equal(in_place, not_in_place) == (relies is None)
    if relies:
        with pytest.raises(ValueError, match=relies):
            replace(models[0], new)
    else:
        assert replace(models[0], new) == 1


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_an_activation_with_hooks_is_refused(register):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()), nn.GELU())
    handle = getattr(model[1][0], register)(lambda *_: None)
    with pytest.raises(ValueError, match=r"hooks .*: 1\.0 \(ReLU\); remove them"):
        replace(model, new)
    assert kinds(model)["RCTAF"] == 0
    handle.remove()
    assert replace(model, new) == 2


@pytest.mark.parametrize("f", [F.relu, torch.relu, F.gelu, functools.partial(F.leaky_relu, negative_slope=0.1)])
def test_functions_held_as_attributes_are_replaced(f):
    model = nn.Sequential(Alias(f))
    assert replace(model, new) == 1
    x = torch.tensor([3.0, -1.0])
    assert torch.equal(model(x), rctaf(x, 2, 1))


@pytest.mark.parametrize("f", [F.relu, F.gelu, functools.partial(F.leaky_relu, negative_slope=0.1)])
def test_what_torch_compile_made_of_an_activation_is_one(f, monkeypatch):
    compiled = torch.compile(f, backend="eager")
    model = nn.Sequential(Alias(compiled), Alias(functools.partial(compiled, inplace=False)))
    assert replace(model, new) == 2
    x = torch.tensor([3.0, -1.0])
    assert torch.equal(model[0](x), rctaf(x, 2, 1))
    monkeypatch.setitem(globals(), "helper", compiled)
    for make in (lambda: Holds([compiled]), Untraceable):
        with pytest.raises(ValueError, match=rf"0 \({type(make()).__name__}\) calls {compiled.__name__};"):
            replace(nn.Sequential(make()), new)


def test_a_module_that_torch_compile_was_given_stays_inside_of_it():
    model = nn.Sequential(torch.compile(nn.ReLU(), backend="eager"))
    with pytest.raises(ValueError, match=r"0 \(OptimizedModule\) calls compiled ReLU"):
        replace(model, new)
    x = torch.tensor([3.0, -1.0])
    assert model(x).tolist() == [3, 0]
    model = torch.compile(nn.Sequential(nn.Identity(), nn.ReLU()), backend="eager")
    assert model(x).tolist() == [3, 0]
    assert replace(model, new) == 1
    torch.testing.assert_close(model(x), rctaf(x, 2, 1))


@pytest.mark.parametrize("activation", ["gelu", nn.ReLU()])
def test_transformer_layer_and_its_fast_path(activation):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=activation, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    assert replace(model, new) == 2
    x, padding = torch.randn(2, 3, 8), torch.tensor([[False, False, True], [False, False, False]])
    with torch.no_grad():
        expected, got = (mode(x, src_key_padding_mask=padding) for mode in (model.train(), model.eval()))
    assert torch.allclose(expected[~padding], got[~padding], atol=1e-6)


def test_replace_refuses_what_is_no_factory_or_no_network():
    net = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match="factory must be a function"):
        replace(net, RCTAF(1, 1))
    with pytest.raises(ValueError, match="factory must return a module, got 3"):
        replace(net, lambda: 3)
    assert isinstance(net[0], nn.ReLU)
    with pytest.raises(ValueError, match="itself an activation"):
        replace(nn.ReLU(), new)
    with pytest.raises(ValueError, match=r"model must be a torch\.nn\.Module, got a list"):
        replace([nn.ReLU()], new)
