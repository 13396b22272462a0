"""The head: forms, ridges, report, staleness."""

from __future__ import annotations

import warnings

import keras
import networks
import numpy as np
import pytest
from gaussian import Gaussian

import keras_kare as kk


def machine(rng, c=1, outputs="sum", network=None, **head):
    network = network or networks.mlp(depth=2, c=c)
    kernel = kk.kernels.NTK(network, outputs)
    return kk.KAREModel(kernel, head=kk.NTKRidgeHead(**{"ridge": 1e-2, **head}))


def rows(rng, n=20, targets=1):
    x = rng.normal(size=(n, networks.D))
    return x, np.sin(x[:, :1] + np.arange(targets)) + 0.1 * rng.normal(size=(n, targets))


@pytest.mark.usefixtures("float64")
class TestForms:
    @pytest.mark.parametrize("targets", [1, 10])
    @pytest.mark.parametrize("outputs", ["sum", "trace"])
    @pytest.mark.parametrize("c", [1, 3])
    def test_primal_equals_dual(self, rng, targets, outputs, c):
        x, y = rows(rng, targets=targets)
        dual = machine(rng, c, outputs, form="dual")
        primal = machine(rng, c, outputs, network=dual.network, form="primal")
        dual.fit_head(x, y)
        primal.fit_head(x, y)
        new = rng.normal(size=(7, networks.D))
        np.testing.assert_allclose(primal.predict(new), dual.predict(new), atol=1e-8)
        gram = np.asarray(dual.kernel.gram(x))
        cross = np.asarray(dual.kernel.cross(new, x))
        ridge = dual.head.ridge_value
        expected = cross @ np.linalg.solve(gram + len(x) * ridge * np.eye(len(x)), y)
        np.testing.assert_allclose(dual.predict(new), expected, atol=1e-8)

    def test_forms_are_reported_and_auto_is_cheaper(self, rng):
        x, y = rows(rng)
        assert form_of(machine(rng, form="dual"), x, y) == "dual"
        assert form_of(machine(rng, form="primal"), x, y) == "primal"
        # Few parameters and many rows: primal. Two rows and many targets: dual.
        assert form_of(machine(rng), *rows(rng, n=200)) == "primal"
        wide = networks.mlp(depth=2, width=50)
        assert form_of(machine(rng, network=wide), *rows(rng, n=2, targets=20)) == "dual"

    def test_many_targets_with_a_fallback_variable(self, rng):
        x, y = rows(rng, targets=3)
        network = networks.Tied()
        network(x)
        dual = machine(rng, network=network, form="dual")
        primal = machine(rng, network=network, form="primal")
        with pytest.warns(UserWarning, match="plain Jacobian"):
            dual.fit_head(x, y)
        with pytest.warns(UserWarning, match="plain Jacobian"):
            primal.fit_head(x, y)
        np.testing.assert_allclose(primal.predict(x), dual.predict(x), atol=1e-8)

    def test_recurrent_primal(self, rng):
        """Where TensorFlow has no forward mode, double reverse mode."""
        network = networks.own_cell()
        x, y = rng.normal(size=(4, 2, 2)), rng.normal(size=(4, 1))
        primal = machine(rng, network=network, form="primal")
        with pytest.warns(UserWarning, match="plain Jacobian"):
            primal.fit_head(x, y)
        dual = primal.machine.in_form("dual")
        np.testing.assert_allclose(primal.predict(x), dual(x), atol=1e-8)


@pytest.mark.usefixtures("float64")
class TestAsALayer:
    @pytest.mark.parametrize("intercept", [False, True])
    def test_takes_kernel_values_with_the_anchors(self, rng, intercept):
        x, y = rows(rng, targets=2)
        model = machine(rng, form="dual", intercept=intercept).fit_head(x, y)
        new = rng.normal(size=(4, networks.D))
        cross = model.kernel.cross(new, model.head.anchors)
        np.testing.assert_allclose(model.head(cross), model.predict(new), rtol=1e-10)
        assert model.head.compute_output_shape(cross.shape) == (4, 2)

    def test_without_a_dual_solution_it_says_so(self, rng):
        x, y = rows(rng)
        head = kk.NTKRidgeHead(ridge=0.1, keep_anchors=False)
        with pytest.raises(ValueError, match="no dual solution"):
            head(np.eye(20))
        kk.KAREModel(networks.mlp(), head=head).fit_head(x, y)
        with pytest.raises(ValueError, match="no dual solution"):
            head(np.eye(20))


def form_of(model, x, y):
    model.fit_head(x, y)
    return model.head.report["form"]


