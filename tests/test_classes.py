"""Labels of each kind: classes, metrics, probabilities, and what files keep of them."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn import metrics as sk
from sklearn.datasets import load_digits

import keras_kare as kk
from keras_kare import _labels
from keras_kare.machine import calibration

TRAIN, VALIDATION, TEST = slice(100), slice(100, 160), slice(160, 280)


def signed(codes: np.ndarray, count: int) -> np.ndarray:
    return (2.0 * np.eye(count)[codes] - 1.0).astype("float32")


KINDS = {
    "integers": lambda codes, count: codes + 3,
    "text": lambda codes, count: np.array([f"class {chr(97 + i)}" for i in range(10)])[
        codes
    ],
    "objects": lambda codes, count: np.array([*"abcdefghij"], object)[codes],
    "floats": lambda codes, count: codes.astype("float32"),
    "one-hot": lambda codes, count: np.eye(count, dtype=int)[codes],
    "signs": lambda codes, count: (
        signed(codes, 2)[:, 1] if count == 2 else signed(codes, count)
    ),
}
"""What a user has in place of the numbers of classes."""

KEYS = [(kind, 2) for kind in KINDS] + [("integers", 10), ("text", 10), ("one-hot", 10)]


@dataclass
class Case:
    model: kk.KAREModel
    x: np.ndarray
    y: np.ndarray
    codes: np.ndarray
    logs: dict[str, float]
    said: np.ndarray
    first: np.ndarray

    @property
    def columns(self) -> int:
        return self.first.shape[1]


class Listener(keras.callbacks.Callback):
    """Asks for probabilities of the validation rows when they have been evaluated."""

    def __init__(self, x: np.ndarray):
        super().__init__()
        self.x, self.said = x, None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with warnings.catch_warnings():  # nothing but these rows has calibrated them yet
            warnings.simplefilter("ignore", RuntimeWarning)
            self.said = self.model.predict_proba(self.x, verbose=0)


def compiled_metrics() -> list[Any]:
    return [
        "accuracy",
        keras.metrics.AUC(num_thresholds=4000, name="auc"),
        keras.metrics.F1Score(average="macro", name="f1"),
        "crossentropy",
        keras.metrics.Precision(name="precision"),
        keras.metrics.Recall(name="recall"),
    ]


def expected(codes: np.ndarray, p: np.ndarray, columns: int) -> dict[str, float]:
    """What scikit-learn says of probabilities, as Keras averages over columns."""
    each = np.eye(p.shape[1])[codes]
    if columns == 1:
        each, seen = each[:, 1:], p[:, 1:]
    else:
        seen = p
    return {
        "accuracy": sk.accuracy_score(codes, p.argmax(axis=1)),
        "auc": sk.roc_auc_score(each.ravel(), seen.ravel()),
        "f1": sk.f1_score(codes, p.argmax(axis=1), average="macro"),
        "crossentropy": sk.log_loss(codes, p, labels=np.arange(p.shape[1])),
        "precision": sk.precision_score(each.ravel(), seen.ravel() > 0.5),
        "recall": sk.recall_score(each.ravel(), seen.ravel() > 0.5),
    }


def compare(
    found: dict[str, float], codes: np.ndarray, p: np.ndarray, columns: int
) -> None:
    for name, value in expected(codes, p, columns).items():
        assert found[name] == pytest.approx(value, abs=3e-3 if name == "auc" else 2e-4), (
            name
        )


def network(outputs: int = 1) -> keras.Sequential:
    def drawn(seed: int) -> Any:
        return keras.initializers.GlorotUniform(seed)

    dense = keras.layers.Dense
    return keras.Sequential(
        [
            keras.Input((64,)),
            dense(16, "gelu", kernel_initializer=drawn(0)),
            dense(outputs, kernel_initializer=drawn(1)),
        ]
    )


@pytest.fixture(scope="module")
def cases() -> dict[tuple[str, int], Case]:
    images, digits = load_digits(return_X_y=True)
    images = (images / 16.0).astype("float32")
    made = {}
    for count in (2, 10):
        rows = np.flatnonzero(np.isin(digits, (3, 8)) if count == 2 else digits >= 0)[:280]
        x, codes = images[rows], digits[rows]
        codes = (codes == 8).astype(int) if count == 2 else codes
        for kind in [kind for kind, columns in KEYS if columns == count]:
            y = KINDS[kind](codes, count)
            model = kk.KAREModel(network(), task="classification")
            model.compile(keras.optimizers.Adam(1e-2), "kare", metrics=compiled_metrics())
            gram = model.kernel.gram(x[TRAIN])
            targets, _ = _labels.read("y", y[TRAIN], 100, "classification")
            first = np.asarray(kk.risk.leave_one_out(targets, gram, 0.1))
            listener = Listener(x[VALIDATION])
            history = model.fit(
                x[TRAIN],
                y[TRAIN],
                validation_data=(x[VALIDATION], y[VALIDATION]),
                callbacks=[listener],
                verbose=0,
            )
            logs = {name: values[0] for name, values in history.history.items()}
            made[kind, count] = Case(model, x, y, codes, logs, listener.said, first)
    return made


every = pytest.mark.parametrize("key", KEYS, ids=str)


@every
class TestMetrics:
    def test_during_training(self, cases, key):
        case = cases[key]
        codes, own = case.codes[TRAIN], signed(case.codes[TRAIN], key[1])
        own = own[:, -case.columns :]
        factor = calibration.inverse_temperature(case.first, own, np.ones(100))
        p = np.asarray(calibration.probabilities(case.first, factor))
        compare(case.logs, codes, p, case.columns)

    def test_in_validation(self, cases, key):
        case = cases[key]
        logs = {name[4:]: v for name, v in case.logs.items() if name.startswith("val_")}
        compare(logs, case.codes[VALIDATION], case.said, case.columns)

    def test_in_evaluate(self, cases, key):
        case = cases[key]
        found = case.model.evaluate(case.x[TEST], case.y[TEST], return_dict=True, verbose=0)
        p = case.model.predict_proba(case.x[TEST])
        compare(found, case.codes[TEST], p, case.columns)
        right = (
            case.model.predict_classes(case.x[TEST]) == case.model.classes[case.codes[TEST]]
        )
        assert found["accuracy"] == pytest.approx(np.mean(right), abs=1e-6)


@every
def test_classes_and_predictions_are_those_of_integers(cases, key):
    case, plain = (
        cases[key],
        cases["one-hot" if key[0] == "one-hot" else "integers", key[1]],
    )
    labels = case.y if case.y.ndim == 1 else np.arange(key[1])
    np.testing.assert_array_equal(case.model.classes, np.unique(labels))
    assert case.model.classes.dtype == labels.dtype
    predicted = plain.model.predict(case.x)
    np.testing.assert_allclose(case.model.predict(case.x), predicted, atol=1e-4)
    p = case.model.predict_proba(case.x)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-6)
    assert p.shape == (280, key[1])
    assert np.all((p >= 0.0) & (p <= 1.0))
    found = case.model.predict_classes(case.x)
    assert found.dtype == labels.dtype
    np.testing.assert_array_equal(found, case.model.classes[p.argmax(axis=1)])
    assert case.model.head.report["calibrated_by"] == "validation data"


LOADS = """
import json, sys
import keras, numpy as np
import keras_kare
x = np.load(sys.argv[1])
found = {}
for path in sys.argv[2:]:
    model = keras.saving.load_model(path)
    y = np.load(path.replace(".keras", ".npy"), allow_pickle=True)
    found[path] = {
        "evaluate": model.evaluate(x, y, verbose=0, return_dict=True),
        "proba": model.predict_proba(x, verbose=0).tolist(),
        "classes": model.predict_classes(x, verbose=0).tolist(),
    }
