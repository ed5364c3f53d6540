"""Loading is tested on files of the real formats; augmentation against its definition, image by image."""

import fcntl
import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from rctaf import data
from rctaf.augmentation import augment
from rctaf.data import load, to_float

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def fashion(tmp_path):
    rng = np.random.default_rng(1)
    arrays = {}
    for split, n in (("train", 30), ("t10k", 12)):
        arrays[split] = rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8)
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", arrays[split][0])
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", arrays[split][1])
    return tmp_path, arrays


@pytest.fixture
def offline(monkeypatch):
    """Downloads go to a closed port of this machine and fail at once."""
    datasets = data.import_torchvision("datasets")
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    for kind in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(kind, "url", "http://127.0.0.1:9/")
    return datasets


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, tmp_path, offline, monkeypatch):
    """Batches pickled as the originals are, with their md5 sums where torchvision looks for them."""
    kind = offline.CIFAR10 if request.param == "cifar10" else offline.CIFAR100
    n_classes = 10 if request.param == "cifar10" else 100
    label = "labels" if n_classes == 10 else "fine_labels"
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    rng = np.random.default_rng(2)
    images, labels = [], []

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    lists = {"train_list": [], "test_list": []}
    for which, files in lists.items():
        for name, _ in getattr(kind, which):
            images.append(rng.integers(0, 256, (7, 3072), np.uint8))
            labels.append(rng.integers(0, n_classes, 7).tolist())
            files.append([name, write(name, {"data": images[-1], label: labels[-1]})])
        monkeypatch.setattr(kind, which, files)
    meta = dict(kind.meta, md5=write(kind.meta["filename"], {kind.meta["key"]: ["x"] * n_classes}))
    monkeypatch.setattr(kind, "meta", meta)
    return request.param, tmp_path, folder, images, labels


def test_digits_are_the_fixed_stratified_split():
    d = load("digits")
    assert d.train_x.shape == (1297, 1, 8, 8)
    assert d.test_x.shape == (500, 1, 8, 8)
    assert d.train_x.dtype == torch.float32
    assert d.train_y.dtype == torch.int64
    assert (d.n_classes, d.channels) == (10, 1)
    assert d.train_x.min() == 0
    assert d.train_x.max() == 1
    # stratified: each class has its share of the test set to within one image
    share = torch.bincount(torch.cat([d.train_y, d.test_y])) * 500 / 1797
    assert (torch.bincount(d.test_y) - share).abs().max() <= 1
    # always the same split: the sum is an integer number of sixteenths, so it is exact
    again = load("digits")
    assert torch.equal(d.train_x, again.train_x)
    from sklearn.datasets import load_digits

    everything = load_digits().data.sum() / 16
    assert d.train_x.double().sum() + d.test_x.double().sum() == everything
    # which image is where, that is what the committed records hang on
    for x, y, digest in ((d.train_x, d.train_y, "9b7512d6eae5b603"), (d.test_x, d.test_y, "79c09b92f3b6eca6")):
        content = (16 * x).byte().numpy().tobytes() + y.byte().numpy().tobytes()
        assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_n_train_takes_the_first_images_of_a_fixed_shuffle_and_leaves_the_test_images_alone():
    whole, small, smaller = load("digits"), load("digits", 200), load("digits", 100)
    assert torch.equal(small.train_x[:100], smaller.train_x)
    assert torch.equal(small.test_x, whole.test_x)
    first = np.random.default_rng(0).permutation(1297)[:200]
    assert torch.equal(small.train_x, whole.train_x[first])
    assert torch.equal(small.train_y, whole.train_y[first])
    assert torch.equal(small.test_y, whole.test_y)
    assert len(load("digits", 1297).train_y) == 1297
    for wrong in (0, 1298):
        with pytest.raises(ValueError, match=f"n_train must be between 1 and 1297 for digits, got {wrong}"):
            load("digits", wrong)


def test_unknown_data_set():
    with pytest.raises(ValueError, match="got 'mnist'"):
        load("mnist")


