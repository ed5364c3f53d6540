"""Putting an activation into every place of somebody's network, and finding the places that are out of reach.

A place is an attribute. What a forward method calls or makes by itself cannot be replaced from outside; it is found
by tracing the forward on a copy of the model, or by reading its code where it cannot be traced.
"""

from __future__ import annotations

import copy
import dis
import inspect
import re
from collections import UserDict, UserList, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from types import CodeType, FunctionType, MappingProxyType, MethodType
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from rctaf.activations import ACTIVATION_MODULES, activate_sum, modules_of, rctaf
from rctaf.arithmetic import random_numbers_kept

_FUNCTION_NAMES = (
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "rrelu_", "elu", "elu_", "celu", "celu_",
    "selu", "selu_", "gelu", "gelu_", "silu", "silu_", "mish", "mish_", "softplus", "hardswish", "hardswish_",
    "threshold", "threshold_",
)  # fmt: skip
_NAMES = {*_FUNCTION_NAMES, *(kind.__name__ for kind in ACTIVATION_MODULES)}
_FUNCTIONS = frozenset(
    getattr(home, name)
    for home in (torch, F, Tensor, torch.ops.aten)
    for name in _FUNCTION_NAMES
    if hasattr(home, name)
) | {rctaf}


def replace_activations(model: nn.Module, factory: Callable[[], nn.Module]) -> int:
    """Put a new activation in every place of ``model`` that holds one; change the model in place.

    An activation here is an elementwise rectifier: :class:`RCTAF`, ReLU, ReLU6, LeakyReLU, PReLU, RReLU, ELU, CELU,
    SELU, GELU, SiLU, Mish, Softplus, Hardswish, Threshold. Gates and normalisers (sigmoid, tanh, softmax, GLU) stay,
    and so does what computes a weight (``torch.nn.utils.parametrize``). A place is an attribute of a module, however
    deep, that holds an activation module or a function such as ``F.relu`` (as in ``nn.TransformerEncoderLayer``). A
    module that stands in several places stays shared.

    An activation *called* as a function in the code of a forward method, made there, or held in a plain container
    (list, tuple, dict, set, deque) cannot be replaced from outside and is an error, never passed over in silence. To
    find it, the forward of every module is traced symbolically, for training and for evaluation, with and without its
    optional arguments, on a copy (whose parameters take no memory): the model and the random number generators stay as
    they are.

    Where a module cannot be copied or traced, or asks for the type of something, its code is read instead, and that of
    the functions and callable objects that it names, defaults and closures included. That finds what is looked up by
    name, also where it would never run, and refuses ``getattr`` with a computed name, except on a module. What is found
    only by running such code stays unseen: ``operator.methodcaller``, ``eval``, what a table of functions or a call
    returns, a module made in the forward from a class of one's own. Hooks are never looked into: what a forward hook
    calls stays.

    What is put in does not work in place. So a model that relies on an activation to change its argument, because it
    drops the result of the call or uses the argument again, is refused too. The traces show this; where a module cannot
    be traced, and through a view of the argument, it stays unseen.

    Args:
        model: any module but an activation itself.
        factory: makes one activation, e.g. ``lambda: RCTAF(alpha=14, beta=1)``. If that has parameters, it is for the
            factory to make them on the device and in the dtype of the model.

    Returns:
        The number of places.

    Raises:
        ValueError: an activation is called as a function or made in a forward method, or held in a plain container
            (the message says which, and in which module), is compiled into a module (``nn.RNN`` with ReLU,
            TorchScript, ``torch.compile`` of one alone), is relied on to work in place, or has hooks; or ``model`` or
            ``factory`` is not as above. The model is then unchanged.

    >>> from rctaf import RCTAF
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.GELU()), nn.Softmax(-1))
    >>> replace_activations(net, lambda: RCTAF(alpha=14, beta=1))
    2
    >>> net[1], net[2][1]
    (RCTAF(alpha=14, beta=1), RCTAF(alpha=14, beta=1))
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ValueError(f"factory must be a function that makes an activation (lambda: ReLU()), got {factory!r}")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got a {type(model).__name__}")
    if isinstance(model, ACTIVATION_MODULES):
        raise ValueError(f"the model is itself an activation, with nothing around it to change: {model!r}")
    modules = modules_of(model)
    out_of_reach, in_place = _obstacles(model)
    _refuse(
        "activations inside code or plain containers cannot be replaced",
        out_of_reach,
        "hold each as a module (self.act = nn.ReLU(), nn.ModuleList) and call that",
    )
    hooked = [
        f"{path} ({type(module).__name__})"
        for module, path in modules.items()
        if isinstance(module, ACTIVATION_MODULES)
        if any(value for name, value in vars(module).items() if name.endswith("_hooks"))
    ]
    _refuse("hooks of an activation would be lost", hooked, "remove them, and register them on what replaces it")
    _refuse("what replaces an activation does not work in place", in_place, "use its result instead (h = self.act(h))")

    places: list[tuple[nn.Module, str, Any]] = []
    for parent in modules:
        held = [(name, child) for name, child in parent._modules.items() if isinstance(child, ACTIVATION_MODULES)]
        places += [(parent, name, child) for name, child in held]
        places += [(parent, name, (parent, name)) for name in _function_attributes(parent)]
    # one for each, however often it stands
    new = {old: factory() for old in dict.fromkeys(old for _, _, old in places)}
    for made in new.values():
        if not isinstance(made, nn.Module):
            raise ValueError(f"factory must return a module, got {made!r}")
    for parent, name, old in places:
        setattr(parent, name, new[old].train(parent.training))
    for module in modules:
        # As the constructors set them for any other activation: the fast path of nn.TransformerEncoderLayer computes
        # ReLU or GELU itself, whatever the layer holds, and only that path takes the encoder's nested tensors.
        if "activation_relu_or_gelu" in vars(module):
            vars(module)["activation_relu_or_gelu"] = 0
        if "use_nested_tensor" in vars(module):
            vars(module)["use_nested_tensor"] = False
    return len(places)


def _refuse(what: str, problems: list[str], remedy: str) -> None:
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{what}: {', '.join(problems[:3])}{more}; {remedy}")


def _layers(thing: Any) -> Iterator[Any]:
    """``thing``, and what is inside of it if it is a partial or has been compiled, the innermost last."""
    yield thing
    while isinstance(thing, partial) or "_torchdynamo_orig_callable" in getattr(thing, "__dict__", ()):
        thing = thing.func if isinstance(thing, partial) else inspect.unwrap(thing)
        yield thing


def _is_activation_function(thing: Any) -> bool:
    *_, thing = _layers(thing)
    if isinstance(thing, torch._ops.OpOverload):  # torch.ops.aten.relu.default
        thing = thing.overloadpacket
    try:
        return thing in _FUNCTIONS
    except TypeError:  # unhashable
        return False


def _makes_activation(thing: Any) -> bool:
    """Whether it is a class such as ``nn.ReLU``, or one with settings: ``partial(nn.LeakyReLU, 0.1)``."""
    *_, thing = _layers(thing)
    return isinstance(thing, type) and issubclass(thing, ACTIVATION_MODULES)


def _function_attributes(module: nn.Module) -> list[str]:
    """Attributes of this module that hold an activation function, such as ``self.act = F.relu``."""
    return [name for name, value in vars(module).items() if _is_activation_function(value)]


_CONTAINERS = (list, tuple, set, frozenset, deque, UserList, dict, UserDict, MappingProxyType)


def _contents(thing: Any) -> Iterator[Any]:
    """What a plain container holds, however deep, of a dict the values; anything else is its own content."""
    todo, seen = [thing], set()
    while todo:
        thing = todo.pop()
        if not isinstance(thing, _CONTAINERS):
            yield thing
        elif id(thing) not in seen:
            seen.add(id(thing))
            todo += thing.values() if hasattr(thing, "values") else thing


def _obstacles(model: nn.Module) -> tuple[list[str], list[str]]:
    """Where the model calls, makes or holds an activation that no other can be put in place of, and which; and where
    it relies on one to change a tensor in place."""
    paths = modules_of(model)
    held: dict[tuple[nn.Module, str], None] = {}  # a set that keeps its order
    todo = list(paths)
    for module in todo:  # which grows by the modules that stand in plain containers: PyTorch does not know of them
        for name, value in vars(module).items():
            for inner in _contents(value) if name not in ("_parameters", "_buffers", "_modules") else ():
                if isinstance(inner, nn.Module) and (inner not in paths or isinstance(inner, ACTIVATION_MODULES)):
                    parts = modules_of(inner)
                    new = {part: f"{paths[module]}.{name}".strip(".") for part in parts if part not in paths}
                    kinds = [type(part).__name__ for part in parts if isinstance(part, ACTIVATION_MODULES)]
                    held |= {(module, f"holds {kind} in {name!r}"): None for kind in kinds}
                    paths |= new
                    todo += new
    called, graphs = [], {}
    with random_numbers_kept():
        copies = _copies(model, paths)
        for module in paths:
            names, graphs[module] = _called_inside(module, paths, copies)
            called += [(module, f"calls {name}") for name in names]

    def described(problems: Iterable[tuple[nn.Module, str]]) -> list[str]:
        return [f"{paths[module] or 'the model'} ({type(module).__name__}) {what}" for module, what in problems]

    return described([*called, *held]), described(_relying_on_in_place(graphs))


def _relying_on_in_place(graphs: dict[nn.Module, list[torch.fx.Graph]]) -> list[tuple[nn.Module, str]]:
    """Which modules take their arguments to be changed by an activation that works in place, and by which one."""

    known: dict[nn.Module, str] = {}

    def first_argument(call: torch.fx.Node) -> Any:
        return next(iter([*call.args, *call.kwargs.values()]), None)

    def overwrites(module: nn.Module) -> str:
        """What changes the first argument of this module, or ''."""
        if isinstance(module, _Held):
            return _in_place_function(module.function)
        if isinstance(module, ACTIVATION_MODULES):
            return f"{type(module).__name__}(inplace=True)" if getattr(module, "inplace", False) else ""
        if module not in known:
            known[module] = ""  # while it is looked for: a forward may call its own module
            for graph in graphs.get(module, ()):
                given = next((node for node in graph.nodes if node.op == "placeholder"), None)
                passed_on = [node.meta["closed"] for node in _closed(graph) if first_argument(node) is given]
                known[module] = known[module] or next(filter(None, map(overwrites, passed_on)), "")
        return known[module]

    found: dict[tuple[nn.Module, str], None] = {}  # a set that keeps its order
    for module, graph in [(module, graph) for module, traces in graphs.items() for graph in traces]:
        order = {node: i for i, node in enumerate(graph.nodes)}
        for node in _closed(graph):
            what, argument = overwrites(node.meta["closed"]), first_argument(node)
            again = isinstance(argument, torch.fx.Node) and any(order[user] > order[node] for user in argument.users)
            if what and (again or not node.users):
                uses = "whose argument it uses again" if node.users else "whose result it does not use"
                found[module, f"relies on {what}, {uses}"] = None
    return list(found)


def _closed(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    """The calls of other modules of the model."""
    return [node for node in graph.nodes if "closed" in node.meta]


def _in_place_function(function: Any) -> str:
    """The name of this activation function if it works in place, else ''."""
    *_, inner = layers = list(_layers(function))
    in_place = any(layer.keywords.get("inplace") for layer in layers if isinstance(layer, partial))
    name = getattr(inner, "__name__", "").split(".")[0]  # relu_.default
    return f"{name}(inplace=True)" if in_place else name if name.endswith("_") else ""


def computed_tensors(model: nn.Module) -> dict[int, Any]:
    """A memo for ``copy.deepcopy`` of the model: copies of the tensors that its modules keep and have computed.

    Such as ``nn.utils.weight_norm`` keeps; by itself ``deepcopy`` refuses a tensor with a graph behind it.
    """
    kept = (inner for module in model.modules() for value in vars(module).values() for inner in _contents(value))
    return {id(value): value.detach().clone() for value in kept if isinstance(value, Tensor) and not value.is_leaf}


def _copies(model: nn.Module, modules: Iterable[nn.Module]) -> dict[nn.Module, nn.Module]:
    """A copy of the model to run code on: the copy of each of these modules, or nothing if it cannot be copied.

    Parameters are one number, repeated to their shape: it needs no memory, and PyTorch refuses to write to it.
    """
    try:
        memo = computed_tensors(model)
        for p in model.parameters():
            if not nn.parameter.is_lazy(p):
                memo[id(p)] = nn.Parameter(p.detach().new_zeros(()).expand(p.shape), p.requires_grad)
        copy.deepcopy(model, memo)
    except Exception:  # a lock, an open file, whatever a model may hold
        return {}
    copies = {module: memo[id(module)] for module in modules if id(module) in memo}
    for made in copies.values():
        for name in _function_attributes(made):  # these will be replaced
            vars(made)[name] = _Held(vars(made)[name])
    return copies


class _Held(nn.Module):
    """Stands in a copy for an activation function that a module holds as an attribute."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function