print(json.dumps(found))
"""


def test_files_keep_all_of_it(cases, tmp_path):
    """In a fresh process, by Keras; and in plain TensorFlow."""
    paths = {}
    some = [key for key in cases if key[1] == 10]
    for key in some:
        path = tmp_path / f"{key[0]}.keras"
        cases[key].model.save(path)
        np.save(path.with_suffix(".npy"), cases[key].y[TEST], allow_pickle=True)
        paths[key] = str(path)
    x = cases[some[0]].x[TEST]
    np.save(tmp_path / "x.npy", x)
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(tmp_path / "x.npy"), *paths.values()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for key in some:
        case, loaded = cases[key], found[paths[key]]
        p = case.model.predict_proba(x)
        np.testing.assert_allclose(loaded["proba"], p, atol=1e-6)
        assert loaded["classes"] == case.model.predict_classes(x).tolist()
        compare(loaded["evaluate"], case.codes[TEST], p, case.columns)


@pytest.mark.parametrize("key", [("text", 2), ("integers", 10)], ids=str)
def test_exported_scores_are_the_probabilities(cases, key, tmp_path):
    case = cases[key]
    case.model.export(tmp_path / "served", verbose=False)
    classify = tf.saved_model.load(str(tmp_path / "served")).signatures["classify"]
    found = classify(inputs=tf.constant(case.x[TEST]))
    p = case.model.predict_proba(case.x[TEST])
    np.testing.assert_allclose(found["scores"], p, atol=1e-5)
    names = [str(label).encode() for label in case.model.classes]
    assert found["classes"][0].numpy().tolist() == names


class TestKinds:
    """What users have as labels besides arrays."""

    X = np.random.default_rng(0).normal(size=(24, 64)).astype("float32")
    WORDS = np.array(["b", "a", "c"])[np.arange(24) % 3]

    def asked(self, y: Any, **kwargs: Any) -> Any:
        model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=0.1), **kwargs)
        model.fit_head(self.X, y)
        return model

    def test_data_frames(self):
        pandas = pytest.importorskip("pandas")
        plain = self.asked(self.WORDS).predict(self.X)
        for y in (
            pandas.Series(self.WORDS),
            pandas.Series(self.WORDS, dtype="category"),
            pandas.DataFrame({"y": self.WORDS}),
        ):
            model = self.asked(y)
            np.testing.assert_array_equal(model.predict(self.X), plain)
            assert model.classes.tolist() == ["a", "b", "c"]

    def test_text_of_tensorflow_is_text(self):
        for y in (tf.constant(self.WORDS), np.array(self.WORDS).astype("S").astype(object)):
            model = self.asked(y)
            assert model.classes.tolist() == ["a", "b", "c"]
        rows = tf.data.Dataset.from_tensor_slices((self.X, self.WORDS)).batch(8)
        model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=1e-6)).fit_head(rows)
        assert np.mean(model.predict_classes(self.X) == self.WORDS) > 0.5

    def test_bytes_stay_bytes(self, tmp_path):
        model = self.asked(np.array(self.WORDS).astype("S"))
        assert model.classes.tolist() == [b"a", b"b", b"c"]
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        assert (
            loaded.predict_classes(self.X).tolist()
            == model.predict_classes(self.X).tolist()
        )
        assert loaded.evaluate(self.X, self.WORDS, verbose=0) == pytest.approx(
            model.evaluate(self.X, tf.constant(self.WORDS), verbose=0)
        )

    @pytest.mark.parametrize("y", [np.arange(24) % 2, np.array(["n", "y"] * 12)])
    def test_datasets_train_as_arrays(self, y):
        class Batches(keras.utils.PyDataset):
            def __len__(self) -> int:
                return 2

            def __getitem__(self, i: int) -> Any:
                return TestKinds.X[12 * i : 12 * i + 12], y[12 * i : 12 * i + 12]

        data = tf.data.Dataset.from_tensor_slices((self.X, y)).batch(12)
        found = []
        for given in ((self.X, y), (data,), (Batches(),)):
            model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=0.1))
            model.compile(keras.optimizers.Adam(1e-2), "kare", metrics=["AUC"])
            size = {} if len(given) == 1 else {"batch_size": 12}
            history = model.fit(
                *given,
                **size,
                epochs=2,
                shuffle=False,
                validation_data=(self.X, y),
                verbose=0,
            )
            found.append((model.predict(self.X), history.history["AUC"]))
            again = model.evaluate(*given, verbose=0)
            assert again[0] == pytest.approx(
                model.evaluate(self.X, y, verbose=0)[0], rel=1e-5
            )
        for predictions, auc in found[1:]:
            np.testing.assert_allclose(predictions, found[0][0], rtol=2e-4, atol=1e-5)
            np.testing.assert_allclose(auc, found[0][1], atol=1e-5)

    @pytest.mark.parametrize("solver", ["primal", "nystrom"])
    def test_streams(self, solver):
        data = tf.data.Dataset.from_tensor_slices((self.X, self.WORDS)).batch(10)
        head = kk.NTKRidgeHead(ridge=0.1, solver=solver)
        model = kk.KAREModel(network(), head=head).fit_head(data)
        assert model.classes.tolist() == ["a", "b", "c"]
        with pytest.raises(ValueError, match="validation_data"):
            model.predict_proba(self.X)
        model.fit_head(data, validation_data=(self.X, self.WORDS))
        assert model.predict_proba(self.X).shape == (24, 3)

    def test_unknown_labels_of_a_dataset_are_told(self):
        data = tf.data.Dataset.from_tensor_slices((self.X, np.arange(24) % 2)).batch(12)
        model = self.asked(np.arange(24) % 2)
        other = data.map(lambda x, y: (x, y + 1))
        with pytest.raises(tf.errors.InvalidArgumentError, match="none of the 2 classes"):
            model.evaluate(other, verbose=0)

    @pytest.mark.parametrize("solver", ["spectral", "cholesky", "primal", "cg", "eigenpro"])
    def test_every_solver_calibrates(self, solver):
        x = np.random.default_rng(1).normal(size=(120, 64)).astype("float32")
        y = (x[:, 0] + 0.3 * x[:, 1] > 0).astype(int)
        head = kk.NTKRidgeHead(ridge=10.0, solver=solver)
        model = kk.KAREModel(network(), head=head).fit_head(x, y)
        p = model.predict_proba(x)
        assert sk.log_loss(y, p) < 0.68
        assert model.head.report["calibrated_by"] is not None

    def test_weights_of_classes_by_label_and_by_number(self):
        y = self.WORDS
        by_label = {"a": 1.0, "b": 2.0, "c": 3.0}
        found = []
        for weights in (by_label, {0: 1.0, 1: 2.0, 2: 3.0}):
            model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=0.1))
            model.compile(keras.optimizers.Adam(1e-2), "kare")
            model.fit(self.X, y, class_weight=weights, verbose=0)
            found.append(model.predict(self.X))
        rows = np.array([by_label[label] for label in y])
        model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=0.1))
        model.compile(keras.optimizers.Adam(1e-2), "kare")
        model.fit(self.X, y, sample_weight=rows, verbose=0)
        for predictions in found:
            np.testing.assert_allclose(predictions, model.predict(self.X), atol=1e-5)

    def test_other_labels_in_a_second_fit(self):
        model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=0.1))
        model.compile("adam", "kare", metrics=["accuracy", "AUC"])
        for y in (self.WORDS, np.arange(24) % 2, np.arange(24) % 4):
            model.fit(self.X, y, verbose=0)
            np.testing.assert_array_equal(model.classes, np.unique(y))
            assert len(model.evaluate(self.X, y, verbose=0)) == 3
        assert model.train_on_batch(self.X, np.arange(24) % 4)[0] > 0.0


class TestCalibration:
    @pytest.mark.parametrize("columns", [1, 3])
    def test_factor_has_the_least_cross_entropy(self, columns):
        rng = np.random.default_rng(0)
        scores = rng.normal(size=(200, columns))
        codes = np.argmax(scores, axis=1) if columns > 1 else (scores[:, 0] > 0).astype(int)
        codes[:60] = 0
        weights = rng.integers(0, 3, size=200).astype(float)
        count = max(2, columns)
        own = np.eye(count)[codes]
        targets = 2.0 * own[:, -columns:] - 1.0
        logits = np.hstack([np.zeros((200, 1)), scores]) if columns == 1 else scores
        held = weights @ own
        share = ((held + 1.0) / (held + 2.0))[codes][:, None]
        wanted = np.where(own > 0.0, share, (1.0 - share) / (count - 1))

        def loss(log_factor: float) -> float:
            log_p = log_softmax(np.exp(log_factor) * logits, axis=1)
            return -float(np.sum(weights[:, None] * wanted * log_p))

        best = minimize_scalar(
            loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}
        )
        found = float(calibration.inverse_temperature(scores, targets, weights))
        assert np.log(found) == pytest.approx(best.x, abs=1e-5)

    def test_rows_that_trained_are_told(self):
        x, y = TestKinds.X, np.arange(24) % 2
        model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=0.1))
        model.compile("adam", "kare")
        model.fit(x, y, verbose=0)
        with pytest.warns(RuntimeWarning, match="on rows that trained the kernel"):
            model.predict_proba(x)

    def test_rows_of_a_rehearsal_calibrate(self, recwarn):
        x, y = TestKinds.X, np.arange(24) % 2
        model = kk.KAREModel(network())
        model.compile("adam", "kare")
        model.fit(x, y, verbose=0)
        model.predict_proba(x)
        assert "rehearsal" in model.head.report["calibrated_by"]
        assert not recwarn.list

    @pytest.mark.parametrize("weighted", [False, True])
    def test_left_out_rows_are_predicted_by_the_others(self, weighted):
        x = np.random.default_rng(2).normal(size=(20, 64)).astype("float32")
        y = (x[:, 0] > 0).astype(int)
        weights = np.arange(20.0) % 3 if weighted else None
        head = kk.NTKRidgeHead(ridge=0.3, relative=False)
        model = kk.KAREModel(network(), head=head).fit_head(x, y, sample_weight=weights)
        evidence = model.machine.state.evidence
        gram = np.asarray(model.kernel.gram(x, dtype="float64"))
        w = np.ones(20) if weights is None else weights
        signs, total, expected = 2.0 * y - 1.0, w.sum(), []
        for i in np.flatnonzero(w):
            rest = np.flatnonzero((w > 0) & (np.arange(20) != i))
            matrix = gram[np.ix_(rest, rest)] * w[rest] + total * 0.3 * np.eye(len(rest))
            alpha = np.linalg.solve(matrix, signs[rest])
            expected.append((gram[i, rest] * w[rest]) @ alpha)
        np.testing.assert_allclose(evidence.scores[:, 0], expected, rtol=1e-5, atol=1e-6)


class TestCheckpoints:
    """A file of `ModelCheckpoint` holds the machine that was asked for, or says so."""

    X = np.random.default_rng(0).normal(size=(90, 64)).astype("float32")
    Y = np.sin(X[:, :1])

    def trained(self, path: Path, head: Any, rows: int = 60, **kwargs: Any) -> kk.KAREModel:
        model = kk.KAREModel(network(), head=head, validation_anchors=40)
        model.compile(keras.optimizers.Adam(1e-3), "kare")
        save = keras.callbacks.ModelCheckpoint(path, **kwargs)
        held = {"validation_data": (self.X[60:], self.Y[60:])} if rows == 60 else {}
        model.fit(
            self.X[:rows], self.Y[:rows], epochs=2, callbacks=[save], verbose=0, **held
        )
        return model

    @pytest.mark.parametrize("ridge", [0.2, "auto"])
    def test_holds_the_machine_of_all_rows(self, tmp_path, ridge, recwarn):
        path = tmp_path / "best.keras"
        model = self.trained(path, kk.NTKRidgeHead(ridge=ridge), save_best_only=True)
        loaded = keras.saving.load_model(path)
        np.testing.assert_allclose(loaded.predict(self.X), model.predict(self.X), atol=1e-5)
        assert loaded.head.report["rows"] == 60
        assert loaded.head.report["chosen_by"] == model.head.report["chosen_by"]
        assert not [w for w in recwarn.list if issubclass(w.category, RuntimeWarning)]

    def test_says_where_no_ridge_could_be_chosen(self, tmp_path):
        path = tmp_path / "last.keras"
        self.trained(path, kk.NTKRidgeHead(), rows=90)
        with pytest.warns(
            RuntimeWarning, match="ridge of the loss, since one is chosen at"
        ):
            loaded = keras.saving.load_model(path)
        with pytest.warns(RuntimeWarning, match="not the one that `fit`"):
            loaded.predict(self.X)
        loaded.fit_head(
            self.X[:60], self.Y[:60], validation_data=(self.X[60:], self.Y[60:])
        )
        assert loaded.head.report["chosen_by"] == "validation data"

    def test_weights_alone_say_so(self, tmp_path):
        path = tmp_path / "last.weights.h5"
        model = self.trained(path, kk.NTKRidgeHead(ridge=0.2), save_weights_only=True)
        with pytest.warns(RuntimeWarning, match="40 of 60 rows"):
            model.load_weights(path)
        with pytest.warns(RuntimeWarning, match="40 of 60 rows"):
            model.predict(self.X)

    def test_backups_say_nothing(self, tmp_path, recwarn):
        model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=0.2))
        model.compile(keras.optimizers.Adam(1e-3), "kare")
        held = (self.X[60:], self.Y[60:])

        class Stop(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                if epoch == 1:
                    raise KeyboardInterrupt

        for epochs, more in ((3, [Stop()]), (3, [])):
            backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
            given = {"callbacks": [backup, *more], "validation_data": held, "verbose": 0}
            try:
                model.fit(self.X[:60], self.Y[:60], epochs=epochs, **given)
            except KeyboardInterrupt:
                assert more
        assert not [w for w in recwarn.list if issubclass(w.category, RuntimeWarning)]
