"""The data sets as tensors that live on the device.

Digits come with scikit-learn. Fashion-MNIST is read from its four idx files and CIFAR-10/100
through torchvision; both are downloaded, md5-checked by torchvision, where they are missing.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import importlib
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rctaf._startup import command
from rctaf.names import DATASETS

_SYSTEM_FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
_IDX = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


@dataclass(frozen=True)
class Dataset:
    """A data set on one device.

    Attributes:
        name: as given to :func:`load`.
        train_x, test_x: images [N, C, H, W]; uint8 in 0..255, or float32 in [0, 1] (digits).
        train_y, test_y: labels [N], int64.
        n_classes: number of classes.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    n_classes: int

    @property
    def channels(self) -> int:
        return self.train_x.shape[1]


def to_float(x: Tensor) -> Tensor:
    """Images as float32 in [0, 1]: uint8 is divided by 255, floats are taken as they are."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def load(
    name: str,
    n_train: int | None = None,
    device: str | torch.device = "cpu",
    root: str | Path | None = None,
) -> Dataset:
    """Load a data set onto a device.

    Args:
        name: ``digits``, ``fashion_mnist``, ``cifar10`` or ``cifar100``.
        n_train: keep the first n training images of a fixed shuffle; None keeps all.
        device: where the tensors live from here on.
        root: folder that holds the files; None looks in ``$RCTAF_DATA`` if that is set, else in
            ``data/`` beside the package, and for Fashion-MNIST also in ``/usr/share/datasets``.

    Raises:
        ValueError: an unknown name, or more images asked for than there are.
        RuntimeError: a file is missing or damaged; the message says which and how to get it.
    """
    if name == "digits":
        arrays = _digits()
    elif name == "fashion_mnist":
        arrays = _fashion_mnist(root)
    elif name in ("cifar10", "cifar100"):
        arrays = _cifar(name, root)
    else:
        raise ValueError(f"data set must be digits, fashion_mnist, cifar10 or cifar100, got {name!r}")
    train_x, train_y, test_x, test_y = arrays
    if n_train is not None:
        if not 1 <= n_train <= len(train_x):
            raise ValueError(f"n_train must be between 1 and {len(train_x)} for {name}, got {n_train}")
        first = np.random.default_rng(0).permutation(len(train_x))[:n_train]
        train_x, train_y = train_x[first], train_y[first]
    images = [torch.from_numpy(np.array(x, order="C")).to(device) for x in (train_x, test_x)]
    labels = [torch.from_numpy(np.asarray(y, dtype=np.int64)).to(device) for y in (train_y, test_y)]
    return Dataset(name, images[0], labels[0], images[1], labels[1], n_classes=100 if name == "cifar100" else 10)


def _digits() -> tuple[np.ndarray, ...]:
    """1,297 training and 500 test images, 1x8x8, values 0..16 scaled to [0, 1]; stratified, always the same."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(x, labels, test_size=500, stratify=labels, random_state=0)
    return train_x, train_y, test_x, test_y


def _home(root: str | Path | None) -> Path:
    """The folder for data files: the argument, else ``$RCTAF_DATA``, else ``data/`` beside the package."""
    beside = Path(__file__).resolve().parent.parent
    return Path(root or beside / (os.environ.get("RCTAF_DATA") or "data"))  # relative to that, wherever a run starts


def _fashion_mnist(root: str | Path | None) -> tuple[np.ndarray, ...]:
    home = _home(root)
    raw = home / "FashionMNIST" / "raw"  # where torchvision puts what it downloads
    places = [home, home / "fashion-mnist", raw] + ([_SYSTEM_FASHION] if root is None else [])
    names = [name for pair in _IDX.values() for name in pair]

    def folder() -> Path | None:
        return next((place for place in places if all((place / name).exists() for name in names)), None)

    found = folder()
    if found is None:
        datasets = import_torchvision("datasets")
        remedy = "Put the four there, or set RCTAF_DATA to the folder that has them"
        with _downloading("Fashion-MNIST", places, "the four idx .gz files", home, remedy):
            datasets.FashionMNIST(str(home), download=True)
            found = folder()
            if found is None:  # torchvision had the unpacked files and saw no need to fetch the packed ones
                raise RuntimeError(f"{raw} holds only a part of the four .gz files")
    parts = []
    for pair in _IDX.values():
        x, y = (_read_idx(found / name) for name in pair)
        if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
            files = " and ".join(str(found / name) for name in pair)  # never the folder, which may hold other data
            raise RuntimeError(f"{files}: {x.shape} and {y.shape} do not belong together; {_remedy(files)}")
        parts += [x, y]
    return parts[0][:, None], parts[1], parts[2][:, None], parts[3]


def _read_idx(path: Path) -> np.ndarray:
    """An idx .gz file: two zero bytes, type 8 (unsigned byte), rank, big-endian sizes, then the values."""
    try:
        with gzip.open(path) as handle:
            content = handle.read()
        rank = content[3]
        shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
        if content[:3] != b"\0\0\x08":
            raise ValueError(f"it begins with {content[:4].hex()}, an idx file of bytes begins with 000008")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise RuntimeError(f"{path} is damaged ({error}); {_remedy(path)}") from None


def _remedy(files: Path | str) -> str:
    return f"delete {files} and load again, which downloads what is missing, or install Debian's dataset-fashion-mnist"


def _cifar(name: str, root: str | Path | None) -> tuple[np.ndarray, ...]:
    home = _home(root)
    kind = getattr(import_torchvision("datasets"), name.upper())
    folder = home / kind.base_folder
    try:  # the folder may be one that nobody can write to
        halves = [kind(str(home), train=train) for train in (True, False)]
    except (OSError, RuntimeError, EOFError):
        remedy = f"Download {kind.filename} from the CIFAR page and unpack it in {home}; that makes {folder}"
        with _downloading(name.upper(), [folder], f"the unpacked {kind.filename}", home, remedy):
            halves = [kind(str(home), train=train, download=train) for train in (True, False)]
    arrays = []
    for half in halves:
        arrays += [half.data.transpose(0, 3, 1, 2), np.array(half.targets)]
    return tuple(arrays)


@contextmanager
def _downloading(what: str, places: list[Path], needed: str, home: Path, remedy: str) -> Iterator[None]:
    """One process downloads at a time; whatever goes wrong becomes one line that says what to do."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with open(home / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except (OSError, RuntimeError, EOFError) as error:
        looked = ", ".join(str(place) for place in places)
        raise RuntimeError(
            f"{what}: {needed} not found intact in {looked}, and downloading failed "
            f"({' '.join(str(error).split())}). {remedy}."
        ) from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rctaf.data", description="Fetch a data set, where it is missing.")
    parser.add_argument("name", choices=tuple(DATASETS))
    name = parser.parse_args(argv).name
    try:
        found = load(name)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{name}: {len(found.train_x):,} training and {len(found.test_x):,} test images")
    return 0


_guard: Any = None  # keeps the operator definitions below alive


def import_torchvision(module: str) -> ModuleType:
    """Import ``torchvision.<module>``; the only place of this project that imports torchvision.

    The torchvision wheel of the package index is built for CUDA: beside a CPU build of torch its
    compiled operators are absent and the plain import raises. Only then two operator *definitions*
    are registered by hand, which is all that data sets and transforms need.

    Raises:
        RuntimeError: torchvision is not installed.
    """
    global _guard

    name = f"torchvision.{module}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise RuntimeError("this data set needs torchvision: pip install torchvision") from None
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for half_imported in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[half_imported]
    _guard = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _guard.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module(name)


if __name__ == "__main__":
    command(main)
