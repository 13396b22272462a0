"""MNIST through tensorflow-datasets: two digits as the authors prepare them, or all."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_kare._validation import check_whole, is_whole
from keras_kare.datasets._arguments import VARIABLE, check_seed, extra
from keras_kare.datasets.split import Split

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
CROP = slice(2, 26)
"""24 of 28 pixels, the middle ones."""


def mnist(
    digits: tuple[int, int] = (7, 9),
    rows: int | None = 1000,
    test_rows: int | None = 1000,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
) -> Split:
    """Load two digits of MNIST: 24 x 24 pixels, each image less its own mean.

    Images lose two pixels on each side, are scaled to [0, 1], flattened to 576 columns,
    and have their own mean subtracted. The first digit is +1, the second -1. Training
    rows are drawn from MNIST's training set and test rows from its test set, without
    replacement, by one `np.random.RandomState(seed)`, the training rows first.

    tensorflow-datasets keeps rows in another order than the authors' loader. So the rows
    of a seed are other rows than theirs, drawn alike.

    The two digits are kept in memory as bytes: further seeds cost no further loading.

    Args:
        digits: The digit of +1 and the digit of -1. Defaults to `(7, 9)`.
        rows: Training rows, or `None` for all of the two digits. Defaults to `1000`.
        test_rows: Test rows, or `None` for all of the two digits. Defaults to `1000`.
        seed: Of the draw. With `None` rows nothing is drawn. Defaults to `0`.
        data_dir: tensorflow-datasets' `data_dir`. Defaults to `None`: its own, into which
            it downloads MNIST once; or, if the environment variable `KERAS_KARE_DATA`
            names a folder with the four original files in `mnist/`, nothing is
            downloaded: the data set is built from these, once, in the user's cache
            (`XDG_CACHE_HOME`, else `~/.cache`).

    Returns:
        A `Split` in float64: `x` of shape `(n, 576)`, `y` of shape `(n, 1)` in {-1, 1},
        and the same of the test rows.

    Raises:
        ValueError: If `digits` are not two different digits, or there are fewer rows than
            asked for.
        ImportError: If tensorflow-datasets is not installed.

    Example:

    ```python
    from keras_kare.datasets import mnist

    data = mnist(rows=100, test_rows=None, seed=1)
    assert data.x.shape == (100, 576) and data.y_test.shape == (2037, 1)
    ```

    References:
        LeCun, Cortes and Burges, "The MNIST database of handwritten digits"; the
        preparation is that of arXiv:2505.11347.
    """
    first, second = _two_digits(digits)
    check_whole("rows", rows, 1, optional=True)
    check_whole("test_rows", test_rows, 1, optional=True)
    check_seed(seed)
    folder = None if data_dir is None else os.fspath(data_dir)
    original = _original_files() if folder is None else None
    train, test = _digits(first, second, folder, original)
    r = np.random.RandomState(seed)
    x, y = _draw("rows", train, rows, r)
    x_test, y_test = _draw("test_rows", test, test_rows, r)
    return Split(x, y, x_test, y_test)


def mnist_digits(data_dir: str | os.PathLike[str] | None = None) -> Split:
    """Load all ten digits of MNIST as they are: 60,000 training and 10,000 test images.

    Args:
        data_dir: As in `mnist`.

    Returns:
        A `Split`: `x`, `(60000, 28, 28, 1)` float32 in [0, 1], `y`, `(60000, 10)` float32:
        1 in the column of the digit and -1 elsewhere; and the same of the test rows.

    Raises:
        ImportError: If tensorflow-datasets is not installed.

    Example:

    ```python
    from keras_kare.datasets import mnist_digits

    data = mnist_digits()
    assert data.x.shape == (60000, 28, 28, 1) and data.y_test.shape == (10000, 10)
    ```

    References:
        LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
    """
    folder = None if data_dir is None else os.fspath(data_dir)
    original = _original_files() if folder is None else None
    train, test = _loaded(folder, original)
    parts = []
    for part in (train, test):
        signs = 2.0 * np.eye(10, dtype="float32")[part["label"]] - 1.0
        parts += [part["image"].astype("float32") / np.float32(255.0), signs]
    return Split(*parts)


Rows = tuple[np.ndarray, np.ndarray]
"""Cropped images `(n, 24, 24)` as bytes, targets `(n, 1)`."""


def _draw(name: str, data: Rows, rows: int | None, r: np.random.RandomState) -> Rows:
    images, y = data
    if rows is None:
        chosen = np.arange(len(images))
    elif rows > len(images):
        raise ValueError(
            f"`{name}` must be at most {len(images)}, the rows of these digits, or None "
            f"for all. Received: {name}={rows!r}"
        )
    else:
        chosen = r.choice(len(images), rows, replace=False)
    x = images[chosen].reshape(len(chosen), -1) / 255.0
    return x - x.mean(axis=1, keepdims=True), y[chosen]


@functools.lru_cache(maxsize=8)
def _digits(
    first: int, second: int, data_dir: str | None, original: str | None
) -> tuple[Rows, Rows]:
    """Return all training and test rows of two digits, in tensorflow-datasets' order."""
    train, test = _loaded(data_dir, original)
    return _two_of(train, first, second), _two_of(test, first, second)


