"""Kernels, and rounds of feature machines, equal those of xRFM and GPyTorch.

`tests/fixtures/make_peers.py` says how their values were made.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import keras_kare as kk

k = kk.kernels


@pytest.fixture(scope="module")
def peers():
    with np.load(Path(__file__).parent / "fixtures" / "peers.npz") as file:
        return dict(file)


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
class TestValues:
    @pytest.mark.parametrize(
        ("name", "make"),
        [
            ("gaussian", k.Gaussian),
            ("matern_0.5", lambda *given: k.Matern(0.5, *given)),
            ("matern_1.5", lambda *given: k.Matern(1.5, *given)),
            ("matern_2.5", lambda *given: k.Matern(2.5, *given)),
        ],
    )
    def test_a_length_a_column(self, peers, name, make):
        kernel = make(1.0, "diagonal")
        kernel.build(peers["x"].shape)
        kernel.log_scale.assign(np.log(peers["lengths"]))
        same(kernel.cross(peers["new"], peers["x"]), peers[f"gpytorch_{name}"])

    def test_products(self, peers):
        kernel = k.Polynomial(3, 1.0, 0.7)
        same(kernel.cross(peers["new"], peers["x"]), peers["gpytorch_polynomial"])


@pytest.mark.usefixtures("float64")
def test_two_rounds_of_a_feature_machine(peers):
    """xRFM divides `M` by its largest entry, and we by its mean diagonal: scales differ."""
    x, new, y = (peers[name] for name in ("x", "new", "y"))
    scale = float(peers["scale"])
    kernel = k.Laplace(scale, metric="full")
    for i in range(2):
        head = kk.NTKRidgeHead(
            ridge=float(peers["ridge"]) / len(x), relative=False, intercept=False
        )
        model = kk.KAREModel(kernel, head).fit_head(x, y)
        outer = model.agop(new)
        for name, found in {
            "gram": kernel.gram(x),  # whose diagonal is off by 2e-8 there
            "cross": kernel.cross(new, x),
            "agop": len(new) * outer,
        }.items():
            np.testing.assert_allclose(found, peers[f"xrfm_{name}_{i}"], atol=1e-6)
        kernel.set_metric(outer)
        largest = np.max(outer) / np.mean(np.diag(outer))
        kernel.log_scale.assign(np.log(scale) + 0.5 * np.log(largest))
