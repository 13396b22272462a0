"""The papers' data: rows as published, nothing of test rows in training, bad files told."""

from __future__ import annotations

import ast
import gzip
import importlib
import inspect
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from keras_kare import datasets
from keras_kare.datasets import (
    Split,
    higgs,
    load_uci,
    mnist,
    mnist_digits,
    preprocess,
    signed_one_hot,
    simulation,
    uci_names,
)

ROOMS = {
    name: importlib.import_module(f"keras_kare.datasets.{name}")
    for name in ("_arguments", "higgs", "mnist", "simulation", "split", "uci")
}
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)
EXAMPLES = {
    name: FENCE.findall(inspect.getdoc(getattr(datasets, name)) or "")
    for name in datasets.__all__
    if inspect.isfunction(getattr(datasets, name))
}


def subfolder(data_folder: Path, name: str, files: tuple[str, ...]) -> Path:
    """A folder of the data that must be whole; CI never skips for lack of it."""
    folder = data_folder / name
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        message = f"KERAS_KARE_DATA has no {name}/{missing[0]}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="module")
def uci_folder(data_folder: Path) -> Path:
    return subfolder(data_folder, "uci", ("iris/iris.txt",))


@pytest.fixture(scope="module")
def higgs_folder(data_folder: Path) -> Path:
    return subfolder(data_folder, "higgs", ("training.csv",))


