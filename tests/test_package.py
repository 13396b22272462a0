"""The package itself: names, documents, examples, the two commands' parts."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk
from keras_kare.kernels.structured.untouched import of_our_own

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)


MODULES = (
    *(kk, kk.kernels, kk.risk, kk.losses, kk.metrics, kk.layers, kk.solvers),
    *(kk.callbacks, kk.stochastic, kk.mkl),
)


def public_objects():
    for module in (*MODULES, kk.sklearn):
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and getattr(value, "__module__", "") == module.__name__
        ]
        for name in names:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{module.__name__}.{name}", value


OBJECTS = dict(public_objects())
EXAMPLES = {
    f"{name}-{i}": code
    for name, value in OBJECTS.items()
    for i, code in enumerate(FENCE.findall(inspect.getdoc(value) or ""))
}
ONCE = {code: name for name, code in reversed(EXAMPLES.items())}
"""The first name of each code: aliases and subclasses have the same docstring."""


def test_public_names():
    expected = {
        "KAREModel",
        "NTKRidgeHead",
        "kernels",
        "risk",
        "losses",
        "metrics",
        "solvers",
    }
    assert expected <= set(kk.__all__)
    assert {"NTK", "Kernel", "LayerRule", "register_rule"} <= set(kk.kernels.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", kk.__version__)
    assert (Path(kk.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    ("room", "registered"),
    [(kk.solvers, kk.solvers.auto.SOLVERS), (kk.losses, kk.losses.OWN)],
)
def test_what_is_registered_is_exported(room, registered):
    assert {kind.__name__ for kind in registered.values()} <= set(room.__all__)


def test_stochastic_is_a_part_of_risk_with_a_name_of_its_own():
    assert importlib.import_module("keras_kare.stochastic") is kk.risk.stochastic
    assert kk.stochastic is kk.risk.stochastic


@pytest.mark.parametrize("name", OBJECTS)
def test_every_public_object_has_a_docstring(name):
    text = inspect.getdoc(OBJECTS[name]) or ""
    assert len(text) > 30, f"the docstring of {name} says too little: {text!r}"


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name in ONCE.values()])
def test_examples_in_docstrings_run(name, rng):
    x = rng.normal(size=(20, 4)).astype("float32")
    network, y = networks.mlp(), np.sin(x[:, :1])
    names = {
        "kk": kk,
        "keras": keras,
        "np": np,
        "network": network,
        "kernel": kk.kernels.NTK(network),
        "dataset": tf.data.Dataset.from_tensor_slices((x, y)).batch(7),
        "x": x,
        "y": y,
        "v": y,
    }
    exec(compile(EXAMPLES[name], name, "exec"), names)
    kk.kernels.structured.registry._RULES.pop(names.get("Scale"), None)


def test_the_main_classes_have_examples():
    with_examples = {name.rsplit("-", 1)[0] for name in EXAMPLES}
    for name in ("kernels.NTK", "NTKRidgeHead", "KAREModel", "losses.KARE", "risk.kare"):
        assert f"keras_kare.{name}" in with_examples


def test_readme_examples_run_in_order_and_alone(tmp_path, monkeypatch, capsys):
    """As readers run them: one after the other; the next day, each by itself, once more."""
    monkeypatch.chdir(tmp_path)
    blocks = FENCE.findall((ROOT / "README.md").read_text())
    in_order: dict[str, object] = {}
    for names in ([in_order] * len(blocks), [{} for _ in blocks]):
        printed = []
        for code, known in zip(blocks, names, strict=True):
            exec(compile(code, "README.md", "exec"), known)
            printed.append(capsys.readouterr().out)
        model, kernel, lengths, gated, _, estimators, classes, _ = printed
        assert float(model.strip().splitlines()[-1]) < 1.0, "no better than the mean"
        assert (tmp_path / "model.keras").exists()
        assert (tmp_path / "serving" / "saved_model.pb").exists()
        assert "200 rows, all at once" in kernel
        assert np.load(tmp_path / "gram.npy").shape == (200, 200)
        found = np.array(lengths.strip(" []\n").split(), float)
        assert set(np.argsort(found)[:2]) == {0, 1}, "the columns that matter"
        assert float(gated.split()[1]) <= 1e-8
        assert (tmp_path / "gated.keras").exists()
        assert (tmp_path / "gated" / "saved_model.pb").exists()
        assert names[4]["head"].report["converged"]
        assert "share=" in estimators
        assert classes.startswith("['setosa' 'versicolor' 'virginica'] [")
        assert np.all(names[7]["std"] > 0.0)


def test_quickstart_runs(tmp_path):
    command = [sys.executable, ROOT / "tutorials" / "quickstart.py"]
    options = ["--seeds", "1", "--epochs", "5", "--out", tmp_path]
    done = subprocess.run(
        [*map(str, command), *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("network", "after-NTK", "NTK-KARE"):
        assert re.search(rf"^{name} +0\.\d+ ± ", done.stdout, re.MULTILINE), done.stdout
    assert (tmp_path / "ridge.png").stat().st_size > 10_000
    assert (tmp_path / "saved_model" / "saved_model.pb").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "says"),
    [("kare_step.py", "ratio step / dense"), ("prediction.py", "training rows")],
)
def test_benchmarks_run(file, says):
    """At their own sizes, once each; what they measure is not judged here."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / file), "--repeats", "1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "benchmarks",
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def test_the_ladder_of_solvers_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    """One measurement is there already; the other one has a process of its own."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    ladder = importlib.import_module("solvers")
    first, second = ({"rows": 1000, "ridge": ridge} for ridge in ladder.RIDGES)
    kept = [{"job": first, **ladder.measure("ladder", first)}]
    assert kept[0]["solver"] == "cholesky"
    (tmp_path / "ladder.json").write_text(json.dumps(kept))
    options = ["--most", "1000", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["solvers.py", "ladder", *options])
    ladder.main()
    assert capsys.readouterr().out.count("'solver': 'cholesky'") == 1
    lines = json.loads((tmp_path / "ladder.json").read_text())
    assert [line["job"] for line in lines] == [first, second]
    assert lines[0] == kept[0]
    assert (tmp_path / "ladder.csv").exists()
    assert (tmp_path / "ladder.png").exists()


def test_the_private_name_that_training_needs():
    """`KAREModel.train_step` updates Keras's own tracker of the loss."""
    model = kk.KAREModel(networks.mlp())
    model.compile("sgd", "kare")
    assert isinstance(model._loss_tracker, keras.metrics.Mean), (
        "Keras moved its loss tracker"
    )


