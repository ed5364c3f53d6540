"""A network with its weights and statistics held fixed, as a cheaper function of the images.

An attack evaluates one network dozens to thousands of times in evaluation mode, and differentiates it in the images
alone. So whatever depends on the weights only is computed once before:

- a batch norm is affine then; after a convolution it becomes part of that convolution;
- on a CPU, a convolution of a few small feature maps becomes one matrix product. The library's convolutions have a
  fixed cost per call, and a slow backward pass where the stride is 2 (benchmarks/NOTES.md has what both gain).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from rctaf.activations import ACTIVATION_MODULES, LearnedRCTAF
from rctaf.arithmetic import random_numbers_kept
from rctaf.models.norm import SplitBatchNorm2d, eval_mode

_NORMS = (nn.BatchNorm2d, SplitBatchNorm2d)
_SAME_IN_BOTH_MODES = {*ACTIVATION_MODULES, LearnedRCTAF, nn.Linear, nn.Identity, nn.Flatten} - {nn.RReLU}
_TOLERANCE = 1e-3  # of the largest logit; folding rounds by some 1e-6, any other function is further away
_MATRIX_ELEMENTS = 2**15  # the largest matrix; larger ones beat the convolution on some processors and lose on others


class Unsupported(ValueError):
    """A network that cannot be frozen; the message says what in it is in the way."""


class Frozen(nn.Module):
    """The network in evaluation mode, up to rounding, whatever mode it is in; differentiable in the images.

    After every change of the network call :meth:`refresh`, which takes over its weights and statistics.

    Args:
        model: made of convolutions, batch norms (split ones too: the set in use), activations and linear layers, with
            additions, means and the like between them.
        example: images [N, C, H, W] of the shape, dtype and device to come; N may differ later.

    Raises:
        Unsupported: the forward cannot be traced, draws random numbers, or holds a module of another kind (a subclass
            is one, for its forward may be another) or with hooks; or the trace cannot be run or is not the same
            function.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    >>> x = torch.rand(5, 1, 4, 4)
    >>> frozen = Frozen(net, x)
    >>> torch.allclose(frozen(x), net.eval()(x), atol=1e-6)
    True
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        for name, module in model.named_modules():
            if any(getattr(module, hooks) for hooks in _HOOKS):
                raise Unsupported(f"{name or type(model).__name__} has hooks, which a trace passes over")
        try:
            with eval_mode(model), torch.enable_grad():  # a forward may ask for the mode; the trace keeps the answer
                graph = _Tracer().trace(model)
        except Exception as error:  # whatever a forward may raise when it meets a Proxy
            raise Unsupported(f"{type(model).__name__} cannot be traced: {error}") from None
        body = torch.fx.GraphModule(model, graph)
        body.graph.eliminate_dead_code()
        for module in (body.get_submodule(str(node.target)) for node in body.graph.nodes if node.op == "call_module"):
            if not _can_freeze(module):
                raise Unsupported(f"{type(model).__name__} holds a {type(module).__name__}, which cannot be frozen")
        if any(node.op == "get_attr" and str(node.target).startswith("_tensor_constant") for node in body.graph.nodes):
            # made while tracing, perhaps at random: it would stay as it was
            raise Unsupported(f"{type(model).__name__} makes a tensor that does not depend on its input")
        self._device = example.device.type
        self._parts: list[_Convolution | _Affine] = []
        self.body = self._rewritten(body, example)
        # a matrix reads and gives rows of whole images; convolutions between them must not reorder these
        self._rows = any(isinstance(part, _Convolution) and part.as_matrix for part in self._parts)
        self.refresh()
        self._check(model, example[:1])

    def _check(self, model: nn.Module, image: Tensor) -> None:
        """What a forward computes outside of torch is invisible to a trace, which keeps it as a constant."""
        with eval_mode(model), torch.no_grad(), random_numbers_kept() as drawn:
            wanted, found = model(image), self(image)
            random = drawn()
        if random:
            raise Unsupported(f"{type(model).__name__} draws random numbers")
        if not bool((found - wanted).abs().max() <= _TOLERANCE * wanted.abs().max()):
            raise Unsupported(f"{type(model).__name__} does something that its trace does not show")

    def _rewritten(self, body: torch.fx.GraphModule, example: Tensor) -> torch.fx.GraphModule:
        shapes = _shapes(body, example)
        modules = {node: body.get_submodule(str(node.target)) for node in body.graph.nodes if node.op == "call_module"}
        folded: set[torch.fx.Node] = set()
        for node, module in modules.items():
            if isinstance(module, nn.Conv2d):
                after, *others = node.users
                norm = modules[after] if not others and isinstance(modules.get(after), _NORMS) else None
                if norm is not None:
                    after.replace_all_uses_with(node)
                    body.graph.erase_node(after)
                    folded.add(after)
                self._put(body, node, _Convolution(module, norm, shapes[node.all_input_nodes[0]], shapes[node]))
            elif isinstance(module, _NORMS) and node not in folded:
                self._put(body, node, _Affine(module))
        body.delete_all_unused_submodules()
        body.recompile()
        return body

    def _put(self, body: torch.fx.GraphModule, node: torch.fx.Node, part: _Convolution | _Affine) -> None:
        node.target = f"frozen_{len(self._parts)}"
        node.args, node.kwargs = tuple(node.all_input_nodes), {}
        body.add_submodule(node.target, part)
        self._parts.append(part)

    def refresh(self) -> None:
        """Take over the network's present weights and statistics, and the set of a split batch norm in use."""
        with torch.no_grad(), torch.autocast(self._device, enabled=False):
            for part in self._parts:
                part.refresh()
                if self._rows and isinstance(part, _Convolution):
                    part.weight = part.weight.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] to logits [N, K]."""
        return self.body(x)


class _Tracer(torch.fx.Tracer):
    def create_node(self, *args: Any, **kwargs: Any) -> torch.fx.Node:
        if not torch.is_grad_enabled():  # a trace does not show it, and would have gradients where the network has none
            raise ValueError("it switches gradients off")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (*_NORMS, *_SAME_IN_BOTH_MODES))  # a subclass stays whole, to be refused below
        return known or super().is_leaf_module(m, module_qualified_name)


class _Convolution(nn.Module):
    """A convolution and the batch norm after it, where there is one."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None, inputs: torch.Size, outputs: torch.Size) -> None:
        super().__init__()
        self._source = (conv, norm)  # a tuple: parameters of the network, not of this module
        self._outputs = outputs[1:]
        size = math.prod(inputs[1:]), math.prod(outputs[1:])
        self.as_matrix = conv.weight.device.type == "cpu" and size[0] * size[1] <= _MATRIX_ELEMENTS
        if self.as_matrix:
            # which weight stands where in the matrix, from 1; 0 is none. Every entry is one weight, never a sum.
            unit = torch.eye(size[0], dtype=torch.double).view(-1, *inputs[1:])
            number = torch.arange(1, conv.weight.numel() + 1, dtype=torch.double).view(conv.weight.shape)
            self._entries = self._convolve(unit, number, None).flatten().round().long()
        self.register_buffer("weight", torch.empty(0))
        self.register_buffer("bias", conv.weight.detach()[:, 0, 0, 0])

    def refresh(self) -> None:
        conv, norm = self._source
        weight = conv.weight
        bias = torch.zeros_like(weight[:, 0, 0, 0]) if conv.bias is None else conv.bias
        if norm is not None:
            norm = _in_use(norm)
            weight, bias = fuse_conv_bn_weights(
                weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        if self.as_matrix:
            entries = torch.cat([weight.new_zeros(1), weight.flatten()])
            bias = bias.repeat_interleave(math.prod(self._outputs[1:]))
            weight = entries.index_select(0, self._entries).view(-1, len(bias))
        self.weight, self.bias = weight.detach(), bias.detach()

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv = self._source[0]
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.as_matrix:
            return torch.addmm(self.bias, x.flatten(1), self.weight).view(-1, *self._outputs)
        return self._convolve(x, self.weight, self.bias)


class _Affine(nn.Module):
    """A batch norm with no convolution before it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self._source = (norm,)
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("bias", torch.empty_like(_in_use(norm).running_mean))

    def refresh(self) -> None:
        norm = _in_use(self._source[0])
        scale = (norm.running_var + norm.eps).rsqrt() * norm.weight
        shift = norm.bias - norm.running_mean * scale
        self.scale, self.bias = (part.detach()[:, None, None] for part in (scale, shift))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.scale)


def _can_freeze(module: nn.Module) -> bool:
    """Whether a module does the same in evaluation mode whatever the images are, and this file knows how."""
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros"
    if type(module) in _NORMS:
        return _in_use(module).running_mean is not None and _in_use(module).affine
    return type(module) in _SAME_IN_BOTH_MODES


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def _in_use(norm: nn.Module) -> Any:
    return norm.sets[norm.active] if isinstance(norm, SplitBatchNorm2d) else norm


class _Shapes(torch.fx.Interpreter):
    """Runs a graph and remembers the shape of what every node gives."""

    def __init__(self, body: torch.fx.GraphModule) -> None:
        super().__init__(body)
        self.found: dict[torch.fx.Node, torch.Size] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = result.shape
        return result


def _shapes(body: torch.fx.GraphModule, example: Tensor) -> dict[torch.fx.Node, torch.Size]:
    """The shape of what every node of the graph gives."""
    shapes = _Shapes(body)
    try:
        with eval_mode(body), torch.no_grad():
            shapes.run(example[:1])
    except Exception as error:  # a trace has calls, and not what stood around them, as torch.enable_grad() does
        raise Unsupported(f"its trace cannot be run: {' '.join(str(error).split())[:200]}") from None
    return shapes.found
