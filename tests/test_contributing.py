"""CONTRIBUTING's recipes, run as they stand: one of each kind, from outside the package."""

from __future__ import annotations

import re
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import solver_cases
import tensorflow as tf

import keras_kare as kk
from keras_kare.kernels.structured import registry
from keras_kare.machine import ridge

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()

RECIPES = dict(re.findall(r"^### (.*?)\n.*?^```python\n(.*?)^```", TEXT, re.M | re.S))

ROOT = Path(__file__).parent.parent

FILES = [
    file.relative_to(ROOT).as_posix()
    for folder in ("keras_kare", "tests")
    for file in (ROOT / folder).rglob("*.py")
]

PLACES = re.findall(r"`((?:[a-z_]+/)*_?[a-z_]+\.py)`", TEXT)


@pytest.fixture
def given(monkeypatch):
    """What the recipes take for granted; what they register is forgotten again."""
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    monkeypatch.setattr(ridge, "WAYS", dict(ridge.WAYS))
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(5, "tanh")
    network = keras.Sequential([keras.Input((3,)), hidden, keras.layers.Dense(1)])
    return {"kk": kk, "keras": keras, "np": np, "tf": tf, "time": time, "network": network}


@pytest.fixture
def rows(rng):
    x = rng.normal(size=(15, 3)).astype("float32")
    return x, np.sin(x[:, :1]) + 0.1


def model_of(recipe, given):
    exec(RECIPES[recipe], given)
    model = given["model"]
    if not model.compiled:
        model.compile(keras.optimizers.SGD(0.01), kk.losses.KARE(0.1))
    return model


def saved(model, folder, x):
    """The model, loaded from its file; its predictions are the same."""
    model.save(folder / "m.keras")
    loaded = keras.saving.load_model(folder / "m.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    return loaded


def test_there_is_a_recipe_for_each_kind():
    assert set(RECIPES) == {
        "A layer rule",
        "A kernel",
        "A solver",
        "A loss",
        "A way to choose the ridge",
    }


def test_a_layer_rule(given, rows, tmp_path):
    x, y = rows
    model = model_of("A layer rule", given)
    assert "jacobian" not in str(model.kernel.plan(x))
    plain = kk.kernels.NTK(model.network, method="jacobian")
    np.testing.assert_allclose(model.kernel.gram(x), plain.gram(x), rtol=1e-5, atol=1e-6)
    model.fit(x, y, epochs=2, validation_data=(x, y), verbose=0)
    saved(model, tmp_path, x)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_a_layer_rule_in_other_types(given, rows, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = model_of("A layer rule", given)
    finally:
        keras.config.set_dtype_policy("float32")
    model.fit(*rows, epochs=2, validation_data=rows, verbose=0)
    assert np.all(np.isfinite(model.history.history["loss"]))


def test_a_kernel(given, rows, tmp_path):
    x, y = rows
    model = model_of("A kernel", given).fit_head(x, y)
    gram = (1.0 + x.astype("float64") @ x.T) ** 2
    ridge, constant = model.head.ridge_value, model.head.constant
    target = y if constant is None else y - constant
    dual = np.linalg.solve(gram / 15 + ridge * np.eye(15), target)
    np.testing.assert_allclose(model.head.dual, dual, rtol=1e-4, atol=1e-4)
    assert saved(model, tmp_path, x).kernel.degree == 2


def test_a_solver(given, rows, tmp_path):
    x, y = rows
    model = model_of("A solver", given)
    model.fit(x, y, epochs=2, validation_data=(x, y), verbose=0)
    assert model.head.report["solver"] == "plain"
    dual = model.head.dual.numpy()
    exact = kk.NTKRidgeHead(ridge=model.head.report["relative_ridge"], solver="cholesky")
    other = kk.KAREModel(model.network, head=exact).fit_head(x, y)
    np.testing.assert_allclose(dual, other.head.dual, rtol=1e-6, atol=1e-8)
    assert saved(model, tmp_path, x).head.solver.corrections == 1
    assert solver_cases.Case(given["Plain"]()).tight.name == "plain"


def test_a_loss(given, rows, tmp_path):
    x, y = rows
    model = model_of("A loss", given)
    expected = kk.risk.leave_one_out(y, model.kernel.gram(x), 0.1)
    history = model.fit(x, y, epochs=3, validation_data=(x, y), verbose=0).history
    assert history["loss"][0] == pytest.approx(np.mean((expected - y) ** 2), rel=1e-4)
    assert history["loss"][-1] < history["loss"][0]
    assert saved(model, tmp_path, x).loss.ridge == 0.1


def test_a_way_to_choose(given, rows, tmp_path):
    x, y = rows
    model = model_of("A way to choose the ridge", given)
    model.fit(x, y, epochs=2, verbose=0)
    report = model.head.report
    assert report["chosen_by"] == "a third of the freedom"
    assert report["effective_dimension"] < 5.0
    loaded = saved(model, tmp_path, x)
    loaded.network.layers[-1].bias.assign_add([1.0])  # stale: solved at the same ridge
    loaded.predict(x, verbose=0)
    assert loaded.head.report["relative_ridge"] == pytest.approx(report["relative_ridge"])
    with pytest.raises(ValueError, match=r"`ridge` must.*half"):
        kk.NTKRidgeHead(ridge="half")


@pytest.mark.parametrize("place", sorted(set(PLACES)))
def test_files_are_where_the_map_says(place):
    assert any(f"/{file}".endswith(f"/{place}") for file in FILES), place


def test_a_solver_without_its_beginnings_is_told(given):
    exec(RECIPES["A solver"], given)

    class Bare(given["Plain"]):
        def __init__(self):
            pass

    with pytest.raises(ValueError, match=r"super.*Bare without tolerance, memory_limit"):
        kk.NTKRidgeHead(solver=Bare())
