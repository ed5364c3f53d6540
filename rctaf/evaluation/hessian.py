"""Eq. 8 on a real network: the norm of the Hessian's diagonal, from an estimate of its square, with an interval.

Let H be the Hessian of a loss with respect to the P parameters, d = diag H. Forming d costs P
Hessian-vector products; its norm can be estimated from far fewer.

**Probes.** For a random sign vector v, E[v ⊙ Hv] = d, because E[v_i v_j] = 0 for i ≠ j (Bekas, Kokiopoulou
and Saad 2007). The noise is the off-diagonal part of H, whose squared mass is 50-300 times ‖d‖² on the networks of
this book, so two measures are taken against it:

1. *The Gauss-Newton part is computed exactly.* With logits z(θ) and their loss ℓ(z),
   H = Jᵀ(∇²ℓ)J + Σ_i (∂ℓ/∂z_i) ∇²z_i = G + R. The first matrix carries the large eigenvalues, and
   its diagonal g needs only first derivatives: g = Σ_images Σ_k λ_k (∂(u_kᵀz)/∂θ)², with
   eigenpairs (λ_k, u_k) of ∇²ℓ. The second matrix, where σ″ lives, is the Hessian of
   θ ↦ Σ_i c_i z_i(θ) with the constants c = ∂ℓ/∂z, so Rv costs no more than Hv. The samples

       D = g + v ⊙ Rv,   E[D] = d,

   need up to 100 times fewer probes than v ⊙ Hv where activations are smooth, never many more.
2. *The square of the norm is estimated without bias.* ‖mean of K samples‖² has expectation ‖d‖² + tr(Cov D)/K,
   which grows with the off-diagonal mass and can fake a U-shape. Leaving out the pairs k = k',

       U = (‖Σ_k D_k‖² - Σ_k ‖D_k‖²) / (K (K - 1)),   E[U] = ‖d‖²  exactly, for every fixed K ≥ 2.

   U can be negative while K is small. It is reported as it is. Two biases are left, both small beside the
   interval: K is not fixed but chosen by a rule that looks at the samples, and √U is on average a little below
   the root of what U is on average.

**Interval.** U is a mean of h(D_k, D_l) = D_k·D_l over pairs, a U-statistic. Write h = ‖d‖² + a_k + a_l + e_kl with
uncorrelated parts (the decomposition of Hoeffding 1948); then Var U = 4 Var(a)/n + 2 Var(e)/(n (n - 1)) for n
samples, and both variances have unbiased estimates from the table of products (a two-way analysis
of variance). The table is kept for 32 group means, so memory does not grow with K.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import stdtrit  # of scipy.stats it is the part that loads at once
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from rctaf.arithmetic import repeatable
from rctaf.models.norm import eval_mode

_GROUPS = 32  # also the probes of one batch: the fastest of 4, 8, 16, 32, 64 on a CPU (20-25 ms a probe)
_GGN_ELEMENTS = 2**24  # per-image gradients held at once: 64 MiB in float32
# values of all layers, for all images and probes differentiated at once: some 4 GiB in float32 with what they need
_LAYER_ELEMENTS = 2**28
_PROBE_ELEMENTS = 2**27  # of the probes differentiated at once: some 3 GiB in float32 with what is made of them
_COLUMNS = 2**20  # parameters whose samples are at once in float64
_IMAGES = 512  # evaluated at once where nothing is differentiated


@dataclass(frozen=True)
class HessianEstimate:
    """The diagonal d = diag H of a loss, summarised; squares are squared Euclidean norms.

    Attributes:
        parameters: P, the number of parameters.
        images: how many images the loss was averaged over.
        probes: K, the Hessian-vector products spent (on the remainder R, see the module's text).
        square: estimate U of ‖d‖², unbiased but for the choice of K; may be negative for small K.
        standard_error: of ``square``.
        interval: 95 % interval of ‖d‖² (Student's t on 31 degrees of freedom); the lower end may be negative.
        rms: ‖d‖ / √P, the form that the figures of this book draw; None where ``square`` is negative.
        rms_interval: the ends of ``interval`` in the same form, negative ends cut at 0.
        norm_over_parameters: ‖d‖ / P, the other reading of Eq. 8; None where ``square`` is negative.
        relative_half_width: half the interval of ‖d‖ over ‖d‖; None where it has no meaning.
        converged: whether ``relative_half_width`` reached what was asked for.
        gauss_newton_square: ‖diag G‖², exact.
        remainder_square: estimate of ‖d - diag G‖², the part linear in σ″, unbiased as ``square`` is.
        scale_free_square: unbiased estimate of ‖d ⊙ w²‖², which rescaling a weight and undoing it downstream
            (in a batch norm, say) leaves unchanged; from probes of its own, of diag(w) H diag(w).
        scale_free_standard_error, scale_free_probes: of ``scale_free_square``; always 64 probes.
        frobenius_square: ‖H‖_F² from the first 32 probes; ``square`` over it says how diagonal H is.
        by_parameter: the share of ``square`` of each named parameter tensor.
    """

    parameters: int
    images: int
    probes: int
    square: float
    standard_error: float
    interval: tuple[float, float]
    rms: float | None
    rms_interval: tuple[float, float]
    norm_over_parameters: float | None
    relative_half_width: float | None
    converged: bool
    gauss_newton_square: float
    remainder_square: float
    scale_free_square: float
    scale_free_standard_error: float
    scale_free_probes: int
    frobenius_square: float
    by_parameter: dict[str, float]


class _PReLUWrittenOut(TorchFunctionMode):
    """PReLU as other operations: PyTorch's backward of it fails under two vmaps, or mixes up images and classes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self._prelu if func in (torch.prelu, Tensor.prelu) else func)(*args, **(kwargs or {}))

    @staticmethod
    def _prelu(input: Tensor, weight: Tensor) -> Tensor:  # named as PyTorch names them
        slope = weight if weight.numel() == 1 else weight.view(-1, *[1] * (input.ndim - 2))
        return torch.where(input > 0, input, slope * input)


def layer_values(model: nn.Module, forward: Callable[[], object]) -> int:
    """How many values the innermost modules of a model give in one forward; 0 where a forward uses none."""
    size = 0

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal size
        size += output.numel() if isinstance(output, Tensor) else 0

    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            if not list(module.children()):
                hooks.enter_context(module.register_forward_hook(count))
        forward()
    return size


class _Problem:
    """A model, images and a loss as functions of one flat parameter vector."""

    def __init__(
        self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, dtype: torch.dtype
    ):
        named = {n: p.detach().to(dtype) for n, p in model.named_parameters()}
        self.model, self.y, self.x, self.loss = model, y, x.to(dtype), loss
        self.buffers = {n: b.to(dtype) if b.is_floating_point() else b for n, b in model.named_buffers()}
        self.shapes = {n: p.shape for n, p in named.items()}
        self.sizes = [p.numel() for p in named.values()]
        self.theta = torch.cat([p.flatten() for p in named.values()])

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        pieces = zip(self.shapes.items(), theta.split(self.sizes), strict=True)
        named = {n: piece.view(shape) for (n, shape), piece in pieces}
        with _PReLUWrittenOut():  # here, for what torch.func calls does not see a mode that is set around it
            return functional_call(self.model, (named, self.buffers), (x,))

    def parts(self, directions: int) -> list[slice]:
        """The images in parts small enough to be differentiated in that many directions at once."""
        size = layer_values(self.model, lambda: self.logits(self.theta, self.x[:1]))
        number = max(1, _LAYER_ELEMENTS // (max(size, 1) * directions))
        return [slice(i, i + number) for i in range(0, len(self.x), number)]

    def logit_derivatives(self) -> tuple[Tensor, Tensor, Tensor]:
        """The logits z [N, C], ∂ℓ/∂z [N, C] and the per-image blocks ∂²ℓ/∂z² [N, C, C]."""
        with torch.no_grad():
            z = torch.cat([self.logits(self.theta, part) for part in self.x.split(_IMAGES)])
        if z.ndim != 2:
            raise ValueError(f"the model must give logits [N, C], got {list(z.shape)}")
        z.requires_grad_()
        (slope,) = torch.autograd.grad(self.loss(z, self.y), z, create_graph=True)
        slope = slope + 0 * z  # also for a loss that is linear in the logits: its second derivative is 0, not missing
        rows = [torch.autograd.grad(slope[:, c].sum(), z, retain_graph=True)[0] for c in range(z.shape[1])]
        return z.detach(), slope.detach(), torch.stack(rows, 1).detach()


def _gauss_newton_diagonal(problem: _Problem, blocks: Tensor) -> Tensor:
    """diag Jᵀ(∇²ℓ)J [P]; ``blocks`` are the per-image Hessians of the loss in the logits, [N, C, C]."""
    eigenvalues, eigenvectors = torch.linalg.eigh(blocks)

    def squares(image: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
        pull_back = vjp(lambda theta: problem.logits(theta, image[None])[0], problem.theta)[1]
        rows = vmap(lambda u: pull_back(u)[0])(vectors.T)
        return values @ rows.square()

    chunk = max(1, _GGN_ELEMENTS // (problem.theta.numel() * blocks.shape[1]))
    total = torch.zeros_like(problem.theta)
    for i in range(0, len(problem.x), chunk):
        part = slice(i, i + chunk)
        total += vmap(squares)(problem.x[part], eigenvalues[part], eigenvectors[part]).sum(0)
    return total


class PairMean:
    """U = mean of D_k·D_l over pairs k ≠ l, for samples D that arrive in batches of 32.

    Args:
        sizes: lengths of the pieces of a sample (one per parameter tensor); U is also kept per piece.
        options: dtype and device of the samples.

    >>> import torch
    >>> pairs = PairMean([2, 1])
    >>> pairs.add([torch.ones(32, 3)])   # 32 equal samples (1, 1 | 1): every product is 3
    >>> pairs.square(), pairs.squares().tolist(), pairs.standard_error()
    (3.0, [2.0, 1.0], 0.0)
    """

    def __init__(self, sizes: list[int], **options: Any):
        self.sizes, self.count = sizes, 0
        self.sums = torch.zeros(_GROUPS, sum(sizes), **options)  # sample k is added to row k mod 32
        self.own = torch.zeros(len(sizes), dtype=torch.float64, device=self.sums.device)

    def add(self, parts: Iterable[Tensor]) -> None:
        """Add 32 samples, in parts of some of them each [samples, sum of the sizes]."""
        row = 0
        for part in parts:
            self.sums[row : row + len(part)] += part
            self.own += torch.stack([piece.double().square().sum() for piece in part.split(self.sizes, 1)])
            row += len(part)
        assert row == _GROUPS
        self.count += _GROUPS

    def total(self) -> Tensor:
        """The sum of all samples, in float64."""
        return torch.cat([columns.double().sum(0) for columns in self.sums.split(_COLUMNS, 1)])

    def mean(self) -> Tensor:
        """The mean sample, in float64: an unbiased estimate of d itself."""
        return self.total() / self.count

    def squares(self) -> Tensor:
        """U of each piece: (‖Σ D‖² - Σ ‖D‖²) / (K (K - 1))."""
        return (torch.stack([p.square().sum() for p in self.total().split(self.sizes)]) - self.own) / (
            self.count * (self.count - 1)
        )

    def square(self) -> float:
        """U of whole samples."""
        return self.squares().sum().item()

    def standard_error(self) -> float:
        """√Var U from the products h_ij of the 32 group means.

        With row means r_i over j ≠ i and the least-squares fit h_ij ≈ h̄ + α_i + α_j, α_i = (n-1)/(n-2) (r_i - h̄):
        Var(e) is the residual sum of squares over n(n-3)/2 degrees of freedom, and
        E[Var of the r_i] = (n-2)/(n-1)² ((n-2) Var(a) + Var(e)) gives Var(a).
        """
        n = _GROUPS
        h = torch.zeros(n, n, dtype=torch.float64, device=self.sums.device)
        for columns in self.sums.split(_COLUMNS, 1):
            means = columns.double() / (self.count / n)
            h += means @ means.T
        h.fill_diagonal_(0)
        rows = h.sum(1) / (n - 1)
        mean = rows.mean()
        effect = (n - 1) / (n - 2) * (rows - mean)
        residual = (h - mean - effect[:, None] - effect[None, :]).fill_diagonal_(0)
        var_e = (residual.square().sum() / 2 / (n * (n - 3) / 2)).item()
        var_a = max(0.0, ((n - 1) ** 2 / (n - 2) * rows.var().item() - var_e) / (n - 2))
        return math.sqrt(4 * var_a / n + 2 * var_e / (n * (n - 1)))

    def reach(self) -> float:
        """Half of the 95 % interval of U (Student's t, 31 degrees of freedom)."""
        return float(stdtrit(_GROUPS - 1, 0.975)) * self.standard_error()

    def relative_half_width(self) -> float | None:
        """Half of the interval of √U relative to √U; None where the interval of U meets 0."""
        square, reach = self.square(), self.reach()
        if not square > reach:
            return None
        return (math.sqrt(square + reach) - math.sqrt(square - reach)) / 2 / math.sqrt(square)


def check_number(x: Tensor, y: Tensor) -> None:
    """Refuse a mean over no image, or over images without a label each.

    Raises:
        ValueError: as said.
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"images and labels: {len(x)} and {len(y)} given, expected as many of each, at least one")


@contextmanager
def twice_differentiable(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model in eval mode and full precision, and by operations that have second derivatives."""
    with (
        eval_mode(model),
        torch.autocast(device.type, enabled=False),
        torch.compiler.set_stance("force_eager"),  # compiled code has none
        sdpa_kernel(SDPBackend.MATH),  # nor has fused attention
    ):
        yield


@contextmanager
def _forward_mode_named() -> Iterator[None]:
    """Says in one line what PyTorch cannot differentiate twice here."""
    try:
        yield
    except NotImplementedError as error:
        found = re.search(r"Trying to use forward AD with (\S+)", str(error))
        if found is None:
            raise
        raise ValueError(
            f"the model calls {found[1]}, of which PyTorch has no forward-mode derivative; expected other operations: "
            "remove weight norm (remove_parametrizations), write a recurrent layer out"
        ) from error


@repeatable()
def hessian_diagonal_norm(
    model: nn.Module,
    loss_of_logits: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    relative: float = 0.05,
    max_probes: int = 256,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> HessianEstimate:
    """Estimate ‖diag H‖ of ``loss_of_logits(model(x), y)`` in the parameters, in eval mode.

    Memory, beyond the model's: 32 numbers a parameter, and some GiB for the probes and the part of the images that are
    differentiated at once.

    Args:
        model: maps images [N, ...] to logits [N, C]; batch norms use their running statistics.
        loss_of_logits: (logits [N, C], y) -> scalar, a sum or mean of one term per image
            (``torch.nn.functional.cross_entropy``). For the adversarial loss give adversarial ``x``.
        x: images; y: labels.
        relative: stop when the 95 % interval of the norm is within ± this fraction of it.
        max_probes: stop there at the latest, 64 or more; rounded up to a multiple of 32.
        seed: of the probes.
        dtype: float32 or float64; the model itself is not changed.

    Raises:
        ValueError: a bad argument, other logits than [N, C], a batch norm without running statistics, a model in
            DataParallel or with an operation that has no forward-mode derivative (weight norm, LSTM), or a loss that is
            not finite.
    """
    check_number(x, y)
    if relative <= 0 or max_probes < 2 * _GROUPS:
        raise ValueError(f"expected relative > 0 and max_probes >= {2 * _GROUPS}, got {relative} and {max_probes}")
    if not x.is_floating_point():
        raise ValueError(f"images must be floats as the model takes them, got {x.dtype}; see rctaf.data.to_float")
    if not list(model.parameters()):
        raise ValueError(f"{type(model).__name__} has no parameters, so there is no Hessian in them")
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            what = f"module {name!r}" if name else "the model"
            raise ValueError(f"{what} is a {type(module).__name__}; expected what it wraps: give its .module")
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"batch norm {name!r} has no running statistics, so that every logit depends on the other images; "
                "expected track_running_stats=True"
            )
    with twice_differentiable(model, x.device), _forward_mode_named(), warnings.catch_warnings():
        # torch's own rules for forward mode are still written with the deprecated torch.jit.script
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        problem = _Problem(model, loss_of_logits, x, y, dtype)
        theta = problem.theta
        logits, slope, blocks = problem.logit_derivatives()
        if not bool(torch.isfinite(slope).all() and torch.isfinite(blocks).all()):
            raise ValueError("the loss or its derivatives in the logits are not finite: has the training diverged?")

        batch = max(1, min(_GROUPS, _PROBE_ELEMENTS // len(theta)))  # probes differentiated at once
        parts = problem.parts(batch)

        def products(scalar: Callable[[Tensor, slice], Tensor], directions: Tensor) -> Tensor:
            """The Hessian of a sum over images, times each of the directions."""

            def of(part: slice) -> Tensor:
                gradient = grad(lambda parameters: scalar(parameters, part))
                return vmap(lambda v: jvp(gradient, (theta,), (v,))[1])(directions)

            total = of(parts[0])
            for part in parts[1:]:
                total += of(part)
            return total

        def remainder(parameters: Tensor, part: slice) -> Tensor:
            return (slope[part] * problem.logits(parameters, problem.x[part])).sum()

        def full(parameters: Tensor, part: slice) -> Tensor:
            """Has the Hessian of the loss at theta, and is a sum over images whether or not the loss is a mean."""
            change = problem.logits(parameters, problem.x[part]) - logits[part]
            return (slope[part] * change).sum() + torch.einsum("ni,nij,nj", change, blocks[part], change) / 2

        def probe(scale: Tensor, limit: int) -> PairMean:
            """Samples of the diagonal of diag(scale) H diag(scale), until its norm is known well enough."""
            generator = torch.Generator(theta.device).manual_seed(seed)
            pairs = PairMean(problem.sizes, dtype=dtype, device=theta.device)
            while True:
                signs = _signs(len(theta), generator).split(batch)
                pairs.add(
                    scale.square() * gauss_newton + v * scale * products(remainder, v * scale)
                    for v in (some.to(dtype) for some in signs)
                )
                width = pairs.relative_half_width()
                if pairs.count > _GROUPS and (pairs.count >= limit or (width is not None and width <= relative)):
                    return pairs

        gauss_newton = _gauss_newton_diagonal(problem, blocks)
        pairs = probe(torch.ones_like(theta), max_probes)
        scaled = probe(theta, 2 * _GROUPS)
        first = _signs(len(theta), torch.Generator(theta.device).manual_seed(seed)).split(batch)
        squares = sum(products(full, some.to(dtype)).double().square().sum().item() for some in first)

    square, reach, p = pairs.square(), pairs.reach(), len(theta)
    if not math.isfinite(square):
        raise ValueError("the Hessian's diagonal is not finite: has the training diverged?")
    width = pairs.relative_half_width()
    g = gauss_newton.double()
    g_square = g.square().sum().item()
    return HessianEstimate(
        parameters=p,
        images=len(x),
        probes=pairs.count,
        square=square,
        standard_error=pairs.standard_error(),
        interval=(square - reach, square + reach),
        rms=math.sqrt(square / p) if square >= 0 else None,
        rms_interval=(math.sqrt(max(0.0, square - reach) / p), math.sqrt(max(0.0, square + reach) / p)),
        norm_over_parameters=math.sqrt(square) / p if square >= 0 else None,
        relative_half_width=width,
        converged=width is not None and width <= relative,
        gauss_newton_square=g_square,
        # ‖d - g‖² = ‖d‖² - 2 g·d + ‖g‖², each term estimated without bias
        remainder_square=square - 2 * (g @ pairs.mean()).item() + g_square,
        scale_free_square=scaled.square(),
        scale_free_standard_error=scaled.standard_error(),
        scale_free_probes=scaled.count,
        frobenius_square=squares / _GROUPS,
        by_parameter=dict(zip(problem.shapes, pairs.squares().tolist(), strict=True)),
    )


def _signs(size: int, generator: torch.Generator) -> Tensor:
    """32 independent vectors of signs [32, size], int8."""
    options: Any = {"dtype": torch.int8, "device": generator.device}
    return torch.randint(0, 2, (_GROUPS, size), generator=generator, **options) * 2 - 1