def test_fashion_files_are_read_as_written(fashion):
    root, arrays = fashion
    d = load("fashion_mnist", root=root)
    assert d.train_x.dtype == torch.uint8
    assert np.array_equal(d.train_x.numpy()[:, 0], arrays["train"][0])
    assert np.array_equal(d.train_y.numpy(), arrays["train"][1])
    assert np.array_equal(d.test_x.numpy()[:, 0], arrays["t10k"][0])
    assert np.array_equal(d.test_y.numpy(), arrays["t10k"][1])


@pytest.mark.parametrize("place", ["fashion-mnist", "FashionMNIST/raw"])
def test_fashion_is_found_through_the_environment(fashion, monkeypatch, tmp_path_factory, place):
    root, _ = fashion
    home = tmp_path_factory.mktemp("home")
    (home / place).parent.mkdir(exist_ok=True)
    (home / place).symlink_to(root)
    monkeypatch.setenv("RCTAF_DATA", str(home))
    assert len(load("fashion_mnist").train_x) == 30


def test_damaged_fashion_file_is_named(fashion):
    root, arrays = fashion
    path = root / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for broken in (
        whole[:-40],
        whole[:60] + b"\0\0\0\0" + whole[64:],
        b"",
        b"not gzip",
        gzip.compress(b"\0\0\x0d\3abc"),
        gzip.compress(b"\0\0\x09" + gzip.decompress(whole)[3:]),  # as many bytes, but signed
    ):
        path.write_bytes(broken)
        with pytest.raises(RuntimeError, match=rf"{path} is damaged .*delete .* and load again"):
            load("fashion_mnist", root=root)
    path.write_bytes(whole)
    write_idx(root / "t10k-labels-idx1-ubyte.gz", arrays["t10k"][1][:-1])
    pair = rf"{path} and {root}/t10k-labels-idx1-ubyte\.gz"  # not the folder, where there may be other data
    with pytest.raises(RuntimeError, match=rf"^{pair}: .* do not belong together; delete {pair} and load"):
        load("fashion_mnist", root=root)


def test_missing_fashion_says_where_it_was_looked_for(tmp_path, offline):
    with pytest.raises(RuntimeError, match=rf"Fashion-MNIST.*{tmp_path}.*RCTAF_DATA"):
        load("fashion_mnist", root=tmp_path)


def test_a_download_is_alone_and_must_bring_all_four_files(tmp_path, offline, monkeypatch):
    def download(root, download):
        with open(tmp_path / ".lock", "w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(offline, "FashionMNIST", download)
    with pytest.raises(RuntimeError, match=r"raw holds only a part of the four \.gz files\)\. Put the four"):
        load("fashion_mnist", root=tmp_path)


def test_the_folder_of_data_is_the_same_wherever_a_run_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = Path(data.__file__).resolve().parent.parent
    for given, folder in (("", beside / "data"), ("other", beside / "other"), ("/a", Path("/a"))):
        monkeypatch.setenv("RCTAF_DATA", given)
        assert data._home(None) == folder
        assert data._home("b") == Path("b")  # an argument is the caller's own


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist():
    d = load("fashion_mnist", root=DEBIAN)
    assert d.train_x.shape == (60000, 1, 28, 28)
    assert d.test_x.shape == (10000, 1, 28, 28)
    assert torch.equal(torch.bincount(d.train_y), torch.full((10,), 6000))
    # the data set's published mean and deviation of the training pixels
    pixels = to_float(d.train_x).double()
    assert pixels.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3530, abs=5e-5)


def test_cifar_batches_are_read_as_written(cifar):
    name, root, _, images, labels = cifar
    d = load(name, root=root)
    assert d.n_classes == int(name[5:])
    assert d.train_x.dtype == torch.uint8
    assert np.array_equal(d.train_x.numpy(), np.concatenate(images[:-1]).reshape(-1, 3, 32, 32))
    assert np.array_equal(d.test_x.numpy(), images[-1].reshape(-1, 3, 32, 32))
    assert d.train_y.tolist() == [y for batch in labels[:-1] for y in batch]
    assert d.test_y.tolist() == labels[-1]


