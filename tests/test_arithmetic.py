"""How an experiment computes, and that the caller's own settings and random numbers return."""

import random

import numpy as np
import pytest
import torch

from rctaf.arithmetic import random_numbers_kept, repeatable


def settings():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    flushed = (torch.tensor(1e-39) * 1).item() == 0
    return cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark, flushed


@pytest.mark.parametrize("flush", [True, False])
def test_settings_hold_inside_and_return_after_an_error(flush):
    torch.set_flush_denormal(flush)
    try:
        before = settings()
        inside = []

        def fails():
            with repeatable():
                inside.extend(settings())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fails()
        assert inside == [False, False, True, False, True]
        assert settings() == before
        assert before[-1] == flush
    finally:
        torch.set_flush_denormal(True)  # as conftest.py has it


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this PyTorch has one way only")
def test_a_caller_may_use_the_newer_way_to_say_tf32():
    parts = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [part.fp32_precision for part in parts]
    try:
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with pytest.raises(RuntimeError, match="legacy"):
            _ = torch.backends.cudnn.allow_tf32
        with repeatable():
            assert [part.fp32_precision for part in parts] == ["ieee", "ieee"]
        assert [part.fp32_precision for part in parts] == ["ieee", "tf32"]
    finally:
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value


@repeatable()
def tenth_of_a_denormal():
    return (torch.tensor(1e-39) / 10).item()


def test_as_a_decorator_it_holds_for_every_call():
    torch.set_flush_denormal(False)
    try:
        assert [tenth_of_a_denormal(), tenth_of_a_denormal()] == [0, 0]
        assert (torch.tensor(1e-39) / 10).item() > 0
    finally:
        torch.set_flush_denormal(True)


@repeatable()
def slope_of_a_square():
    x = torch.ones((), requires_grad=True)
    return torch.autograd.grad(x * x, x)[0].item()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_inside_one_can_differentiate_whatever_the_caller_has_switched_off(mode):
    with mode():
        before = torch.is_inference_mode_enabled()
        assert slope_of_a_square() == 2
        assert torch.is_inference_mode_enabled() == before
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("draw", [random.random, np.random.random, lambda: torch.rand(()).item()])
def test_whoever_draws_random_numbers_is_told_of_and_leaves_no_trace(draw):
    with random_numbers_kept() as drawn:
        assert not drawn()
        inside = draw()
        assert drawn()
    assert draw() == inside