class _OwnCode(torch.fx.Tracer):
    """Traces what one module's forward does itself; other modules of the model stay closed.

    Every argument is a Proxy, which is never None, but those in ``defaults``, which are not given. ``model`` leads from
    each module of the model, and from the copy of each, to the module.
    """

    def __init__(self, model: dict[nn.Module, nn.Module], defaults: frozenset[str]) -> None:
        super().__init__()
        self.model, self.defaults = model, defaults

    def create_proxy(self, kind: str, target: Any, args: Any, *more: Any, **named: Any) -> Any:
        if kind == "placeholder" and target in self.defaults:
            return args[0]
        return super().create_proxy(kind, target, args, *more, **named)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if m in self.model or isinstance(m, _Held | ParametrizationList):
            called = self.create_proxy("call_module", "closed", args, kwargs)
            called.node.meta["closed"] = self.model.get(m, m)
            return called
        if isinstance(m, ACTIVATION_MODULES):  # made here, or held outside of the model
            return self.create_proxy("call_function", type(m), args, kwargs)
        return forward(*args, **kwargs)


def _called_inside(
    module: nn.Module, model: Iterable[nn.Module], copies: dict[nn.Module, nn.Module]
) -> tuple[list[str], list[torch.fx.Graph]]:
    """Names of the activations that the module's own code calls as functions or makes; and the traces of that code."""
    if isinstance(module, torch.jit.ScriptModule):
        return _called_in_script(module), []
    if isinstance(module._modules.get("_orig_mod"), ACTIVATION_MODULES):  # torch.compile keeps what it was given
        return [f"compiled {type(module._modules['_orig_mod']).__name__}"], []
    if isinstance(module, nn.RNN | nn.RNNCell) and module.nonlinearity == "relu":
        return ["relu"], []

    if "forward" in vars(module) and "_orig_mod" not in module._modules:  # torch.compile has one of its own
        forward = vars(module)["forward"]  # a trace would run that of the class
        if not isinstance(_plain_function(forward), FunctionType):
            return ["code that cannot be read"], []
        return sorted(_Reading({*model}, forward, module).names), []
    if _is_pytorchs(module) and not isinstance(module, torch.fx.GraphModule | nn.Sequential):
        # PyTorch's other modules call only what they hold as attributes: a lambda, perhaps
        values = () if "_orig_mod" in module._modules else vars(module).values()  # what is compiled is looked at itself
        held = [value for value in values if callable(value) and not _is_activation_function(value)]
        return sorted(_Reading({*model}, held, module).names), []
    if isinstance(module, ACTIVATION_MODULES) or type(module).forward is nn.Module.forward:
        return [], []
    copies = copies or _copies(module, model)  # where the whole cannot be copied, this part may be
    known = {part: part for part in model} | {made: part for part, made in copies.items()}
    owner = copies.get(module, module)
    forward = _plain_function(type(module).forward)
    if not isinstance(forward, FunctionType):
        return ["code that cannot be read"], []
    reading = _Reading({*known}, MethodType(type(module).forward, owner), owner)
    graphs, complete = _traces(copies[module], known) if module in copies else ([], False)
    names = set() if complete and not _asks_what_it_got(forward, reading.codes) else reading.names
    names |= _Reading({*known}, MethodType(type(module).__call__, owner), owner).names  # which a trace does not run
    for node in [node for graph in graphs for node in graph.nodes]:
        target = node.target
        if node.op == "call_method" and target in _FUNCTION_NAMES:
            names.add(str(target))
        if node.op == "call_function" and (_is_activation_function(target) or _makes_activation(target)):
            names.add(getattr(target, "__name__", str(target)))
        if "is_wrapped" in node.meta and isinstance(target, FunctionType):  # by torch.fx.wrap: not traced
            names |= _Reading({*known}, target, owner).names
    return sorted(names), graphs


