"""The C kernel against the plain formula in double precision; skipped where there is no compiler."""

import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch

from rctaf import _kernels, _native, rctaf
from rctaf._native import Summand

pytestmark = pytest.mark.skipif(_native._library() is None, reason="no C compiler on this machine")


def _derivative(x: torch.Tensor, *settings) -> torch.Tensor | None:
    return _native.derivative((Summand(x),), *settings)


def _points(alpha: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = [torch.randn(500, generator=generator) * s / alpha for s in (1e-3, 0.1, 1, 5, 20, 60)]
    return torch.cat([*spread, torch.tensor([0.0, 1e4, -1e4, 1e-30, -1e-30])])


@pytest.mark.parametrize("alpha", [0.01, 1.0, 14.0, 200.0])
@pytest.mark.parametrize("beta", range(6))
@pytest.mark.parametrize("n", range(4))
def test_agrees_with_double_precision(alpha: float, beta: int, n: int) -> None:
    x = _points(alpha)
    truth = _kernels.derivative(x.double(), alpha, beta, n)
    got = _derivative(x, alpha, beta, n)
    assert got is not None
    # 1e-7 of exp, times the terms of both signs that order 5 adds up before they cancel (largest seen: 2.9e-6)
    scale = truth.abs() + truth.abs().max() if n else truth.abs() + 1 / alpha
    assert ((got.double() - truth).abs() / scale).max() < 5e-6


def test_grad_is_multiplied_in_the_same_pass() -> None:
    x, grad = _points(3.0), _points(1.0)
    slope = _derivative(x, 3.0, 2, 1)
    assert slope is not None
    got = _derivative(x, 3.0, 2, 1, grad)
    assert got is not None
    assert torch.equal(got, grad * slope)


@pytest.mark.parametrize("beta", range(3))
def test_training_pass_equals_the_plain_formula(beta: int) -> None:
    x = torch.randn(4, 3, 5, 7, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))  # another memory order than x
    grads = []
    for library in (_native._library, lambda: None):
        with mock.patch.object(_native, "_library", library):
            leaf = x.clone().requires_grad_()
            y = rctaf(leaf, 14.0, beta)
            assert y.is_contiguous(memory_format=torch.channels_last)
            (y * weight).sum().backward()
            grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)  # both round in single precision


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_with_gaps_and_other_kinds() -> None:
    x = torch.randn(6, 8)
    got = _derivative(x[:, ::2], 2.0, 1, 0)
    assert got is not None
    torch.testing.assert_close(got, x[:, ::2] * torch.sigmoid(2 * x[:, ::2]))
    assert _derivative(x.double(), 2.0, 1, 0) is None
    assert _derivative(x.half(), 2.0, 1, 0) is None
    assert _derivative(x, 2.0, 1, 0, x.bfloat16()) is None
    nested = torch.nested.nested_tensor([x, x[:2]])
    for odd in (x.to_sparse(), nested, torch._neg_view(x)):
        assert _derivative(odd, 2.0, 1, 0) is None
        assert _derivative(x, 2.0, 1, 0, odd) is None


@pytest.mark.parametrize("beta", range(3))
@pytest.mark.parametrize("n", range(3))
def test_bfloat16_is_single_precision_rounded_once(beta: int, n: int) -> None:
    special = torch.tensor([float("inf"), -float("inf"), 3e38, -3e38, 1e-40])  # also blocks that do not fill up
    x = torch.cat([_points(3.0), special]).bfloat16()
    grad = torch.randn(len(x), generator=torch.Generator().manual_seed(3)).bfloat16()
    for extra in ((), (grad,)):
        got = _derivative(x, 3.0, beta, n, *extra)
        wide = _derivative(x.float(), 3.0, beta, n, *(g.float() for g in extra))
        assert got is not None
        assert wide is not None
        assert got.dtype == torch.bfloat16
        assert torch.equal(got.view(torch.int16)[~got.isnan()], wide.bfloat16().view(torch.int16)[~got.isnan()])
        assert torch.equal(got.isnan(), wide.isnan())


def test_bfloat16_backward_of_order_0_from_its_output() -> None:
    y, grad = (_points(2.0).abs().bfloat16(), _points(1.0).bfloat16())
    got = _native.softplus_backward(y, 2.0, grad)
    wide = _native.softplus_backward(y.float(), 2.0, grad.float())
    assert got is not None
    assert wide is not None
    assert torch.equal(got, wide.bfloat16())


@pytest.mark.parametrize("beta", range(3))
@pytest.mark.parametrize("n", range(3))
def test_nan_stays_nan(beta: int, n: int) -> None:
    got = _derivative(torch.tensor([float("nan")]), 1.0, beta, n)
    assert got is not None
    assert bool(got.isnan().all())


@pytest.fixture
def search_again():
    """As in a new process."""
    _native._library.cache_clear()
    yield
    _native._library.cache_clear()


def test_without_a_compiler_everything_works(search_again) -> None:
    with mock.patch.dict("os.environ", CC="no-such-compiler"):
        assert _native._library() is None
        assert rctaf(torch.ones(1), 1.0, 2).item() == pytest.approx(0.9276705, rel=1e-6)  # s + q, s = 1/(1+1/e)


def test_without_a_home_the_kernel_is_kept_among_temporary_files(search_again, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_native.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"rctaf-{os.getuid()}"
    for home in ("", "/proc/nobody/can/write/here"):
        with (
            mock.patch.dict("os.environ", XDG_CACHE_HOME=home),
            mock.patch.object(Path, "home", side_effect=RuntimeError),
        ):
            _native._library.cache_clear()
            assert _native._library() is not None
        assert len(list(folder.glob("*.so"))) == 1
    folder.chmod(0o777)  # anybody could have put code there
    with mock.patch.dict("os.environ", XDG_CACHE_HOME=""), mock.patch.object(Path, "home", side_effect=RuntimeError):
        _native._library.cache_clear()
        assert _native._library() is None
        assert rctaf(torch.ones(1), 1.0, 2).item() == pytest.approx(0.9276705, rel=1e-6)


def test_the_compiler_is_the_usual_one_or_comes_with_words(search_again, tmp_path, monkeypatch) -> None:
    """As in the Makefiles of others: an empty CC is none, and "ccache gcc" two words, of which both matter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for words, made in (("", 1), ("env cc", 2), ("env cc -DNOTHING", 3)):
        monkeypatch.setenv("CC", words)
        _native._library.cache_clear()
        assert _native._library() is not None
        assert len(list((tmp_path / "rctaf").glob("*.so"))) == made


def test_another_version_of_the_compiler_compiles_again(search_again, tmp_path, monkeypatch) -> None:
    """The bits depend on it."""
    compiler = tmp_path / "compiler"
    real = shutil.which(os.environ.get("CC", "cc"))
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for version, made in (("1", 1), ("2", 2), ("1", 2)):
        compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo {version} || exec {real} "$@"\n')
        compiler.chmod(0o755)
        _native._library.cache_clear()
        assert _native._library() is not None
        assert len(list((tmp_path / "rctaf").glob("*.so"))) == made
