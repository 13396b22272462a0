"""The estimators on tables of few and many rows, beside gradient-boosted trees.

`python benchmarks/tables.py` prints one table: data set, rows of training, estimator,
seconds of `fit` and of `score`, peak memory of the process, and accuracy or R² on rows
that did not train. Each line is a process of its own, so that memory is its own; what
importing takes is in it. `--only NAME` runs one data set, and `--rows N` those of so many
rows.

Data sets: `friedman` (regression, `make_friedman1` with noise 1; fifteen of twenty columns
mean nothing), `clusters` (`make_classification`, twenty columns), and `adult` and
`statlog-shuttle` from UCI (`KERAS_KARE_DATA`), three quarters of whose rows train.
"""

from __future__ import annotations

import argparse
import json
import time

from measure import in_fresh_process, machine, peak_megabytes

TEST_ROWS = 20_000
CASES = (
    ("friedman", 3000),
    ("friedman", 8000),
    ("friedman", 20_000),
    ("friedman", 200_000),
    ("clusters", 20_000),
    ("clusters", 200_000),
    ("adult", 0),
    ("statlog-shuttle", 0),
)
"""Data sets and rows of training; 0 for as many as there are."""

ESTIMATORS = ("KARE", "HistGradientBoosting")


def load(name, rows):
    """Return training and test rows: `X, y, X_test, y_test`."""
    import numpy as np
    from sklearn.datasets import make_classification, make_friedman1
    from sklearn.model_selection import train_test_split

    from keras_kare.datasets import load_uci

    if name == "friedman":
        X, y = make_friedman1(rows + TEST_ROWS, n_features=20, noise=1.0, random_state=0)
    elif name == "clusters":
        X, y = make_classification(
            rows + TEST_ROWS,
            n_features=20,
            n_informative=10,
            n_clusters_per_class=8,
            flip_y=0.05,
            random_state=0,
        )
    else:
        data = load_uci(name)
        X, y = data.x, data.labels
        X, X_test, y, y_test = train_test_split(X, y, random_state=0, stratify=y)
        return X, y, X_test, y_test
    return X[:rows], np.asarray(y[:rows]), X[rows:], y[rows:]


def make(estimator, regression):
    """Return an estimator with its defaults."""
    if estimator == "KARE":
        from keras_kare.sklearn import KAREClassifier, KARERegressor

        return (KARERegressor if regression else KAREClassifier)(random_state=0)
    from sklearn.ensemble import (
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
    )

    classes = HistGradientBoostingRegressor, HistGradientBoostingClassifier
    return classes[0 if regression else 1](random_state=0)


def measure(name, rows, estimator):
    """Print what one estimator takes, and how well it predicts, as JSON."""
    X, y, X_test, y_test = load(name, rows)
    fitted = make(estimator, name == "friedman")
    begun = time.perf_counter()
    fitted.fit(X, y)
    fit = time.perf_counter() - begun
    begun = time.perf_counter()
    score = fitted.score(X_test, y_test)
    predict = time.perf_counter() - begun
    done = getattr(fitted, "approximation_", None)
    result = {
        "rows": len(X),
        "fit": fit,
        "predict": predict,
        "megabytes": peak_megabytes(),
        "score": score,
        "centres": done["centres"] if done else None,
        "kernel_error": max(done["kernel_error"]) if done else None,
    }
    print(json.dumps(result))


def table(only, rows):
    """Print the table, a line as soon as it is measured."""
    print(machine())
    print(
        "| data | rows | estimator | fit | score | peak memory | accuracy, R² | centres |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, count in CASES:
        if (only and name != only) or (rows and count != rows):
            continue
        for estimator in ESTIMATORS:
            found = in_fresh_process(__file__, "--measure", name, count, estimator)
            centres = found["centres"]
            note = f"{centres}, error {found['kernel_error']:.1e}" if centres else ""
            print(
                f"| {name} | {found['rows']:,} | {estimator} | {found['fit']:.1f} s "
                f"| {found['predict']:.2f} s | {found['megabytes'] / 1000:.2f} GB "
                f"| {found['score']:.4f} | {note} |",
                flush=True,
            )


def main():
    """Read arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs=3, metavar=("NAME", "ROWS", "ESTIMATOR"))
    parser.add_argument("--only", choices=sorted({name for name, _ in CASES}))
    parser.add_argument("--rows", type=int)
    arguments = parser.parse_args()
    if arguments.measure:
        name, rows, estimator = arguments.measure
        measure(name, int(rows), estimator)
    else:
        table(arguments.only, arguments.rows)


if __name__ == "__main__":
    main()
