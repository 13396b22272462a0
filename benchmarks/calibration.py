"""Calibrated probabilities beside scikit-learn's `CalibratedClassifierCV` of an SVC.

`python benchmarks/calibration.py` prints one table, measured in one run: log loss,
expected calibration error (ten bins of equal width of the largest probability) and
accuracy on rows that did not train, of eight UCI sets and MNIST (`KERAS_KARE_DATA`), half
of whose rows train.
"""

from __future__ import annotations

import argparse

from measure import machine

SETS = (
    "breast-cancer-wisc-diag",
    "ionosphere",
    "statlog-german-credit",
    "mammographic",
    "vertebral-column-3clases",
    "wine",
    "statlog-vehicle",
    "yeast",
    "mnist 3 against 8",
    "mnist",
)


def load(name, seed):
    """Return training and test rows, standardised, with labels: `X, y, X_test, y_test`."""
    import numpy as np
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    from keras_kare import datasets

    if name.startswith("mnist"):
        split = datasets.mnist_digits()
        rows = np.random.default_rng(seed).permutation(len(split.x))
        x, y = split.x.reshape(len(split.x), -1), np.argmax(split.y, axis=1)
        if name != "mnist":
            rows = rows[np.isin(y[rows], (3, 8))]
        x, y = x[rows[:2000]], y[rows[:2000]]
    else:
        data = datasets.load_uci(name)
        x, y = data.x, data.labels
    x, x_test, y, y_test = train_test_split(
        x, y, train_size=0.5, random_state=seed, stratify=y
    )
    if not name.startswith("mnist"):
        scaler = StandardScaler().fit(x)
        x, x_test = scaler.transform(x), scaler.transform(x_test)
    return x.astype("float32"), y, x_test.astype("float32"), y_test


def kare_model(x, y, x_test, seed):
    """Train a network's kernel for labels, a fifth of the rows aside."""
    import keras

    import keras_kare as kk

    keras.utils.set_random_seed(seed)
    dense = keras.layers.Dense
    network = keras.Sequential(
        [keras.Input(x.shape[1:]), dense(64, "gelu"), dense(64, "gelu"), dense(1)]
    )
    model = kk.KAREModel(network)
    model.compile(keras.optimizers.Adam(1e-3), kk.losses.KARE(ridge=1.0, relative=True))
    stop = keras.callbacks.EarlyStopping("val_loss", patience=5, restore_best_weights=True)
    rows = {"validation_split": 0.2, "epochs": 50}
    model.fit(x, y, **rows, callbacks=[stop], verbose=0)
    return model.predict_proba(x_test, verbose=0)


def kare_classifier(x, y, x_test, seed):
    """Fit the estimator, as it comes."""
    import keras_kare as kk

    return kk.sklearn.KAREClassifier(random_state=seed).fit(x, y).predict_proba(x_test)


def calibrated_svc(x, y, x_test, seed):
    """Fit scikit-learn's SVC, as it comes, calibrated by cross-validation, as it comes."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import SVC

    return CalibratedClassifierCV(SVC(random_state=seed)).fit(x, y).predict_proba(x_test)


CONTENDERS = {
    "KAREModel": kare_model,
    "KAREClassifier": kare_classifier,
    "CalibratedClassifierCV(SVC)": calibrated_svc,
}


def calibration_error(p, codes, bins=10):
    """Return the expected calibration error of probabilities `(n, k)`."""
    import numpy as np

    sure, right = p.max(axis=1), p.argmax(axis=1) == codes
    places = np.minimum((sure * bins).astype(int), bins - 1)
    error = 0.0
    for place in range(bins):
        held = places == place
        if np.any(held):
            error += np.mean(held) * abs(np.mean(right[held]) - np.mean(sure[held]))
    return float(error)


def main():
    """Print the table."""
    import keras
    import numpy as np
    from sklearn.metrics import log_loss

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SETS, help="one data set")
    parser.add_argument("--seeds", type=int, default=2, help="splits of each set")
    given = parser.parse_args()
    keras.utils.disable_interactive_logging()
    print(machine())
    print("| data | rows | | log loss | calibration error | accuracy |")
    print("|---|---|---|---|---|---|")
    means = {name: [] for name in CONTENDERS}
    for data in SETS if given.only is None else (given.only,):
        found = {name: [] for name in CONTENDERS}
        for seed in range(given.seeds):
            x, y, x_test, y_test = load(data, seed)
            codes = np.searchsorted(np.unique(y), y_test)
            for name, contender in CONTENDERS.items():
                p = contender(x, y, x_test, seed)
                assert np.all((p >= 0.0) & (p <= 1.0))
                assert np.allclose(p.sum(axis=1), 1.0, atol=1e-5)
                p = p.astype("float64")
                p /= p.sum(axis=1, keepdims=True)
                error = calibration_error(p, codes)
                found[name].append(
                    (log_loss(codes, p), error, np.mean(p.argmax(axis=1) == codes))
                )
        for name, values in found.items():
            mean = np.mean(values, axis=0)
            means[name].append(mean)
            print(f"| {data} | {len(x)} | {name} | {_row(mean)} |", flush=True)
    for name, values in means.items():
        print(f"| mean | | {name} | {_row(np.mean(values, axis=0))} |")


def _row(values):
    return " | ".join(f"{value:.4f}" for value in values)


if __name__ == "__main__":
    main()