class TestStaleness:
    def test_solved_again_when_weights_change_from_outside(self, rng):
        x, y = rows(rng)
        model = machine(rng)
        model.fit_head(x, y)
        before = model.predict(x)
        model.network.set_weights([1.3 * w for w in model.network.get_weights()])
        after = model.predict(x)
        assert np.max(np.abs(after - before)) > 1e-4
        fresh = machine(rng, network=model.network)
        fresh.fit_head(x, y)
        np.testing.assert_allclose(after, fresh.predict(x), atol=1e-5)

    def test_a_layer_frozen_later_is_a_change(self, rng):
        x, y = rows(rng)
        model = machine(rng)
        model.fit_head(x, y)
        model.predict(x)
        model.network.layers[0].trainable = False
        after = model.predict(x)
        fresh = machine(rng, network=model.network)
        fresh.fit_head(x, y)
        np.testing.assert_allclose(after, fresh.predict(x), atol=1e-5)

    @pytest.mark.parametrize("form", ["dual", "primal"])
    def test_traced_predictions_follow_what_trains(self, rng, form):
        """Between sets of variables of equal shapes, too."""
        x, y = rows(rng)
        network = networks.mlp(depth=2, width=networks.D)
        model = machine(rng, network=network, form=form)
        network.layers[1].trainable = False
        model.fit_head(x, y)
        model.predict(x)
        model.evaluate(x, y, verbose=0)
        network.layers[1].trainable, network.layers[0].trainable = True, False
        fresh = machine(rng, network=network, form=form)
        fresh.fit_head(x, y)
        np.testing.assert_allclose(model.predict(x), fresh.predict(x), atol=1e-5)
        np.testing.assert_allclose(
            model.evaluate(x, y, verbose=0), fresh.evaluate(x, y, verbose=0), rtol=1e-4
        )

    def test_an_aborted_fit_keeps_the_ridge_that_was_chosen(self, rng):
        (x, y), (xv, yv) = rows(rng), rows(rng, n=15)
        model = machine(rng, ridge="auto")
        model.compile("sgd", "kare")
        model.fit_head(x, y, validation_data=(xv, yv))
        chosen = model.head.report["relative_ridge"]

        def interrupt(epoch, logs):
            raise KeyboardInterrupt

        stop = keras.callbacks.LambdaCallback(on_epoch_begin=interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.fit(x, y, callbacks=[stop], verbose=0)
        model.predict(x)
        assert model.head.report["relative_ridge"] == pytest.approx(chosen)

    def test_a_default_ridge_is_announced(self, rng):
        x, y = rows(rng)
        model = machine(rng, ridge="auto")
        model.machine.state.hold(x.astype("float32"), y)
        with pytest.warns(UserWarning, match="relative ridge of 1"):
            model.predict(x)

    def test_refused_without_rows(self, rng):
        x, y = rows(rng)
        model = machine(rng, keep_anchors=False)
        model.fit_head(x, y)
        assert model.head.anchors is None
        assert model.head.dual is None
        assert model.predict(x).shape == (20, 1)
        model.network.set_weights([1.3 * w for w in model.network.get_weights()])
        with pytest.raises(ValueError, match="fit_head"):
            model.predict(x)

    def test_the_chosen_ridge_is_kept(self, rng):
        (x, y), (xv, yv) = rows(rng), rows(rng, n=15)
        model = machine(rng, ridge="auto")
        model.fit_head(x, y, validation_data=(xv, yv))
        chosen = model.head.report["relative_ridge"]
        model.network.set_weights([1.1 * w for w in model.network.get_weights()])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.predict(x)
        assert model.head.report["relative_ridge"] == pytest.approx(chosen)

    def test_a_fresh_head_is_not_solved_again(self, rng):
        x, y = rows(rng)
        model = machine(rng)
        model.fit_head(x, y)
        seconds = model.head.report["seconds"]
        model.predict(x)
        model(x)
        assert model.head.report["seconds"] == seconds


class TestResidual:
    def test_corrects_the_network(self, rng):
        x, y = rows(rng, targets=2)
        network = networks.mlp(c=2)
        for form in ("dual", "primal"):
            model = machine(rng, network=network, residual=True, ridge=1e-2, form=form)
            model.fit_head(x, y)
            plain = machine(rng, network=network, ridge=1e-2)
            f = np.asarray(network(x))
            plain.fit_head(x, y - f)
            np.testing.assert_allclose(model.predict(x), f + plain.predict(x), atol=1e-4)
            np.testing.assert_allclose(model.network.predict(x, verbose=0), f, atol=1e-6)

    def test_needs_as_many_targets_as_outputs(self, rng):
        x, y = rows(rng, targets=3)
        with pytest.raises(ValueError, match="residual=True"):
            machine(rng, residual=True).fit_head(x, y)

    def test_needs_a_network(self, rng):
        x, y = rows(rng)
        model = kk.KAREModel(Gaussian(), head=kk.NTKRidgeHead(ridge=0.1, residual=True))
        with pytest.raises(ValueError, match="corrects a network"):
            model.fit_head(x, y)


class TestOtherKernels:
    def test_primal_is_refused(self, rng):
        x, y = rows(rng)
        model = kk.KAREModel(Gaussian(), head=kk.NTKRidgeHead(ridge=0.1, form="primal"))
        with pytest.raises(ValueError, match="no primal form"):
            model.fit_head(x, y)
        with pytest.raises(NotImplementedError, match="primal"):
            Gaussian().vjp(x, y)
        with pytest.raises(NotImplementedError, match="primal"):
            Gaussian().jvp(x, [])