def _plain_function(function: Any) -> Any:
    """The innermost of what decorators made, and of a bound method the function."""
    function = inspect.unwrap(function)
    return getattr(function, "__func__", function)


def _is_pytorchs(module: nn.Module) -> bool:
    """Whether the code of a module is PyTorch's alone; with a parametrization it has a class made by PyTorch."""
    return all(kind.__module__.startswith("torch.") for kind in type(module).__mro__ if issubclass(kind, nn.Module))


def _called_in_script(compiled: Any) -> list[str]:
    """Names of the activations in what TorchScript has compiled, a module or a function."""
    try:
        operations = re.findall(r"aten::(\w+)\(", str(compiled.inlined_graph))
    except (AttributeError, RuntimeError):  # a module that has no forward
        return []
    return sorted({*operations} & {*_FUNCTION_NAMES})


def _traces(module: nn.Module, model: dict[nn.Module, nn.Module]) -> tuple[list[torch.fx.Graph], bool]:
    """What a module's forward does when run, and whether every trace came to its end; the module may change.

    A trace takes one path. These are for training and for evaluation, each with all arguments given, with those that
    have defaults left out, and with each of them alone given or left out.
    """
    parameters = inspect.signature(type(module).forward).parameters.values()
    optional = frozenset(p.name for p in parameters if p.default is not p.empty)
    alone = [frozenset({name}) for name in optional]
    left_out = dict.fromkeys([frozenset(), optional, *alone, *(optional - one for one in alone)])
    graphs, complete = [], True
    for training in (True, False):
        for defaults in left_out:
            vars(module)["training"] = training
            try:
                graphs.append(_OwnCode(model, defaults).trace(module))
            except Exception:  # whatever a forward may raise when it meets a Proxy
                complete = False
    return graphs, complete