def test_settings_of_functions_are_where_we_think():
    """`of_our_own` copies a `tf.function` with its settings, but not its cache."""
    function = tf.function(lambda x: x + 1.0, autograph=False, jit_compile=True)
    function(tf.constant(1.0))
    assert len(function._list_all_concrete_functions()) == 1, "TensorFlow moved its traces"
    copy = of_our_own(function)
    assert copy.experimental_get_tracing_count() == 0, "TensorFlow moved `_clone`"
    assert copy.python_function is function.python_function
    assert (copy._autograph, copy._jit_compile) == (False, True)
    assert copy._omit_frequent_tracing_warning is True


CASES = {
    "unset": {},
    "unset in CI": {"CI": "true"},
    "no folder in CI": {"CI": "true", "KERAS_KARE_REFERENCE": "nowhere"},
}


@pytest.fixture(scope="module")
def fresh():
    """What a process prints of imports without extras, and of tests without folders."""
    code = """
import json, os, sys
extras = dict.fromkeys(("sklearn", "pandas", "matplotlib"))
sys.modules.update(extras)  # not installed
print("case extras:")
import keras_kare
assert "keras_kare.sklearn" not in sys.modules
try:
    keras_kare.sklearn
except ImportError as error:
    print(error)
import keras_kare.experiments.figures, keras_kare.experiments.tables
print("figures and tables")
import keras
keras.config.set_floatx("float64")
print(keras.layers.Dense(1).dtype)
keras.config.set_floatx("float32")
for name in extras:
    del sys.modules[name]

import pytest
for name, environment in json.loads(sys.argv[1]).items():
    os.environ.pop("CI", None)
    os.environ.update(environment)
    print(f"case {name}:", flush=True)
    pytest.main(["-q", "tests/test_reference.py", "-k", "every_ref"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(CASES)],
        env={k: v for k, v in os.environ.items() if not k.startswith("KERAS_KARE")},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^case (.*):\n", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


class TestExtras:
    """Imports where none of the extras is installed."""

    def test_scikit_learn_is_an_extra(self, fresh):
        assert "pip install keras_kare[sklearn]" in fresh["extras"]

    def test_figures_and_tables_load_without_pandas_and_matplotlib(self, fresh):
        assert "figures and tables\n" in fresh["extras"]

    def test_types_are_still_the_users_choice(self, fresh):
        """A layer that is made at import would fix them."""
        assert fresh["extras"].endswith("float64\n")


class TestFolders:
    """CI never skips for lack of data."""

    def test_skips_where_unset(self, fresh):
        assert "1 skipped" in fresh["unset"]

    @pytest.mark.parametrize("case", ["unset in CI", "no folder in CI"])
    def test_fails_in_ci(self, fresh, case):
        assert "1 error" in fresh[case]


class TestMetrics:
    def test_signs(self):
        metric = kk.metrics.SignedAccuracy()
        metric.update_state([[1.0], [-1.0], [-1.0]], [[0.3], [0.2], [-4.0]])
        assert float(metric.result()) == pytest.approx(2 / 3)

    def test_flat_targets(self):
        signs = np.array([1.0, -1.0, -1.0, -1.0])
        for y, predicted in (
            (signs, signs[:, None]),
            (signs[:, None], signs),
            (signs, signs),
        ):
            metric = kk.metrics.SignedAccuracy()
            metric.update_state(y, predicted)
            assert float(metric.result()) == 1.0

    def test_largest_column(self):
        y = np.array([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]])
        metric = kk.metrics.SignedAccuracy()
        metric.update_state(y, np.array([[-0.1, -0.2, -0.3], [0.9, -1.0, 0.1]]))
        assert float(metric.result()) == 0.5


class TestRules:
    def test_a_users_rule_takes_the_place_of_the_fallback(self, rng, float64):
        class Scale(keras.layers.Layer):
            def build(self, shape):
                self.scale = self.add_weight(shape=(shape[-1],))

            def call(self, inputs):
                return inputs * self.scale

        class ScaleRule(kk.kernels.LayerRule):
            def call(self, layer, watch, inputs):
                def factor(variables, gradients):
                    return kk.kernels.FullFactor(inputs[:, None] * gradients)

                return watch(inputs * layer.scale, [layer.scale], factor)

        network = networks.with_layers(Scale)()
        x = rng.normal(size=(5, networks.D))
        with pytest.warns(UserWarning, match="plain Jacobian"):
            expected = kk.kernels.NTK(network).gram(x)
        kk.kernels.register_rule(Scale, ScaleRule())
        try:
            plan = kk.kernels.NTK(network)._plan(tf.constant(x))
            np.testing.assert_allclose(
                kk.kernels.NTK(network).gram(x), expected, rtol=1e-12
            )
        finally:
            kk.kernels.structured.registry._RULES.pop(Scale)
        assert not plan.jacobian

    def test_a_wrong_rule_is_not_used(self, rng, float64):
        class Twice(keras.layers.Dense):
            pass

        class WrongRule(kk.kernels.structured.dense.DenseRule):
            def call(self, layer, watch, inputs, training=None):
                def doubled(h, variables, factor):
                    return watch(h, variables, lambda v, g: factor(v, 2.0 * g))

                return super().call(layer, doubled, inputs)

        network = networks.with_layers(lambda: Twice(3))()
        x = rng.normal(size=(5, networks.D))
        with pytest.warns(UserWarning, match="plain Jacobian"):
            expected = kk.kernels.NTK(network).gram(x)
        kk.kernels.register_rule(Twice, WrongRule())
        try:
            with pytest.warns(UserWarning, match="plain Jacobian"):
                gram = kk.kernels.NTK(network).gram(x)
        finally:
            kk.kernels.structured.registry._RULES.pop(Twice)
        np.testing.assert_allclose(gram, expected, rtol=1e-12)
