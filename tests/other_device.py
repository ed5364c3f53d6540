"""A device on any machine that PyTorch keeps apart from the CPU as it does a GPU, though its memory is the CPU's.

An operation on tensors of both is refused, and what would make a program wait for a GPU is noted in ``waits``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing

NAME = "other"
waits: list[str] = []

aten: Any = torch.ops.aten
_COPIES = {aten.copy_.default, aten._to_copy.default}
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# results in Python, or of a size that only their values tell
_WAITING = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default}


class _Generator(torch.Generator):
    """The CPU's numbers, as a generator of the other device."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        return super().__new__(cls if torch.device(device).type == NAME else torch._C.Generator, "cpu")

    device = property(lambda self: torch.device(NAME, 0))


class _There(Tensor):
    """A tensor of the other device; ``here`` is its memory."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "_There":
        there = Tensor._make_wrapper_subclass(
            cls, here.size(), here.stride(), here.storage_offset(), dtype=here.dtype, device=torch.device(NAME, 0)
        )  # fmt: skip
        there.here = here
        return there

    def tolist(self) -> Any:  # PyTorch has none for subclasses
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Device(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def _call(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [t for t in _pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there, here = ([t for t in tensors if isinstance(t, _There) is side] for side in (True, False))
    device = kwargs.get("device")
    if func is aten.copy_.default:
        result_there = isinstance(args[0], _There)
    else:
        result_there = bool(there) if device is None else torch.device(device).type == NAME
    if func in _COPIES:
        source = args[1] if func is aten.copy_.default else args[0]
        if isinstance(source, _There) != result_there and not (result_there and kwargs.get("non_blocking")):
            waits.append(f"a copy to {NAME if result_there else 'the CPU'}")
    elif there:
        apart = [t for t in here if t.ndim]  # numbers may come from the CPU
        if apart and not (func in _INDEXING and all(t.dtype == torch.long for t in apart)):  # and so may indices
            raise RuntimeError(f"{func}: {len(there)} tensors of the other device, {len(apart)} of the CPU")
        masks = [t for t in there[1:] if t.dtype == torch.bool] if func in _INDEXING else []
        if func in _WAITING or apart or masks:
            waits.append(str(func))
    # what forward mode calls zero without any memory would have some here, and is not looked at
    inner = aten.zeros.default if func is aten._efficientzerotensor.default else func
    unwrapped, options = _pytree.tree_map_only(_There, lambda t: t.here, (args, kwargs))
    with _disable_current_modes():
        result = inner(*unwrapped, **options | ({} if device is None else {"device": torch.device("cpu")}))
    if not result_there:
        return result
    result = _pytree.tree_map_only(Tensor, _There, result)
    return result if inner is aten.zeros.default else return_and_correct_aliasing(func, args, kwargs, result)


@contextmanager
def present() -> Iterator[None]:
    """The device is there inside. Errors reach the caller: nothing is differentiated in another thread."""
    generator, torch.Generator = torch.Generator, _Generator  # type: ignore[misc]
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # in place, a tensor would keep its old memory
    try:
        with torch.autograd.set_multithreading_enabled(False), _Device():
            yield
    finally:
        torch.Generator = generator  # type: ignore[misc]
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def register() -> torch.library.Library:
    """Tell PyTorch of the device, for as long as the process lives: so in one of its own. Keep what is returned."""

    class Backend(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
    library = torch.library.Library("_", "IMPL")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # bf16 is asked for and not given
    return library
