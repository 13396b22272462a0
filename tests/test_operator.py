"""A kernel's matrix as a linear map, against the matrix."""

from __future__ import annotations

import functools

import keras
import networks
import numpy as np
import pytest

import keras_kare as kk
from keras_kare.kernels import operator as operators
from keras_kare.kernels.structured.untouched import untouched
from keras_kare.kernels.traces import Traces

ALL = {**networks.STRUCTURED, **networks.FALLBACK}
SOME = ["three outputs", "two inputs", "sequence", "tied weights"]


def close(a, b, tolerance=1e-10):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


@pytest.fixture(scope="module")
def kernels():
    """A kernel of each network, planned and traced once for all tests."""

    @functools.cache
    def kernel(name, outputs="sum"):
        keras.utils.set_random_seed(0)
        return kk.kernels.NTK(ALL[name](), outputs)

    return kernel


@pytest.fixture
def op_by_op(monkeypatch):
    """Verbs that are not traced, which is most of their time."""

    def function(traces, verb, method, *of):
        def call(*arguments):
            with untouched(traces.features.network):
                return method(*arguments)

        return call

    monkeypatch.setattr(Traces, "_function", function)


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore:The NTK takes the plain Jacobian")
class TestProducts:
    @pytest.mark.parametrize("name", ALL)
    def test_of_every_network(self, name, rng, kernels):
        kernel = kernels(name)
        x = networks.rows_for(kernel.network, 6, rng)
        operator, gram = kernel.operator(x), kernel.gram(x).numpy()
        v = rng.normal(size=(6, 3))
        assert isinstance(operator, kk.kernels.FeatureOperator)
        assert operator.shape == (6, 6)
        close(operator @ v, gram @ v)
        close(operator @ v[:, 0], gram @ v[:, 0])
        close(operator.jvp(operator.vjp(v)), gram @ v)
        close(operator.diagonal, np.diag(gram))
        close(operator.dense(), gram)

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("outputs", ["sum", "trace"])
    @pytest.mark.usefixtures("op_by_op")
    def test_features_written_out(self, name, outputs, rng, kernels):
        kernel = kernels(name, outputs)
        x = networks.rows_for(kernel.network, 5, rng)
        operator = kernel.operator(x)
        j = operator.feature_rows(slice(None))
        assert j.shape == (5, operator.features)
        gram = kernel.gram(x).numpy()
        close(j @ j.T, gram)
        # In the order of the weights: J w by either road.
        w = rng.normal(size=(operator.features, 2))
        close(operator.jvp(kernel.weights_from(w, x)), j @ w)

    @pytest.mark.parametrize("name", SOME)
    @pytest.mark.parametrize("kind", ["features", "tiles"])
    def test_scaled_rows_in_chunks(self, name, kind, rng, monkeypatch, kernels):
        kernel = kernels(name)
        x = networks.rows_for(kernel.network, 7, rng)
        monkeypatch.setattr(type(kernel), "chunk", lambda *_: (3, False))
        scale = rng.uniform(0.5, 2.0, size=7)
        make = {
            "features": operators.FeatureOperator,
            "tiles": operators.KernelOperator,
        }[kind]
        monkeypatch.setattr(operators, "CHUNK", 3)
        monkeypatch.setattr(make, "_tile", lambda _: 2)
        operator = make(kernel, x).scaled(scale)
        gram = kernel.gram(x).numpy() * scale * scale[:, None]
        v = rng.normal(size=(7, 2))
        close(operator @ v, gram @ v)
        close(operator.columns(np.array([5, 0])), gram[:, [5, 0]])
        close(operator.block(slice(1, 4), np.array([6, 2])), gram[1:4][:, [6, 2]])
        close(operator.diagonal, np.diag(gram))
        close(operator.jvp(operator.vjp(v)), gram @ v)
        close(operator.dense(), gram)

    def test_a_matrix_that_is_there(self, rng):
        b = rng.normal(size=(5, 5))
        gram, v = b @ b.T, rng.normal(size=(5, 2))
        operator = kk.kernels.DenseOperator(gram)
        close(operator @ v, gram @ v)
        close(operator.block(slice(0, 2), np.array([4])), gram[:2][:, [4]])
        scale = np.arange(1.0, 6.0)
        close(operator.scaled(scale).dense(), gram * scale * scale[:, None])
        for verb in (operator.vjp, operator.jvp):
            with pytest.raises(NotImplementedError, match="no feature map"):
                verb(v)


class TestPrecision:
    def test_float32_networks_sum_in_float64(self, rng):
        network = networks.mlp(width=30)
        x = rng.normal(size=(50, networks.D)).astype("float32")
        kernel = kk.kernels.NTK(network)
        operator, v = kernel.operator(x), rng.normal(size=(50, 2))
        gram = kernel.gram(x, dtype="float64").numpy()
        close(operator.matmul(v), gram @ v, 1e-12)
        assert operator.narrow
        narrow = operator.matmul(v, "float32")
        assert narrow.dtype == "float64"
        assert 1e-9 < np.max(np.abs(narrow - gram @ v)) / np.max(np.abs(gram @ v)) < 1e-5
        j = operator.feature_rows(slice(None))
        close(j @ j.T, gram, 1e-12)

    def test_what_passes_give_is_kept_once(self, rng, monkeypatch):
        x = rng.normal(size=(20, networks.D)).astype("float32")
        kernel = kk.kernels.NTK(networks.mlp())
        operator = kernel.operator(x)
        operator @ np.ones(20)
        calls = []
        monkeypatch.setattr(kernel, "held", lambda rows: calls.append(rows))
        operator @ np.ones(20)
        assert not calls


class TestBadInput:
    @pytest.mark.parametrize(
        "v", [np.ones(4), np.ones((5, 1, 1)), np.array(["a"] * 5), np.full(5, np.nan)]
    )
    def test_vectors(self, rng, v):
        x = rng.normal(size=(5, networks.D)).astype("float32")
        operator = kk.kernels.NTK(networks.mlp()).operator(x)
        with pytest.raises(ValueError, match="`v`"):
            operator @ v

    def test_rows(self, rng):
        kernel = kk.kernels.NTK(networks.mlp())
        with pytest.raises(ValueError, match="NaN"):
            kernel.operator(np.full((3, networks.D), np.nan, "float32"))
        with pytest.raises(ValueError, match="does not fit the network"):
            kernel.operator(np.ones((3, networks.D + 1), "float32"))

    def test_full_kernels_have_no_system(self, rng):
        x = rng.normal(size=(4, networks.D)).astype("float32")
        operator = kk.kernels.NTK(networks.mlp(c=2), "full").operator(x)
        for verb in (operator.dense, lambda: operator.diagonal):
            with pytest.raises(ValueError, match="has a block"):
                verb()

    @pytest.mark.parametrize("gram", [np.ones((2, 3)), np.ones(3), np.full((2, 2), np.inf)])
    def test_matrices(self, gram):
        with pytest.raises(ValueError, match="`gram`"):
            kk.kernels.DenseOperator(gram)


def test_an_operator_goes_with_nested_inputs(rng):
    network = networks.named_inputs()
    x = networks.rows_for(network, 6, rng)
    x = keras.tree.map_structure(lambda t: np.asarray(t, "float32"), x)
    kernel = kk.kernels.NTK(network)
    v = rng.normal(size=(6, 2))
    close(kernel.operator(x) @ v, kernel.gram(x, dtype="float64").numpy() @ v, 1e-6)