@pytest.fixture(scope="module")
def mnist_folder(data_folder: Path, request: pytest.FixtureRequest):
    """The original files; what is built from them is in a cache of this run's own."""
    folder = subfolder(data_folder, "mnist", ROOMS["mnist"].FILES)
    pytest.importorskip("tensorflow_datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(request.getfixturevalue("mnist_cache")))
        yield folder
    ROOMS["mnist"]._digits.cache_clear()


def refuses(error: type[Exception], name: str, call) -> str:
    """The call fails, names what is wrong, and ends in what it received."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert f"`{name}`" in message
    assert re.search(r"Received: \S", message.splitlines()[-1] if name else message), (
        message
    )
    return message


def equal(first: Split, second: Split) -> bool:
    return all(
        np.array_equal(getattr(first, part), getattr(second, part))
        for part in ("x", "y", "x_test", "y_test")
    )


# The package.


def test_public_names():
    assert set(datasets.__all__) == {
        *(
            "Split",
            "UCIDataset",
            "simulation",
            "mnist",
            "mnist_digits",
            "higgs",
            "load_uci",
            "uci_names",
        ),
        *("preprocess", "signed_one_hot"),
    }
    assert all(callable(getattr(datasets, name)) for name in datasets.__all__)


def test_nothing_heavy_is_imported_before_it_is_used():
    for module in (datasets, *ROOMS.values()):
        names = []
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"tensorflow", "keras", "sklearn", "tensorflow_datasets"}
        assert "pandas" not in roots


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_in_docstrings_run(name, request):
    needed = {
        "mnist": "mnist_folder",
        "mnist_digits": "mnist_folder",
        "higgs": "higgs_folder",
    }
    for fixture in {needed.get(name, "uci_folder" if "uci" in name else "data_folder")}:
        request.getfixturevalue(fixture)
    (code,) = EXAMPLES[name]
    exec(compile(code, name, "exec"), {})


def test_splits_are_frozen_and_compared_by_identity():
    data = simulation(rows=10)
    with pytest.raises(AttributeError):
        data.x = data.x_test
    assert data == data
    assert data != simulation(rows=10)


# The simulated regression.


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("gamma", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_simulation_is_the_authors_row_for_row(seed, gamma, sigma):
    r = np.random.RandomState(seed)
    X = r.randn(50, 4)
    w = r.randn(4, 1)
    noise = r.randn(50, 1) * sigma
    y = np.zeros((50, 1))
    for i in range(50):
        u = (gamma * X[i : i + 1] @ w).item()
        y[i] = np.cos(u) / (1 + np.exp(u))
    y += noise
    data = simulation(50, 4, gamma, sigma, seed, train_fraction=0.7)
    np.testing.assert_array_equal(np.concatenate([data.x, data.x_test]), X)
    found = np.concatenate([data.y, data.y_test])
    np.testing.assert_allclose(found, y, rtol=1e-12, atol=1e-15)
    assert data.x.shape == (35, 4)
    assert data.y_test.shape == (15, 1)
    assert data.x.dtype == data.y.dtype == np.float64


def test_simulation_by_default():
    data = simulation()
    assert [a.shape for a in (data.x, data.y, data.x_test, data.y_test)] == [
        *((800, 10), (800, 1)),
        *((200, 10), (200, 1)),
    ]
    # The legacy generator's first normal number of seed 0, known by heart.
    assert data.x[0, 0] == pytest.approx(1.764052345967664, abs=1e-15)
    assert equal(data, simulation())
    assert not equal(data, simulation(seed=1))


def test_simulation_where_exp_overflows():
    with np.errstate(over="raise", invalid="raise"):
        data = simulation(gamma=1e4)
    assert np.all(np.isfinite(data.y))
    r = np.random.RandomState(0)
    u = 1e4 * r.randn(1000, 10) @ r.randn(10, 1)
    y = np.concatenate([data.y, data.y_test])
    assert np.all(y[u > 710] == 0.0)
    np.testing.assert_allclose(y[u < -50], np.cos(u[u < -50]), rtol=1e-12)


def test_simulation_noise_is_its_standard_deviation():
    noisy, clean = simulation(sigma=0.3, rows=20_000), simulation(rows=20_000)
    np.testing.assert_array_equal(noisy.x, clean.x)
    assert np.std(noisy.y - clean.y) == pytest.approx(0.3, rel=0.05)
    assert np.std(noisy.y_test - clean.y_test) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    "bad",
    [
        *({"rows": 1}, {"rows": 10.0}, {"rows": True}, {"features": 0}),
        *({"gamma": float("nan")}, {"gamma": "1"}, {"gamma": 1e308}, {"gamma": None}),
        *({"sigma": -0.1}, {"sigma": float("inf")}, {"sigma": 1e308}),
        *({"seed": -1}, {"seed": None}, {"seed": 2**32}, {"seed": 0.5}),
        *({"train_fraction": 0.0}, {"train_fraction": 1.0}, {"train_fraction": "half"}),
        {"train_fraction": 1e-6},
    ],
    ids=str,
)
def test_simulation_refuses(bad):
    (name,) = bad
    message = refuses(ValueError, name, lambda: simulation(**bad))
    assert f"{name}=" in message


# MNIST.


def originals(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, read from the original files."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return (
        np.frombuffer(images, "uint8", offset=16).reshape(-1, 28, 28),
        np.frombuffer(labels, "uint8", offset=8),
    )


def in_any_order(x: np.ndarray) -> np.ndarray:
    return x[np.lexsort(x.T)]


def test_mnist_test_rows_are_the_original_files(mnist_folder):
    data = mnist(rows=1, test_rows=None)
    images, labels = originals(mnist_folder, "t10k")
    for label, sign in ((7, 1.0), (9, -1.0)):
        x = images[labels == label][:, 2:-2, 2:-2].reshape(-1, 576) / 255.0
        x -= x.mean(axis=1, keepdims=True)
        mine = data.x_test[data.y_test[:, 0] == sign]
        np.testing.assert_allclose(in_any_order(mine), in_any_order(x), atol=1e-15)


def test_all_digits_are_the_original_files(mnist_folder):
    data = mnist_digits()
    images, labels = originals(mnist_folder, "t10k")
    assert data.x.shape == (60_000, 28, 28, 1)
    assert data.x.dtype == data.y.dtype == "float32"
    assert set(np.unique(data.y_test)) == {-1.0, 1.0}
    assert np.array_equal(np.sum(data.y_test == 1.0, axis=1), np.ones(10_000))
    # tensorflow-datasets has them in another order.
    ours = sorted(row.tobytes() for row in np.round(data.x_test * 255).astype("uint8"))
    assert ours == sorted(row.tobytes() for row in np.asarray(images, "uint8"))
    counts = np.sum(data.y_test == 1.0, axis=0)
    assert np.array_equal(counts, np.bincount(labels, minlength=10))


def test_mnist_rows_and_preparation(mnist_folder):
    data = mnist()
    assert [a.shape for a in (data.x, data.y, data.x_test, data.y_test)] == [
        *((1000, 576), (1000, 1)),
        *((1000, 576), (1000, 1)),
    ]
    assert set(np.unique(data.y)) == {-1.0, 1.0}
    assert data.x.dtype == data.y.dtype == np.float64
    assert np.abs(data.x.mean(axis=1)).max() < 1e-12
    assert np.ptp(data.x, axis=1).max() <= 1.0 + 1e-12


def test_mnist_training_rows_are_of_the_training_set(mnist_folder):
    every = mnist(rows=None, test_rows=1)
    assert every.x.shape == (6265 + 5949, 576)
    assert np.sum(every.y == 1.0) == 6265
    images, labels = originals(mnist_folder, "train")
    # How often each image is there, by a checksum of its pixels.
    weights = np.random.default_rng(0).normal(size=576)
    crop = images[np.isin(labels, (7, 9))][:, 2:-2, 2:-2].reshape(-1, 576) / 255.0
    crop -= crop.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(
        np.sort(every.x @ weights), np.sort(crop @ weights), atol=1e-10
    )


def test_mnist_repeats_by_seed_and_differs_by_seed(mnist_folder):
    first = mnist(rows=50, test_rows=60, seed=3)
    assert equal(first, mnist(rows=50, test_rows=60, seed=3))
    other = mnist(rows=50, test_rows=60, seed=4)
    assert not np.array_equal(first.x, other.x)
    assert not np.array_equal(first.x_test, other.x_test)


def test_mnist_draws_training_rows_first_from_one_generator(mnist_folder):
    every = mnist(rows=None, test_rows=None)
    data = mnist(rows=30, test_rows=20, seed=5)
    r = np.random.RandomState(5)
    train = r.choice(len(every.x), 30, replace=False)
    test = r.choice(len(every.x_test), 20, replace=False)
    np.testing.assert_array_equal(data.x, every.x[train])
    np.testing.assert_array_equal(data.y_test, every.y_test[test])
    assert len(np.unique(data.x, axis=0)) == 30


def test_mnist_arrays_are_the_callers_own(mnist_folder):
    first = mnist(rows=None, test_rows=None)
    for array in (first.x, first.y, first.x_test, first.y_test):
        array[:] = 0.0
    second = mnist(rows=None, test_rows=None)
    assert np.all(np.abs(second.y) == 1.0)
    assert np.ptp(second.x_test) > 1.0


def test_mnist_is_built_once_and_leaves_nothing_beside_it(mnist_folder):
    mnist(rows=1, test_rows=1)
    data_dir = Path(os.environ["XDG_CACHE_HOME"]) / "keras_kare" / "tensorflow_datasets"
    assert [p.name for p in data_dir.iterdir()] == ["mnist"]
    (built,) = (data_dir / "mnist").iterdir()
    before = {p.name: p.stat().st_mtime_ns for p in built.iterdir()}
    # What was built is an ordinary `data_dir`.
    again = mnist(rows=10, test_rows=1, data_dir=data_dir)
    assert equal(again, mnist(rows=10, test_rows=1))
    assert before == {p.name: p.stat().st_mtime_ns for p in built.iterdir()}


class FakeTfds:
    """tensorflow-datasets in little: six images, and notes of what was asked for."""

    def __init__(self, fails: bool = False) -> None:
        self.asked: list[str | None] = []
        self.fails, self.while_building = fails, lambda: None

    def builder(self, name, data_dir):
        def build():
            manual = Path(data_dir) / "downloads" / "manual"
            assert sorted(p.name for p in manual.iterdir()) == sorted(ROOMS["mnist"].FILES)
            self.while_building()
            if self.fails:
                raise RuntimeError("interrupted")
            Path(data_dir, name, "1.0").mkdir(parents=True)
            Path(data_dir, name, "1.0", "rows").write_text(data_dir)

        return SimpleNamespace(
            data_dir=str(Path(data_dir, name, "1.0")), download_and_prepare=build
        )

    def load(self, name, data_dir, split, batch_size):
        assert (name, split, batch_size) == ("mnist", ["train", "test"], -1)
        self.asked.append(data_dir)
        image = np.arange(6 * 28 * 28, dtype="uint8").reshape(6, 28, 28, 1)
        part = {"image": image, "label": np.array([7, 9, 1, 7, 9, 7])}
        return part, part

    def as_numpy(self, data):
        return data


@pytest.fixture
def fake_tfds(monkeypatch, tmp_path):
    fake = FakeTfds()
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KERAS_KARE_DATA", raising=False)
    ROOMS["mnist"]._digits.cache_clear()
    yield fake
    ROOMS["mnist"]._digits.cache_clear()


def offline(folder: Path, files=ROOMS["mnist"].FILES) -> Path:
    (folder / "mnist").mkdir(parents=True)
    for name in files:
        (folder / "mnist" / name).write_bytes(b"")
    return folder


def test_mnist_digits_in_the_order_given(fake_tfds):
    first, second = mnist(rows=4, test_rows=3), mnist((9, 7), rows=4, test_rows=3)
    np.testing.assert_array_equal(first.x, second.x)
    np.testing.assert_array_equal(first.y, -second.y)
    others = mnist([1, 9], rows=None, test_rows=None)
    assert others.y[:, 0].tolist() == [-1.0, 1.0, -1.0]


def test_mnist_downloads_where_the_files_are_not_all_there(
    fake_tfds, monkeypatch, tmp_path
):
    data = mnist(rows=None, test_rows=2)
    assert data.y[:, 0].tolist() == [1.0, -1.0, 1.0, -1.0, 1.0]
    monkeypatch.setenv("KERAS_KARE_DATA", str(offline(tmp_path, ROOMS["mnist"].FILES[:3])))
    ROOMS["mnist"]._digits.cache_clear()
    mnist(rows=1, test_rows=1)
    assert fake_tfds.asked == [None, None]
    assert not (tmp_path / "cache").exists()


def test_mnist_in_the_named_folder_is_left_to_tfds(fake_tfds, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_KARE_DATA", str(offline(tmp_path / "data")))
    mnist(rows=1, test_rows=1, data_dir=tmp_path / "own")
    assert fake_tfds.asked == [str(tmp_path / "own")]
    assert not (tmp_path / "cache").exists()


def test_mnist_is_not_built_a_second_time(fake_tfds, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_KARE_DATA", str(offline(tmp_path / "data")))
    first = mnist(rows=3, test_rows=3)
    fake_tfds.fails = True
    assert equal(first, mnist(rows=3, test_rows=3))
    assert len(fake_tfds.asked) == 1, "kept in memory"
    ROOMS["mnist"]._digits.cache_clear()
    assert equal(first, mnist(rows=3, test_rows=3))
    assert len(fake_tfds.asked) == 2, "kept on disk"


def test_mnist_in_the_home_where_no_cache_is_named(fake_tfds, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setenv("KERAS_KARE_DATA", str(offline(tmp_path / "data")))
    mnist(rows=1, test_rows=1)
    (asked,) = fake_tfds.asked
    assert asked == str(tmp_path / "home/.cache/keras_kare/tensorflow_datasets")


def test_mnist_built_by_two_processes_at_once(fake_tfds, monkeypatch, tmp_path):
    """The other is done while this one builds: its data set stays, ours goes."""
    monkeypatch.setenv("KERAS_KARE_DATA", str(offline(tmp_path / "data")))
    data_dir = tmp_path / "cache" / "keras_kare" / "tensorflow_datasets"

    def other() -> None:
        (data_dir / "mnist" / "1.0").mkdir()
        (data_dir / "mnist" / "1.0" / "rows").write_text("the other's")

    fake_tfds.while_building = other
    mnist(rows=1, test_rows=1)
    assert (data_dir / "mnist" / "1.0" / "rows").read_text() == "the other's"
    assert [p.name for p in data_dir.iterdir()] == ["mnist"]


def test_mnist_interrupted_while_it_is_built(fake_tfds, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_KARE_DATA", str(offline(tmp_path / "data")))
    fake_tfds.fails = True
    with pytest.raises(RuntimeError, match="interrupted"):
        mnist(rows=1, test_rows=1)
    data_dir = tmp_path / "cache" / "keras_kare" / "tensorflow_datasets"
    assert not any((data_dir / "mnist").iterdir())
    fake_tfds.fails = False
    assert len(mnist(rows=1, test_rows=1).x) == 1


def test_mnist_cannot_be_put_in_its_place(fake_tfds, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_KARE_DATA", str(offline(tmp_path / "data")))

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(ROOMS["mnist"].os, "rename", full)
    with pytest.raises(OSError, match="disk full"):
        mnist(rows=1, test_rows=1)


@pytest.mark.parametrize(
    "bad",
    [
        *({"digits": (7,)}, {"digits": (7, 7)}, {"digits": (7, 10)}, {"digits": 7}),
        *({"digits": (7, -1)}, {"digits": (7, 9, 1)}, {"digits": ("7", "9")}),
        *({"rows": 0}, {"rows": 6}, {"rows": 1.5}),
        *({"test_rows": 0}, {"test_rows": 6}, {"test_rows": "all"}),
        *({"seed": -1}, {"seed": None}),
    ],
    ids=str,
)
def test_mnist_refuses(fake_tfds, bad):
    (name,) = bad
    arguments = {"rows": 2, "test_rows": 2, **bad}
    message = refuses(ValueError, name, lambda: mnist(**arguments))
    assert f"{name}=" in message


def test_mnist_without_tensorflow_datasets(fake_tfds, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r'pip install "keras_kare\[tutorials\]"'):
        mnist()


# The Higgs challenge.


def table(folder: Path) -> tuple[list[str], list[list[str]]]:
    header, *rows = (folder / "training.csv").read_text().splitlines()
    return header.split(","), [row.split(",") for row in rows]


def test_higgs_keeps_the_complete_rows(higgs_folder):
    names, rows = table(higgs_folder)
    features = [k for k, name in enumerate(names) if name[:4] in ("DER_", "PRI_")]
    whole = [row for row in rows if all(float(row[k]) != -999.0 for k in features)]
    x = np.array([[float(row[k]) for k in features] for row in whole])
    y = np.array([1.0 if row[-1] == "b" else -1.0 for row in whole])

    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        np.arange(len(x)), train_size=0.5, random_state=42, stratify=y
    )
    largest = x[train].max(axis=0)
    data = higgs(higgs_folder)
    np.testing.assert_array_equal(data.x, x[train] / largest)
    np.testing.assert_array_equal(data.x_test, x[test] / largest)
    np.testing.assert_array_equal(data.y[:, 0], y[train])
    np.testing.assert_array_equal(data.y_test[:, 0], y[test])
    assert data.x.shape[1] == 30
    assert data.x.dtype == data.y.dtype == np.float64


def test_higgs_split_and_scale(higgs_folder):
    data = higgs(higgs_folder)
    assert np.mean(data.y == 1.0) == pytest.approx(np.mean(data.y_test == 1.0), abs=2e-3)
    np.testing.assert_allclose(data.x.max(axis=0), 1.0, rtol=1e-12)
    assert np.any(data.x_test.max(axis=0) != 1.0), "test rows must not set the scale"
    assert not set(map(bytes, data.x)) & set(map(bytes, data.x_test))


def test_higgs_seed(higgs_folder):
    default = higgs(higgs_folder)
    assert equal(default, higgs(higgs_folder, seed=42))
    other = higgs(higgs_folder, seed=0)
    assert not np.array_equal(default.y, other.y)
    assert equal(other, higgs(higgs_folder, seed=0))


def test_higgs_train_fraction(higgs_folder):
    half, tenth = higgs(higgs_folder), higgs(higgs_folder, train_fraction=0.1)
    rows = len(half.x) + len(half.x_test)
    assert len(tenth.x) == rows // 10
    assert len(tenth.x) + len(tenth.x_test) == rows


def test_higgs_weight_gives_the_label_away(higgs_folder):
    with_weight = higgs(higgs_folder, weight_column=True)
    without = higgs(higgs_folder)
    np.testing.assert_array_equal(with_weight.x[:, :30], without.x)
    np.testing.assert_array_equal(with_weight.y, without.y)

    def separates(column: np.ndarray) -> bool:
        b, s = (column[without.y[:, 0] == sign] for sign in (1.0, -1.0))
        return bool(b.min() > s.max() or s.min() > b.max())

    assert with_weight.x.shape[1] == 31
    assert separates(with_weight.x[:, 30])
    assert not any(separates(column) for column in without.x.T)


def test_higgs_reads_the_folder_of_the_environment(higgs_folder, data_folder, monkeypatch):
    monkeypatch.setenv("KERAS_KARE_DATA", str(data_folder))
    assert equal(higgs(), higgs(str(higgs_folder)))


def higgs_file(folder: Path, header: str | None = None, rows: list[str] | None = None):
    """A file of the challenge's form, eight rows."""
    names = [f"DER_{k}" for k in range(13)] + [f"PRI_{k}" for k in range(17)]
    usual = ",".join(["EventId", *names, "Weight", "Label"])
    values = [
        ",".join(
            [str(k), *["0.0"] * 15, *[str(k + j) for j in range(15)], "0.5", "sb"[k % 2]]
        )
        for k in range(8)
    ]
    lines = [header or usual, *(values if rows is None else rows)]
    (folder / "training.csv").write_text("\n".join(lines))
    return lines


def test_higgs_columns_of_zeros_stay_zero(tmp_path):
    higgs_file(tmp_path)
    data = higgs(tmp_path)
    assert np.all(data.x[:, :15] == 0.0)
    assert np.all(np.isfinite(data.x_test))
    assert data.x.max() == 1.0


def test_higgs_columns_go_by_name(tmp_path):
    lines = higgs_file(tmp_path)
    usual = higgs(tmp_path, weight_column=True)
    turned = [",".join(line.split(",")[::-1]) for line in lines]
    (tmp_path / "training.csv").write_text("\n".join(turned))
    data = higgs(tmp_path, weight_column=True)
    np.testing.assert_array_equal(data.x[:, 29::-1], usual.x[:, :30])
    np.testing.assert_array_equal(data.y, usual.y)


def test_higgs_refuses_arguments(higgs_folder):
    for bad in (
        *({"train_fraction": 0}, {"train_fraction": 1.0}, {"train_fraction": True}),
        *({"train_fraction": 1e-4}, {"seed": -1}, {"seed": 1.0}, {"weight_column": 1}),
    ):
        (name,) = bad
        message = refuses(ValueError, name, lambda bad=bad: higgs(higgs_folder, **bad))
        assert f"{name}=" in message


def test_higgs_refuses_files(tmp_path, monkeypatch):
    refuses(FileNotFoundError, "folder", lambda: higgs(tmp_path / "none"))
    refuses(FileNotFoundError, "folder", lambda: higgs(tmp_path))
    monkeypatch.delenv("KERAS_KARE_DATA", raising=False)
    assert "KERAS_KARE_DATA" in refuses(ValueError, "folder", higgs)
    monkeypatch.setenv("KERAS_KARE_DATA", str(tmp_path / "data"))
    assert "KERAS_KARE_DATA=" in refuses(FileNotFoundError, "folder", higgs)

    def told() -> str:
        return refuses(ValueError, "training.csv", lambda: higgs(tmp_path))

    header, *rows = higgs_file(tmp_path)
    for wrong in (
        header.replace("Label", "label"),
        header.replace("Weight", "weight"),
        header.replace("DER_0", "EventTime"),
    ):
        higgs_file(tmp_path, wrong)
        assert "header" in told()
    for old, new, says in (
        (",s", ",x", "'x'"),
        ("0.5,s", "half,s", "half"),
        ("0.5,s", "s", "column"),
        ("0,0.0", "0,nan", "row 1"),
    ):
        # `Weight` is not read unless asked for: the second case fails only with it.
        changed = [rows[0].replace(old, new, 1), *rows[1:]]
        higgs_file(tmp_path, rows=changed)
        if new == "half,s":
            assert len(higgs(tmp_path).x) == 4
            message = refuses(
                ValueError, "training.csv", lambda: higgs(tmp_path, weight_column=True)
            )
            assert says in message
        else:
            assert says in told()
    # One row of a class cannot be in both parts.
    higgs_file(tmp_path, rows=[rows[0], *rows[1::2]])
    refuses(ValueError, "train_fraction", lambda: higgs(tmp_path))
    higgs_file(tmp_path, rows=[row.replace("0.0", "-999.0") for row in rows])
    refuses(ValueError, "train_fraction", lambda: higgs(tmp_path))


def test_higgs_without_scikit_learn(tmp_path, monkeypatch):
    higgs_file(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(ImportError, match=r'pip install "keras_kare\[sklearn\]"'):
        higgs(tmp_path)


# The UCI sets.


@pytest.fixture(scope="module")
def every_uci(uci_folder: Path):
    return {name: load_uci(name, uci_folder) for name in uci_names(uci_folder)}


def test_uci_names(uci_folder, data_folder, monkeypatch):
    names = uci_names(uci_folder)
    assert names == sorted(names)
    assert len(names) == sum(p.is_dir() for p in uci_folder.iterdir()) >= 79
    monkeypatch.setenv("KERAS_KARE_DATA", str(data_folder))
    assert uci_names() == names


def test_every_uci_set_loads(every_uci):
    for name, data in every_uci.items():
        n = len(data.x)
        assert data.name == name
        assert data.x.dtype == np.float64
        assert np.all(np.isfinite(data.x)), name
        assert data.labels.shape == (n,)
        assert data.labels.dtype.kind == "i"
        assert np.array_equal(np.unique(data.labels), np.arange(data.classes)), name
        assert data.classes >= 2


def test_uci_splits_cover_and_folds_are_disjoint(every_uci):
    for name, data in every_uci.items():
        n = len(data.x)
        assert len(data.folds) == 4
        for train, other in (data.split, *data.folds):
            both = np.concatenate([train, other])
            assert np.array_equal(np.sort(both), np.arange(n)), name
        train, validation = data.split
        assert 0 <= len(train) - len(validation) <= data.classes + 1, name
        for train, _ in data.folds:
            assert 0.7 < len(train) / n <= 0.8, name


def test_uci_rows_are_the_files(uci_folder):
    data = load_uci("acute-inflammation", uci_folder)
    lines = (uci_folder / "acute-inflammation/acute-inflammation_R.dat").read_text()
    rows = [line.split() for line in lines.splitlines()[1:]]
    assert data.x.tolist() == [[float(v) for v in row[1:-1]] for row in rows]
    assert data.labels.tolist() == [int(row[-1]) for row in rows]
    numbers = (uci_folder / "acute-inflammation/conxuntos_kfold.dat").read_text()
    parts = [[int(v) for v in line.split()] for line in numbers.splitlines()]
    assert [part.tolist() for fold in data.folds for part in fold] == parts


def test_uci_reads_the_first_data_file_alone(every_uci):
    assert len(every_uci["monks-1"].x) == 124
    assert len(every_uci["adult"].x) == 32561


def write_uci(folder: Path, **changes: str) -> Path:
    """A data set of eight rows, two inputs and three classes, with changed files."""
    files = {
        "toy.txt": "n_entradas= 2\nn_clases= 3\nn_arquivos= 1\nfich1= toy_R.dat\n"
        "n_patrons1= 8\nn_patrons_entrena= 4\nn_patrons_valida= 4\nn_conxuntos= 1\n",
        "toy_R.dat": "\tf1\tf2\tclase\n"
        + "".join(f"{k + 1}\t{k / 2}\t{-k}\t{k % 3}\n" for k in range(8)),
        "conxuntos.dat": "0 1 2 3 \n4 5 6 7 \n",
        "conxuntos_kfold.dat": "0 1 2 3 4 5 \n6 7 \n" * 4,
    }
    shutil.rmtree(folder / "toy", ignore_errors=True)
    (folder / "toy").mkdir(parents=True)
    for name, text in files.items():
        text = changes.get(name.replace(".", "_"), text)
        if text is not None:
            (folder / "toy" / name).write_bytes(text.encode("latin-1"))
    return folder


def uci_text(folder: Path, name: str) -> str:
    return (folder / "toy" / name).read_text()


def test_uci_oddities_of_form_are_taken(tmp_path):
    plain = load_uci("toy", write_uci(tmp_path))
    rows = uci_text(tmp_path, "toy_R.dat")
    odd = load_uci(
        "toy",
        write_uci(
            tmp_path,
            toy_txt="Fernández\r\nn_entradas=2\r\n\r\n n_clases =  3\nfich1=\ttoy_R.dat\n",
            toy_R_dat=rows.replace("\t", "  ").replace("\n", "\r\n\r\n").rstrip(),
            conxuntos_dat="\n0 1 2 3\r\n4 5 6 7",
        ),
    )
    (tmp_path / "toy" / "toy_test_R.dat").write_text("not read")
    np.testing.assert_array_equal(plain.x, odd.x)
    np.testing.assert_array_equal(plain.labels, odd.labels)
    np.testing.assert_array_equal(plain.split, odd.split)
    assert plain.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert plain.x[3].tolist() == [1.5, -3.0]
    assert plain.x.flags.c_contiguous


def test_uci_class_without_rows_is_taken(tmp_path):
    header = uci_text(write_uci(tmp_path), "toy.txt")
    data = load_uci(
        "toy", write_uci(tmp_path, toy_txt=header.replace("clases= 3", "clases= 4"))
    )
    assert data.classes == 4


@pytest.mark.parametrize(
    ("file", "old", "new", "names", "says"),
    [
        ("toy.txt", "n_entradas= 2\n", "", "toy.txt", "n_entradas"),
        ("toy.txt", "n_clases= 3", "n_clases=", "toy.txt", "n_clases"),
        ("toy.txt", "fich1", "fich2", "toy.txt", "fich1"),
        ("toy.txt", "n_entradas= 2", "n_entradas= two", "n_entradas", "two"),
        ("toy.txt", "n_entradas= 2", "n_entradas= 3", "toy_R.dat", "4 columns"),
        ("toy.txt", "patrons1= 8", "patrons1= 9", "toy_R.dat", "8 rows"),
        ("toy.txt", "entrena= 4", "entrena= 5", "conxuntos.dat", "4 rows"),
        ("toy.txt", "valida= 4", "valida= 3", "conxuntos.dat", "4 rows"),
        ("toy.txt", "n_clases= 3", "n_clases= 2", "toy_R.dat", "2 in row 3"),
        ("toy_R.dat", "-7\t1\n", "-7\t1.5\n", "toy_R.dat", "1.5 in row 8"),
        ("toy_R.dat", "-7\t1\n", "-7\t-1\n", "toy_R.dat", "-1 in row 8"),
        ("toy_R.dat", "-7", "nan", "toy_R.dat", "row 8"),
        ("toy_R.dat", "-7", "?", "toy_R.dat", r"\?"),
        ("toy_R.dat", "-7\t", "", "toy_R.dat", "columns"),
        ("toy_R.dat", "\tf1\tf2\tclase\n", "", "toy_R.dat", "7 rows"),
        ("conxuntos.dat", "7", "8", "toy/conxuntos.dat", "0 to 8"),
        ("conxuntos.dat", "0", "-1", "toy/conxuntos.dat", "-1 to 7"),
        ("conxuntos.dat", "7", "3", "toy/conxuntos.dat", "8 numbers of 7 rows"),
        ("conxuntos.dat", "7", "7.5", "toy/conxuntos.dat", "7.5"),
        ("conxuntos.dat", "\n4", " 4", "toy/conxuntos.dat", "1 lines"),
        ("conxuntos_kfold.dat", "\n6", " 6", "toy/conxuntos_kfold.dat", "4 lines"),
        ("conxuntos_kfold.dat", "7", "5", "toy/conxuntos_kfold.dat", "7 rows"),
    ],
)
def test_uci_refuses_files_that_contradict(tmp_path, file, old, new, names, says):
    text = uci_text(write_uci(tmp_path), file)
    assert old in text
    write_uci(tmp_path, **{file.replace(".", "_"): text.replace(old, new)})
    message = refuses(ValueError, names, lambda: load_uci("toy", tmp_path))
    assert re.search(says, message), message


def test_uci_refuses_an_empty_table(tmp_path):
    header = uci_text(write_uci(tmp_path), "toy.txt").replace("n_patrons1= 8\n", "")
    write_uci(tmp_path, toy_txt=header, toy_R_dat="\tf1\tf2\tclase\n")
    assert "0 rows" in refuses(ValueError, "toy_R.dat", lambda: load_uci("toy", tmp_path))


@pytest.mark.parametrize("file", ["toy_R.dat", "conxuntos.dat", "conxuntos_kfold.dat"])
def test_uci_tells_which_file_is_missing(tmp_path, file):
    (write_uci(tmp_path) / "toy" / file).unlink()
    refuses(FileNotFoundError, file, lambda: load_uci("toy", tmp_path))


def test_uci_refuses_names_and_folders(tmp_path, monkeypatch):
    write_uci(tmp_path)
    assert "Close to it: toy" in refuses(
        ValueError, "name", lambda: load_uci("toys", tmp_path)
    )
    for bad in ("zebra", "", "..", f"../{tmp_path.name}/toy", 3, None):
        message = refuses(ValueError, "name", lambda bad=bad: load_uci(bad, tmp_path))
        assert f"name={bad!r}" in message
    refuses(ValueError, "folder", lambda: uci_names(tmp_path / "toy"))
    refuses(FileNotFoundError, "folder", lambda: uci_names(tmp_path / "none"))
    monkeypatch.delenv("KERAS_KARE_DATA", raising=False)
    refuses(ValueError, "folder", uci_names)
    refuses(ValueError, "folder", lambda: load_uci("toy"))


# Preparation.


def test_preprocess_clips_then_standardises(rng):
    x, x_test = rng.normal(3.0, 2.0, (90, 3)), rng.normal(3.0, 9.0, (30, 3))
    got, got_test = preprocess(x, x_test)
    for k in range(3):
        low, high = np.percentile(x[:, k], 5), np.percentile(x[:, k], 95)
        column = np.minimum(np.maximum(x[:, k], low), high)
        test = np.minimum(np.maximum(x_test[:, k], low), high)
        mean, deviation = np.mean(column), np.sqrt(np.mean((column - np.mean(column)) ** 2))
        np.testing.assert_allclose(got[:, k], (column - mean) / deviation, atol=1e-12)
        np.testing.assert_allclose(got_test[:, k], (test - mean) / deviation, atol=1e-12)
    assert np.abs(got.mean(axis=0)).max() < 1e-12
    np.testing.assert_allclose(got.std(axis=0), 1.0)


@pytest.mark.parametrize("rows", [None, 50])
def test_preprocess_learns_from_training_rows_alone(rng, rows):
    x, x_test = rng.normal(size=(80, 4)), rng.normal(size=(40, 4))
    got, got_test = preprocess(x, x_test, rows)
    got_2, got_test_2 = preprocess(x, 100.0 * x_test, rows)
    np.testing.assert_array_equal(got, got_2)
    alone, first = preprocess(x, x_test[:1], rows or 120)
    np.testing.assert_array_equal(alone, got)
    np.testing.assert_array_equal(first, got_test[:1])
    assert not np.array_equal(got_test, got_test_2)


def test_preprocess_of_constant_columns(rng):
    # 0.1 a hundred times has a computed deviation that is not zero; the second column is
    # constant but for outliers, which are clipped.
    x = np.column_stack([np.full(100, 0.1), np.zeros(100), rng.normal(size=100)])
    x[:3, 1] = 5.0
    x_test = np.array([[7.0, 1.0, 0.0], [0.1, 0.0, 1.0]])
    got, got_test = preprocess(x, x_test)
    assert np.all(got[:, :2] == 0.0)
    assert np.all(got_test[:, :2] == 0.0)
    assert np.all(np.isfinite(got_test))


def test_preprocess_of_small_sets(rng):
    from sklearn.preprocessing import RobustScaler

    x, x_test = rng.normal(size=(60, 3)), rng.normal(size=(20, 3))
    x[:, 2] = 4.0
    got, got_test = preprocess(x, x_test)
    scaler = RobustScaler().fit(x)
    np.testing.assert_array_equal(got, scaler.transform(x))
    np.testing.assert_array_equal(got_test, scaler.transform(x_test))
    low, middle, high = np.percentile(x[:, 0], [25, 50, 75])
    np.testing.assert_allclose(got[:, 0], (x[:, 0] - middle) / (high - low))


def test_preprocess_decides_by_all_rows(rng):
    x, x_test = rng.normal(size=(70, 2)), rng.normal(size=(30, 2))
    large, small = preprocess(x, x_test)[0], preprocess(x, x_test[:29])[0]
    assert np.allclose(large.std(axis=0), 1.0)
    assert not np.allclose(small.std(axis=0), 1.0, atol=1e-3)
    # Half of a set of 100 rows is prepared as all of it.
    np.testing.assert_array_equal(preprocess(x, x_test[:5], rows=100)[0], large)
    np.testing.assert_array_equal(preprocess(x, x_test, rows=99)[0], small)


def test_preprocess_leaves_its_arguments_alone(rng):
    x, x_test = rng.normal(size=(100, 2)), rng.normal(size=(10, 2))
    before = x.copy(), x_test.copy()
    preprocess(x, x_test)
    preprocess(x, x_test, rows=10)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(x_test, before[1])


def test_preprocess_of_every_uci_fold(every_uci):
    for name, data in every_uci.items():
        for train, test in data.folds[:1]:
            parts = preprocess(data.x[train], data.x[test], rows=len(data.x))
            for part in parts:
                assert np.all(np.isfinite(part)), name
                assert np.abs(part).max() < 1e3, name


def test_preprocess_refuses(rng):
    x = rng.normal(size=(100, 2))
    for name, arguments in {
        "x": (x[:, 0], x),
        "x_test": (x, x[:0]),
        "x ": (np.full((4, 2), np.nan), x),
        "x_test ": (x, np.array([[np.inf, 1.0]])),
        "x  ": (np.array([["a", "b"]]), x),
        "x_test  ": (x, x[:, :1]),
        "rows": (x, x, 0),
    }.items():
        refuses(
            ValueError, name.strip(), lambda arguments=arguments: preprocess(*arguments)
        )


def test_preprocess_without_scikit_learn(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.preprocessing", None)
    x = rng.normal(size=(60, 2))
    assert len(preprocess(x, x)[0]) == 60
    with pytest.raises(ImportError, match=r'pip install "keras_kare\[sklearn\]"'):
        preprocess(x, x[:10])


def test_signed_one_hot():
    two = signed_one_hot(np.array([0, 1, 1]), 2)
    assert two.tolist() == [[-1.0], [1.0], [1.0]]
    three = signed_one_hot(np.array([2, 0], "uint8"), 3)
    assert three.tolist() == [[-1.0, -1.0, 1.0], [1.0, -1.0, -1.0]]
    assert two.dtype == three.dtype == np.float64
    assert signed_one_hot(np.array([], int), 3).shape == (0, 3)


def test_signed_one_hot_of_every_uci_set(every_uci):
    for data in every_uci.values():
        y = signed_one_hot(data.labels, data.classes)
        back = (y[:, 0] > 0).astype(int) if data.classes == 2 else np.argmax(y, axis=1)
        assert np.array_equal(back, data.labels)


@pytest.mark.parametrize(
    ("name", "labels", "classes"),
    [
        *(("classes", [0], 1), ("classes", [0], 2.0), ("classes", [0], None)),
        *(("labels", [0, 2], 2), ("labels", [-1], 2), ("labels", [0.0, 1.0], 2)),
        *(("labels", [[0], [1]], 2), ("labels", ["a"], 2), ("labels", [True], 2)),
    ],
)
def test_signed_one_hot_refuses(name, labels, classes):
    refuses(ValueError, name, lambda: signed_one_hot(np.array(labels), classes))
