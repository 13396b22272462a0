"""SavedModels: their signatures, what is in their files, and who can run them."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from exports import CASES, ROWS, make, named
from kernel_cases import CASES as KERNELS
from scipy.special import softmax

import keras_kare as kk

HERE = Path(__file__).parent


@dataclass
class Served:
    model: kk.KAREModel
    x: Any
    y: np.ndarray
    folder: Path
    show: str
    plain: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> dict[str, Served]:
    """All cases, exported and run."""
    root = tmp_path_factory.mktemp("served")
    made = {}
    for name, case in CASES.items():
        model, x, y = make(case)
        folder = root / name / "served"
        model.export(folder, form=case.form, classes=case.classes, verbose=False)
        made[name] = (model, x, y)
    return run(root, made)


def run(root: Path, made: dict[str, tuple], *options: str) -> dict[str, Served]:
    """Run exports on their rows in one process that has neither keras nor us.

    Args:
        root: Holds a folder `served` in a folder of each name.
        made: Models, rows and targets by name.
        *options: For `plain_tensorflow.py`.
    """
    for name, (_, x, _) in made.items():
        np.savez(root / name / "inputs.npz", **named(x))
    done = subprocess.run(
        [sys.executable, HERE / "plain_tensorflow.py", root, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {
        name: Served(
            model,
            x,
            y,
            root / name / "served",
            (root / name / "show.txt").read_text(),
            dict(np.load(root / name / "plain.npz")),
        )
        for name, (model, x, y) in made.items()
    }


def section(show: str, signature: str) -> str:
    """What `saved_model_cli show` says of one signature."""
    found = re.search(
        rf"^signature_def\['{signature}'\]:\n(.*?)(?=^signature_def|^Concrete|\Z)",
        show,
        re.MULTILINE | re.DOTALL,
    )
    assert found, show
    return found.group(1)


@pytest.mark.parametrize("name", CASES)
class TestSignatures:
    def test_outputs(self, served, name):
        case = served[name]
        outputs = case.plain["serving_default output_0"]
        assert outputs.shape == (ROWS, CASES[name].columns)
        assert outputs.dtype == np.float32
        np.testing.assert_allclose(outputs, case.model.predict(case.x), atol=1e-5)
        np.testing.assert_array_equal(outputs, case.plain["serve output_0"])

    def test_any_number_of_rows(self, served, name):
        case = served[name].plain
        one = case["serving_default output_0 of one row"]
        np.testing.assert_allclose(
            one, case["serving_default output_0"][:1], rtol=1e-5, atol=1e-6
        )

    def test_command_line(self, served, name):
        case = served[name].plain
        np.testing.assert_allclose(
            case["cli serving_default output_0"],
            case["serving_default output_0"],
            rtol=1e-6,
            atol=1e-6,
        )

    def test_shown_names(self, served, name):
        shown = section(served[name].show, "serving_default")
        assert "inputs['" in shown
        assert set(re.findall(r"inputs\['(\w+)'\]", shown)) == set(named(served[name].x))
        assert re.findall(r"outputs\['(\w+)'\]", shown) == ["output_0"]
        assert "Method name is: tensorflow/serving/predict" in shown

    def test_classes(self, served, name):
        case, classes = served[name], CASES[name].classes
        if classes is None:
            assert "classify" not in case.show
            return
        shown = section(case.show, "classify")
        assert re.findall(r"outputs\['(\w+)'\]", shown) == ["classes", "scores"]
        assert "DT_STRING" in shown
        scores, names = case.plain["classify scores"], case.plain["classify classes"]
        logits = case.model.predict(case.x) * case.model.head.inverse_temperature
        if logits.shape[1] == 1:
            logits = np.concatenate([0.0 * logits, logits], axis=1)
        np.testing.assert_allclose(scores, softmax(logits, axis=1), atol=1e-5)
        assert scores.dtype == np.float32
        assert names.tolist() == [[c.encode() for c in classes]] * ROWS
        np.testing.assert_allclose(case.plain["cli classify scores"], scores, atol=1e-6)
        assert case.plain["classify classes of one row"].shape == (1, len(classes))


def bytes_of(folder: Path) -> bytes:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("variables.data") for path in files)
    return b"".join(path.read_bytes() for path in files)


def pieces(array: np.ndarray, length: int) -> list[bytes]:
    """The bytes of every run of `length` neighbours in a row, as float32 and float64."""
    flat = array.reshape(len(array), -1)
    runs = np.lib.stride_tricks.sliding_window_view(flat, length, axis=1)
    runs = runs.reshape(-1, length)
    return [run.astype(t).tobytes() for run in runs for t in ("float32", "float64")]


@pytest.mark.parametrize(
    "name", ["one target", "primal of a dual", "images", "residual", "trace"]
)
def test_no_training_row_is_in_a_primal_export(served, name):
    case = served[name]
    content = bytes_of(case.folder)
    assert case.model.head.anchors is not None, "nothing was kept that could leak"
    assert not any(piece in content for piece in pieces(case.x, 2))
    assert not any(piece in content for piece in pieces(case.y.T, ROWS))
    assert not any(piece in content for piece in pieces(case.model.head.dual.numpy().T, 2))
    (kernel, *_) = case.model.network.trainable_variables
    assert pieces(kernel.numpy(), 3)[0] in content, "the search finds what is there"


@pytest.mark.parametrize("name", ["dual", "dual of a primal"])
def test_a_dual_export_holds_the_rows(served, name):
    content = bytes_of(served[name].folder)
    assert all(row.tobytes() in content for row in served[name].x)


def compiler() -> str:
    """The system's C compiler; CI never skips for lack of it."""
    found = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if found is None:
        message = "no C compiler (cc or gcc)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return found


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Path:
    """A C program against the headers and libraries of the TensorFlow wheel."""
    program = tmp_path_factory.mktemp("client") / "client"
    folder = Path(tf.sysconfig.get_lib())
    libraries = [
        next(folder.glob(f"libtensorflow_{part}.*")) for part in ("cc", "framework")
    ]
    source = HERE / "serving_client.c"
    command = [compiler(), "-std=c11", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{tf.sysconfig.get_include()}", source, "-o", program, *libraries]
    done = subprocess.run(
        [*map(str, command), f"-Wl,-rpath,{folder}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return program


def from_c(client: Path, case: Served, signature: str, output: str) -> np.ndarray:
    """What the C program gets of an output of a signature with one array of inputs."""
    shown = section(case.show, signature)
    given, *outputs = re.findall(r"name: (\S+:\d+)", shown)
    found = outputs[re.findall(r"outputs\['(\w+)'\]", shown).index(output)]
    done = subprocess.run(
        [client, case.folder, given, found, *map(str, case.x.shape)],
        input="\n".join(f"{value:.9g}" for value in case.x.ravel()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return np.array(done.stdout.split(), "float32").reshape(len(case.x), -1)


@pytest.mark.parametrize("name", ["one target", "dual", "images"])
def test_c_program_python_and_command_line_agree(served, client, name):
    case = served[name]
    found = from_c(client, case, "serving_default", "output_0")
    for source in ("serving_default output_0", "cli serving_default output_0"):
        np.testing.assert_allclose(found, case.plain[source], rtol=1e-6, atol=1e-6)


def test_c_program_gets_probabilities(served, client):
    case = served["one target"]
    found = from_c(client, case, "classify", "scores")
    np.testing.assert_allclose(found, case.plain["classify scores"], atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)


def test_every_kernel_is_served(client, tmp_path):
    """In plain TensorFlow and, of one array of inputs, in C, in each form that it has.

    One test, so that all run in one process; a sentence for each that is not.
    """
    made, expected = {}, {}
    for name, case in KERNELS.items():
        keras.utils.set_random_seed(0)
        rng, kernel = np.random.default_rng(0), case.make()
        x, new = (
            keras.tree.map_structure(np.float32, case.rows(kernel, n, rng)) for n in (9, 4)
        )
        y = rng.normal(size=(9, 2)).astype("float32")
        for form in ("dual", "primal") if kernel.has_features else ("dual",):
            head = kk.NTKRidgeHead(ridge=0.1, form=form)
            model = kk.KAREModel(kernel, head=head).fit_head(x, y)
            model.export(tmp_path / f"{name}, {form}" / "served", form=form, verbose=False)
            expected[f"{name}, {form}"] = model.predict(new)
            made[f"{name}, {form}"] = (model, new, y)
    wrong = []
    for name, case in run(tmp_path, made, "python").items():
        found = {"plain TensorFlow": case.plain["serving_default output_0"]}
        if isinstance(case.x, np.ndarray):
            found["C"] = from_c(client, case, "serving_default", "output_0")
        for source, values in found.items():
            if not np.allclose(values, expected[name], rtol=1e-5, atol=1e-5):
                wrong.append(f"{name} in {source}: {values} is not {expected[name]}")
    assert not wrong, "\n".join(wrong)


def test_rows_with_nan_are_refused_when_served(served):
    loaded = tf.saved_model.load(str(served["one target"].folder))
    x = served["one target"].x.copy()
    x[3, 1] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match="NaN or Inf"):
        loaded.serve(x)


def test_litert_converts_tanh_networks(served):
    case = served["one target"]
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(case.folder), signature_keys=["serving_default"]
    )
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    run = interpreter.get_signature_runner("serving_default")
    expected = case.plain["serving_default output_0"]
    for rows in (case.x, case.x[:1]):
        found = run(inputs=rows)["output_0"]
        np.testing.assert_allclose(found, expected[: len(rows)], rtol=1e-5, atol=1e-5)


def test_of_a_loaded_model(served, tmp_path):
    case = served["one target"]
    case.model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    loaded.export(tmp_path / "served", verbose=False)
    again = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(again.serve(case.x), case.model.predict(case.x), atol=1e-6)


def test_the_example_in_the_docstring(rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(
        r"```python\n(.*?)```", inspect.getdoc(kk.KAREModel.export), re.DOTALL
    )
    x = rng.normal(size=(12, networks.D)).astype("float32")
    names = {"kk": kk, "tf": tf, "np": np, "network": networks.mlp(), "x": x, "y": x[:, 0]}
    exec(compile(code, "export", "exec"), names)
    assert (tmp_path / "serving" / "saved_model.pb").exists()


def test_the_benchmark_runs(monkeypatch, capsys):
    """Once, on one network; what it measures is not judged here."""
    folder = HERE.parent / "benchmarks"
    options = "--turns 1 --many 1000 --networks dense --targets 2".split()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "argv", ["serving.py", *options])
    runpy.run_path(str(folder / "serving.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert re.search(r"One row, 2 targets: primal / network \d", told), told


class TestBadInput:
    @pytest.mark.parametrize(
        ("classes", "error", "says"),
        [
            ("ab", TypeError, "`classes` must be a sequence"),
            (3, TypeError, "`classes` must be a sequence"),
            (["a"], ValueError, "two names, first that of the target -1"),
            (["a", "b", "c"], ValueError, "3 names for 1 column$"),
            (["a", "a"], ValueError, "must be different"),
        ],
    )
    def test_classes(self, served, tmp_path, classes, error, says):
        with pytest.raises(error, match=says):
            served["one target"].model.export(tmp_path / "s", classes=classes)
        assert not (tmp_path / "s").exists()

    def test_one_name_a_column(self, served, tmp_path):
        with pytest.raises(ValueError, match="one name for each column"):
            served["dual"].model.export(tmp_path / "s", classes=["a", "b"])

    def test_targets_that_are_no_classes(self, rng, tmp_path):
        x = rng.normal(size=(8, networks.D)).astype("float32")
        model = kk.KAREModel(networks.mlp(), head=kk.NTKRidgeHead(ridge=0.1))
        model.fit_head(x, (x[:, 0] > 0).astype("float32"))
        with pytest.raises(ValueError, match=r"solved for labels.*from 0 to 1"):
            model.export(tmp_path / "s", classes=["a", "b"])

    def test_dual_needs_anchors(self, served, tmp_path):
        with pytest.raises(ValueError, match="kept no anchors"):
            served["no rows kept"].model.export(tmp_path / "s", form="dual")

    def test_unsolved(self, tmp_path):
        with pytest.raises(ValueError, match="fit_head"):
            kk.KAREModel(networks.mlp()).export(tmp_path / "s")

    @pytest.mark.parametrize(
        ("option", "says"),
        [
            ({"format": "pickle"}, "`format` must be one of 'tf_saved_model'"),
            ({"format": "onnx"}, "tf2onnx"),
            ({"format": "litert"}, "TFLiteConverter"),
            ({"form": "auto"}, "`form` must be one of"),
        ],
    )
    def test_options(self, served, tmp_path, option, says):
        with pytest.raises(ValueError, match=says):
            served["one target"].model.export(tmp_path / "s", **option)