def _loaded(data_dir: str | None, original: str | None) -> Any:
    """Load all training and all test rows, as tensorflow-datasets has them."""
    tfds = extra("tensorflow_datasets", "tensorflow-datasets", "tutorials", "mnist")
    if original is not None:
        data_dir = _built_from(tfds, Path(original))
    return tfds.as_numpy(
        tfds.load("mnist", data_dir=data_dir, split=["train", "test"], batch_size=-1)
    )


def _two_of(part: Any, first: int, second: int) -> Rows:
    labels = part["label"]
    kept = (labels == first) | (labels == second)
    y = np.where(labels[kept] == first, 1.0, -1.0)[:, None]
    return part["image"][kept, CROP, CROP, 0], y


def _original_files() -> str | None:
    """Return the folder of the four original files, if `KERAS_KARE_DATA` has them."""
    value = os.environ.get(VARIABLE)
    folder = Path(value) / "mnist" if value else None
    if folder is None or not all((folder / name).is_file() for name in FILES):
        return None
    return str(folder.resolve())


def _built_from(tfds: Any, original: Path) -> str:
    """Return a `data_dir` in the user's cache with MNIST, built there at the first call.

    tensorflow-datasets takes a file in `downloads/manual/` in place of downloading it,
    if name and checksum fit.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    data_dir = Path(home) / "keras_kare" / "tensorflow_datasets"
    ready = Path(tfds.builder("mnist", data_dir=str(data_dir)).data_dir)
    if ready.is_dir():
        return str(data_dir)
    ready.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place and renamed into it: of several processes each builds its
    # own, the first to be done has its way, and none ever sees half a data set.
    with tempfile.TemporaryDirectory(dir=data_dir, prefix="building_") as building:
        manual = Path(building) / "downloads" / "manual"
        manual.mkdir(parents=True)
        for name in FILES:
            shutil.copyfile(original / name, manual / name)
        builder = tfds.builder("mnist", data_dir=building)
        builder.download_and_prepare()
        try:
            os.rename(builder.data_dir, ready)
        except OSError:
            if not ready.is_dir():
                raise
    return str(data_dir)


def _two_digits(digits: Sequence[int]) -> tuple[int, int]:
    if (
        not isinstance(digits, Sequence)
        or len(digits) != 2
        or not all(is_whole(digit) and 0 <= digit <= 9 for digit in digits)
        or digits[0] == digits[1]
    ):
        raise ValueError(
            "`digits` must be two different digits, 0 to 9, for example (7, 9). "
            f"Received: digits={digits!r}"
        )
    return int(digits[0]), int(digits[1])
