"""The Triton kernels against the plain formula in double precision: on a GPU where there is one.

Elsewhere the same tests run in Triton's interpreter, which executes the kernels' text with NumPy (in a process of its
own: the choice is made at import), and the kernels are compiled for GPUs that are not there. Only a GPU can show that
they also run: on one, this file tests that too.
"""

import math
import os

import pytest
import torch

from rctaf import RCTAF, _kernels, rctaf
from rctaf._native import Summand
from rctaf.family import polynomials

pytest.importorskip("triton", reason="triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA and not INTERPRETED else "cpu"

runs = pytest.mark.skipif(not CUDA and not INTERPRETED, reason="no GPU; test_in_the_interpreter runs this")
on_gpu = pytest.mark.skipif(not CUDA or INTERPRETED, reason="no GPU")
# NumPy's word for what the hardware does in silence: 3e38 times alpha is infinite, and is then not selected
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


@pytest.fixture
def triton_kernel(monkeypatch):
    """The module under test; in the interpreter it also takes the C kernel's place on CPU tensors."""
    from rctaf import _triton

    if INTERPRETED:
        monkeypatch.setattr(_kernels, "_kernel_for", lambda x: _triton)
    return _triton


@pytest.mark.skipif(CUDA or INTERPRETED, reason="runs as it is")
def test_in_the_interpreter(passes_alone):
    passes_alone(__file__, TRITON_INTERPRET="1")


def _points(alpha: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = [torch.randn(500, generator=generator) * s / alpha for s in (1e-3, 0.1, 1, 5, 20, 60)]
    return torch.cat([*spread, torch.tensor([0.0, 1e4, -1e4, 1e-30, -1e-30, 3e38, -3e38])])


@runs
@pytest.mark.parametrize("alpha", [0.01, 14.0, 200.0])
@pytest.mark.parametrize("beta", range(6))
def test_agrees_with_double_precision(alpha, beta, triton_kernel):
    x = _points(alpha)
    for n in range(4):
        truth = _kernels.derivative(x.double(), alpha, beta, n)
        got = triton_kernel.derivative((Summand(x.to(DEVICE)),), alpha, beta, n).cpu().double()
        # The bound of the C kernel, whose formula this is: u eps of exp, times the terms of both signs that order 5
        # adds up before they cancel
        scale = truth.abs() + truth[x.abs() < 1e30].abs().max() if n else truth.abs() + 1 / alpha
        assert ((got - truth).abs() / scale).max() < 5e-6, n


@runs
@pytest.mark.parametrize(("beta", "last"), [(2, 19), (7, 13), (12, 7)])
def test_where_coefficients_outgrow_64_bits_the_plain_formula_serves(beta, last, triton_kernel):
    x = torch.linspace(-3, 3, 40).to(DEVICE)
    assert triton_kernel.derivative((Summand(x),), 1.0, beta, last) is not None
    assert triton_kernel.derivative((Summand(x),), 1.0, beta, last + 1) is None
    truth = _kernels.derivative(x.double().cpu(), 1.0, beta, last + 1)
    got = _kernels.derivative(x, 1.0, beta, last + 1).double().cpu()
    # terms of both signs cancel by all but three digits in single precision
    torch.testing.assert_close(got, truth, rtol=0, atol=2e-3 * float(truth.abs().max()))


@runs
@pytest.mark.parametrize("beta", range(3))
@pytest.mark.parametrize("n", range(3))
def test_small_tails_keep_their_relative_precision(beta, n, triton_kernel):
    x = torch.tensor([-60.0, -40.0, -20.0, -17.0]) / 7
    truth = _kernels.derivative(x.double(), 7.0, beta, n)
    got = triton_kernel.derivative((Summand(x.to(DEVICE)),), 7.0, beta, n).cpu().double()
    # rounding alpha x and the argument of exp2 moves e^-u by u eps each, u <= 60; 4 roundings besides
    assert ((got - truth) / truth).abs().max() < (2 * 60 + 4) * torch.finfo(torch.float32).eps


@runs
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("beta", range(3))
def test_half_precision_is_rounded_once(dtype, beta, triton_kernel):
    x = torch.linspace(-8, 8, 1001).to(dtype)
    for n in range(3):
        got = triton_kernel.derivative((Summand(x.to(DEVICE)),), 14.0, beta, n).cpu()
        assert got.dtype == dtype
        truth = _kernels.derivative(x.double(), 14.0, beta, n)
        # Half a unit in the last place, 1 % for single precision before it, the spacing of numbers near 0; beyond
        # u = 87 the kernel takes e^-u for 0 (u^beta alpha times that in the second derivative). The interpreter
        # cuts bfloat16 off instead of rounding; that GPUs round is tested on the compiled kernel below.
        unit = 1.0 if INTERPRETED and dtype == torch.bfloat16 else 0.505
        near_0 = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps + 14 * 100**beta * math.exp(-87)
        allowed = unit * torch.finfo(dtype).eps * truth.abs() + near_0
        assert ((got.double() - truth).abs() <= allowed).all(), n


@runs
@pytest.mark.parametrize("beta", range(3))
def test_gradients_of_a_training_pass(beta, triton_kernel):
    x = torch.randn(4, 3, 5, 7, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))  # another memory order than x
    leaf = x.to(DEVICE).requires_grad_()
    y = rctaf(leaf, 14.0, beta)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (once,) = torch.autograd.grad(y, leaf, weight.to(DEVICE))
    (again,) = torch.autograd.grad(rctaf(leaf, 14.0, beta), leaf, weight.to(DEVICE), create_graph=True)
    (twice,) = torch.autograd.grad(again.sum(), leaf)
    slope, bend = (_kernels.derivative(x.double(), 14.0, beta, n) for n in (1, 2))
    for got, truth in ((once, weight * slope), (again.detach(), weight * slope), (twice, weight * bend)):
        torch.testing.assert_close(got.cpu().double(), truth, rtol=1e-5, atol=2e-5)  # single precision; bend up to 14


@runs
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_of_batch_norms_is_computed_again(memory_format, dtype, triton_kernel):
    generator = torch.Generator().manual_seed(3)
    x, other, grad = (torch.randn(4, 5, 6, 7, generator=generator).to(dtype) for _ in range(3))
    scale, shift = torch.rand(2, 5, generator=generator) + 0.5
    x = x.to(memory_format=memory_format)
    a, b = (Summand(t.to(DEVICE), scale.to(DEVICE), shift.to(DEVICE)) for t in (x, other))
    for terms in ((a,), (a, Summand(b.x)), (Summand(a.x), b), (a, b)):
        values = [_kernels.value(term).cpu() for term in terms]
        total = values[0] if len(values) == 1 else values[0] + values[1]
        truth = _kernels.derivative(total.double(), 14.0, 2, 1) * grad.double()
        got = triton_kernel.derivative(terms, 14.0, 2, 1, grad.to(DEVICE))
        assert got.is_contiguous(memory_format=memory_format)
        # The result and what it is computed from, each perhaps rounded to its other neighbour (the interpreter cuts
        # bfloat16 off); what the bend makes of that, and of the change of the bend meanwhile.
        unit = torch.finfo(dtype).eps
        off = unit * (sum(value.abs() for value in values) + total.abs()).double()
        bend, change = (_kernels.derivative(total.double(), 14.0, 2, n).abs() for n in (2, 3))
        allowed = unit * truth.abs() + (bend * off + change * off**2) * grad.abs() + 1e-5
        assert ((got.cpu().double() - truth).abs() <= allowed).all()


@runs
def test_gaps_kinds_and_nothing(triton_kernel):
    x = torch.randn(6, 8, device=DEVICE)
    got = triton_kernel.derivative((Summand(x[:, ::2]),), 2.0, 1, 0)
    torch.testing.assert_close(got, x[:, ::2] * torch.sigmoid(2 * x[:, ::2]))
    assert triton_kernel.derivative((Summand(x.double()),), 2.0, 1, 0) is None
    assert triton_kernel.derivative((Summand(x[:0]),), 2.0, 1, 0).shape == (0, 8)
    nan = torch.full((3,), float("nan"), device=DEVICE)
    for beta in range(3):
        for n in range(3):
            assert triton_kernel.derivative((Summand(nan),), 1.0, beta, n).isnan().all()
    assert triton_kernel.softplus_backward(nan, 1.0, nan).isnan().all()


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("beta", range(3))
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_compiles_for_gpus_with_alpha_as_an_argument(beta, dtype, tmp_path, monkeypatch):
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rctaf import _triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    absent = ("scale_at", "shift_at", "other_at", "other_scale_at", "other_shift_at")
    constants = {**dict.fromkeys(absent), "ROWS": polynomials(beta, 1), "BETA": beta, "N": 1, "BLOCK": 1024}
    pointers = dict.fromkeys(("x_at", "grad_at", "out_at"), f"*{dtype}")
    numbers = {"channels": "i32", "inner": "i32", "size": "i32", "alpha": "fp32", "scale": "fp32"}
    types = {**pointers, **numbers, **dict.fromkeys(constants, "constexpr")}
    for capability in (75, 90):  # the paper's 2080 Ti, and an H100
        source = ASTSource(fn=_triton._derivative, signature=types, constexprs=constants)
        made = compile(source, target=GPUTarget("cuda", capability, 32))
        assert made.asm["cubin"]
        assert made.asm["ptx"].split(")")[0].count(".param .f32") == 2  # alpha and scale
        if dtype == "bf16" and capability == 90:  # older GPUs round in several instructions
            assert "cvt.rn.bf16" in made.asm["ptx"]
        assert ".local" not in made.asm["ptx"]  # nothing spills from registers to memory


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_a_new_alpha_compiles_nothing(tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import MockTensor

    from rctaf import _triton

    class Absent:
        """As much of a GPU as a compilation asks for."""

        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if not CUDA:
        monkeypatch.setattr(driver, "_active", Absent())  # set_active would have to be undone by a GPU's driver
    pointer, kernel = MockTensor(torch.float32), _triton._derivative
    compiled = []
    for alpha in (1.0, 7.0, 0.01):
        for beta, n in ((0, 0), (2, 1)):
            rows, scale = polynomials(beta, n), alpha ** (n - 1)
            made = kernel.warmup(
                pointer, *[None] * 5, 1, 1, None, pointer, 1 << 20, alpha, scale, rows, beta, n, 1024, grid=(1024,)
            )
            assert made.asm["ptx"].count("ld.global.v4") == 2  # 16 bytes at a time, 8 elements per thread
        compiled.append(len(kernel.device_caches[driver.active.get_current_device()][0]))
    assert len(set(compiled)) == 1


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_where_the_kernel_fails_the_plain_formula_serves(monkeypatch):
    load = _kernels._triton_on.__wrapped__  # without the memory of earlier calls
    with pytest.warns(UserWarning, match="its Triton kernel failed"):
        assert load(torch.device("cpu")) is None  # Triton cannot run there, as on an old GPU
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert load(torch.device("cpu")) is None  # not installed: nothing to say


# --- what only a GPU can show ----------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("beta", range(3))
def test_the_gpu_is_served_and_one_tensor_is_saved(beta):
    assert _kernels.fused_by("cuda") == "Triton"
    x = torch.randn(1 << 20, device="cuda", requires_grad=True)
    activation = RCTAF(7.0, beta)
    activation(x).sum().backward()  # compiled now
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = activation(x)
    assert torch.cuda.memory_allocated() - before == x.nbytes  # the output and nothing else: x is the caller's
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.cuda.max_memory_allocated() - before == 3 * x.nbytes  # output, incoming and outgoing gradient
    assert gradient.shape == x.shape


@on_gpu
@pytest.mark.parametrize("beta", range(3))
def test_double_precision_takes_the_plain_formula_on_the_gpu(beta):
    x = torch.linspace(-3, 3, 101, dtype=torch.float64, device="cuda", requires_grad=True)
    torch.testing.assert_close(rctaf(x, 3.0, beta).cpu(), rctaf(x.cpu(), 3.0, beta))
    assert torch.autograd.gradcheck(lambda z: rctaf(z, 3.0, beta), x)