def _asks_what_it_got(forward: FunctionType, codes: Iterable[CodeType]) -> bool:
    """Whether a forward asks what a Proxy in place of an argument answers wrongly.

    That is: in any of these codes, what type something has; in its own, whether an argument without a default is None.
    """
    if any({"isinstance", "issubclass", "hasattr", "type", "is_tensor"} & {*code.co_names} for code in codes):
        return True
    parameters = inspect.signature(forward).parameters.values()
    required = {p.name for p in parameters if p.default is p.empty}
    for step, following in pairwise(dis.get_instructions(forward)):
        name = step.argval[-1] if isinstance(step.argval, tuple) and step.argval else step.argval
        none = following.opname.endswith("NONE") or (following.opname == "LOAD_CONST" and following.argval is None)
        if none and "LOAD_FAST" in step.opname and name in required:
            return True
    return False


_UNKNOWN = object()


def _attribute(thing: Any, name: str) -> Any:
    try:
        return getattr(thing, name)
    except Exception:  # a property may raise anything
        return _UNKNOWN


class _Reading:
    """Names of the activations that Python code looks up, and those that the code looks up which it names in turn.

    Args:
        model: modules that are looked at by themselves.
        thing: a function, or anything that calls one, to begin with.
        owner: what ``self`` is in a function that is not bound.
    """

    def __init__(self, model: Collection[nn.Module], thing: Any, owner: Any) -> None:
        self.model = model
        self.names: set[str] = set()
        self.codes: set[CodeType] = set()
        self._seen: dict[Any, Any] = {}  # by identity; holds them, so that no other takes it over
        self._todo: list[tuple[CodeType, dict[str, Any], dict[str, Any], Any]] = []
        self._see(thing, owner)
        while self._todo:
            self._read(*self._todo.pop())

    def _see(self, thing: Any, owner: Any, bound: bool = False) -> None:
        """Look at something that may be called, or at a container of that."""
        for inner in _contents(thing):
            if _is_activation_function(inner) or _makes_activation(inner):
                *_, activation = _layers(inner)
                self.names.add(getattr(inner, "__name__", activation.__name__))
            elif isinstance(inner, torch.jit.ScriptFunction):
                self.names.update(_called_in_script(inner))
            elif isinstance(inner, MethodType):
                self._see(inner.__func__, inner.__self__, bound=True)
                self._see(inner.__self__ if isinstance(inner.__self__, type) else None, owner)  # Function.apply
            elif isinstance(inner, partial):
                self._see([inner.func, inner.args, inner.keywords], owner)
            elif isinstance(inner, FunctionType):
                self._enter(inner, owner, bound)
            elif isinstance(inner, nn.Module):
                for part in modules_of(inner) if inner not in self.model else ():  # held outside of the model
                    if isinstance(part, ACTIVATION_MODULES):
                        self.names.add(type(part).__name__)
                    else:
                        self._see(type(part).forward, part, bound=True)
            elif isinstance(inner, type) and issubclass(inner, torch.autograd.Function):
                self._see(_attribute(inner, "forward"), inner)
            elif isinstance(_attribute(type(inner), "__call__"), FunctionType) and id(inner) not in self._seen:
                self._seen[id(inner)] = inner
                self._see([MethodType(type(inner).__call__, inner), getattr(inner, "__dict__", ())], owner)
            if callable(inner) and not isinstance(inner, type | nn.Module) and not _is_activation_function(inner):
                # what a decorator was put around
                self._see(getattr(inner, "__dict__", {}).get("__wrapped__"), owner, bound)

    def _enter(self, function: FunctionType, owner: Any, bound: bool) -> None:
        code, defaults = function.__code__, function.__defaults__ or ()
        if function is activate_sum or function.__globals__.get("__name__", "").startswith("torch."):
            return  # the former names RCTAF, and calls only what it is given
        known = dict(zip(code.co_varnames[code.co_argcount - len(defaults) :], defaults, strict=False))
        known |= function.__kwdefaults__ or {}
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # nothing in it yet
                known[name] = cell.cell_contents
        # the owner's type, for a property may make another object at every look
        key = code, *map(id, known.values()), id(owner) if isinstance(owner, nn.Module) else type(owner)
        if key not in self._seen:
            self._seen[key] = known
            self._see([*known.values()], owner)
            first = code.co_varnames[: code.co_argcount][:1] if bound else ()
            self._todo.append(
                (code, {"self": owner} | known | dict.fromkeys(first, owner), function.__globals__, owner)
            )

    def _read(self, code: CodeType, known: dict[str, Any], names: dict[str, Any], owner: Any) -> None:
        """Look at all that the code names; ``known`` are its own names, ``names`` those of its module."""
        self.codes.add(code)
        thing: Any = _UNKNOWN  # what the expression read so far, such as self.block.act, stands for
        asked: Any = None  # what getattr is asked for an attribute of, until its name is read
        steps: list[dis.Instruction] = []
        for step in dis.get_instructions(code):
            if "LOAD_FAST" in step.opname and isinstance(step.argval, tuple):  # two at once, since Python 3.13
                steps += [step._replace(opname="LOAD_FAST", argval=name) for name in step.argval]
            elif step.opname not in ("PRECALL", "PUSH_NULL", "EXTENDED_ARG"):
                steps.append(step)
        for i, step in enumerate(steps):
            name: Any = step.argval[-1] if isinstance(step.argval, tuple) and step.argval else step.argval
            attribute = step.opname in _ATTRIBUTES
            if asked is not None and step.opname == "LOAD_CONST" and isinstance(name, str):
                following = next((other for other in steps[i + 1 :] if not other.opname.startswith("LOAD_")), step)
                if _passes_several(following):  # getattr(thing, "name")
                    attribute, thing, asked = True, asked, None
            elif asked is not None and (_passes_several(step) or "JUMP" in step.opname):
                if not isinstance(asked, nn.Module):
                    self.names.add("code that cannot be read")
                asked = None
            if "LOAD_FAST" in step.opname or step.opname == "LOAD_DEREF":
                thing = known.get(name, _UNKNOWN)
            elif step.opname == "LOAD_GLOBAL":
                thing = names.get(name, _UNKNOWN)
            elif attribute and thing is not _UNKNOWN:
                # an activation function held as an attribute will be replaced
                held = isinstance(thing, nn.Module) and name in _function_attributes(thing)
                thing = _UNKNOWN if held else _attribute(thing, name)
            else:
                if attribute and name in _NAMES:
                    self.names.add(name)  # of something computed or imported here: x.relu()
                thing = _UNKNOWN
            if i + 1 == len(steps) or steps[i + 1].opname not in _ATTRIBUTES:
                self._see(thing, owner)
                asked = thing if asked is _UNKNOWN else asked
            if step.opname == "LOAD_GLOBAL" and name == "getattr" and name not in names:
                asked = _UNKNOWN
            if isinstance(step.argval, CodeType):  # a function or comprehension inside this one
                inner = {name: known[name] for name in step.argval.co_freevars if name in known}
                self._todo.append((step.argval, inner, names, owner))
        for base in type(owner).__mro__ if "super" in code.co_names else ():
            for name in code.co_names:
                self._see(vars(base).get(name), owner, bound=True)


_ATTRIBUTES = "LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"


def _passes_several(step: dis.Instruction) -> bool:
    """Whether it calls something with two arguments or more, as getattr is."""
    return step.opname.startswith("CALL") and (step.arg or 0) > 1
