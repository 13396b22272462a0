"""What tests share: float64, folders of data, networks of many shapes."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core
    for _name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(_name, "1")

import keras
import numpy as np
import pytest

keras.utils.disable_interactive_logging()

# Python's collector took a fourteenth of the time, most of it over what imports had made.
gc.freeze()
gc.set_threshold(700, 10, 50)


@pytest.fixture(scope="module", autouse=True)
def _nothing_kept() -> Iterator[None]:
    """Memory of a worker stays that of the largest file of tests.

    (Keras' `clear_session` would also forget types and logging that tests have set.)
    """
    yield
    gc.collect()


@pytest.fixture
def nothing_shared() -> Iterator[None]:
    """No plan and no trace of a network before, and none of these after."""
    from keras_kare.kernels import traces  # here, where its lines are counted

    traces._POOLS.clear()
    yield
    traces._POOLS.clear()


def _folder(variable: str) -> Path:
    """The folder that an environment variable names; CI never skips for lack of it."""
    value = os.environ.get(variable)
    if value and Path(value).is_dir():
        return Path(value).resolve()
    message = f"{variable} names no folder: {value!r}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    return _folder("KERAS_KARE_DATA")


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    return _folder("KERAS_KARE_REFERENCE")


@pytest.fixture(scope="session")
def mnist_cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A user's cache in which MNIST is built, once for all workers of a run."""
    from keras_kare.datasets import mnist

    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch, (folder / "mnist.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        patch.setenv("XDG_CACHE_HOME", str(folder))
        mnist(rows=1, test_rows=1)
    return folder


@pytest.fixture
def float64() -> Iterator[None]:
    """Networks made in the test compute in float64."""
    yield from _floatx("float64")


@pytest.fixture(params=["float64", "float32"])
def floatx(request: pytest.FixtureRequest) -> Iterator[str]:
    for _ in _floatx(request.param):
        yield request.param


def _floatx(name: str) -> Iterator[None]:
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(name)
    keras.config.set_dtype_policy(name)
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


@pytest.fixture
def rng() -> np.random.Generator:
    keras.utils.set_random_seed(0)
    return np.random.default_rng(0)