def test_damaged_cifar_batch_is_refused(cifar):
    name, root, folder, *_ = cifar
    path = folder / ("test_batch" if name == "cifar10" else "test")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(RuntimeError, match=rf"{name.upper()}: .*not found intact in {folder}") as caught:
        load(name, root=root)
    archive = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[name]
    remedy = f"Download {archive} from the CIFAR page and unpack it in {root}; that makes {folder}."
    assert str(caught.value).endswith(remedy)


def test_a_data_set_is_fetched_from_the_command_line(fashion, monkeypatch, capsys, offline, tmp_path_factory):
    root, _ = fashion
    monkeypatch.setenv("RCTAF_DATA", str(root))
    assert data.main(["fashion_mnist"]) == 0
    assert capsys.readouterr().out == "fashion_mnist: 30 training and 12 test images\n"
    monkeypatch.setenv("RCTAF_DATA", str(tmp_path_factory.mktemp("empty")))
    assert data.main(["cifar10"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("CIFAR10: the unpacked cifar-10-python.tar.gz not found intact in ")
    assert said.err.count("\n") == 1


def test_to_float_is_the_pixel_over_255():
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_float(x), torch.arange(256) / 255)
    assert to_float(y := torch.rand(3)) is y


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("kind", ["crop", "crop_flip"])
def test_every_image_is_one_of_its_own_crops(kind, dtype):
    x = torch.randint(1, 256, (40, 3, 6, 5), generator=torch.Generator().manual_seed(0)).to(dtype)
    out = augment(x, kind, torch.Generator().manual_seed(1))
    assert out.shape == x.shape
    assert out.dtype == dtype
    seen = set()
    for before, after in zip(x.numpy(), out.numpy(), strict=True):
        canvas = np.zeros((3, 14, 13), before.dtype)
        canvas[:, 4:10, 4:9] = before
        found = [
            (i, j, flip)
            for i in range(9)
            for j in range(9)
            for flip in ((False, True) if kind == "crop_flip" else (False,))
            if np.array_equal(after, canvas[:, i : i + 6, j : j + 5][:, :, :: -1 if flip else 1])
        ]
        assert found
        seen.add(found[0])
    assert len(seen) > 20  # the draws differ between images
    assert torch.equal(out, augment(x, kind, torch.Generator().manual_seed(1)))
    assert not torch.equal(out, augment(x, kind, torch.Generator().manual_seed(2)))


def test_every_shift_is_as_frequent_and_every_second_image_is_mirrored():
    """One bright row says how far an image was moved, and its ramp, which way round it is."""
    x = torch.arange(1, 10, dtype=torch.uint8).expand(3600, 1, 9, 9).clone()
    x[:, :, 4] += 100
    out = augment(x, "crop_flip", torch.Generator().manual_seed(0))
    row = out.amax((1, 3)).argmax(1)
    line = out[torch.arange(3600), 0, row].long()
    before, middle, after = line[:, 3], line[:, 4], line[:, 5]  # mirrored or not, the middle is the middle
    for place in (row, middle - 101):
        # 0 to 8, each 400 times within five standard deviations of a binomial count
        assert (place.bincount(minlength=9) - 400).abs().max() < 5 * (3600 * 8 / 81) ** 0.5
    mirrored = (before == middle + 1) | (after == middle - 1)
    assert ((before == middle - 1) | (after == middle + 1) == ~mirrored).all()
    assert abs(mirrored.sum() - 1800) < 5 * 30


def test_augment_none_and_unknown():
    x, g = torch.rand(2, 1, 4, 4), torch.Generator()
    assert augment(x, "none", g) is x
    with pytest.raises(ValueError, match="got 'mixup'"):
        augment(x, "mixup", g)
