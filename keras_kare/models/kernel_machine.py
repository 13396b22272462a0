"""A kernel and its head as a Keras model: solving, predicting, saving."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _labels, _validation
from keras_kare._arrays import plain
from keras_kare._sentences import alone
from keras_kare._step import columns
from keras_kare.kernels import NTK, Kernel, ties
from keras_kare.kernels.operator import ONE_VALUE
from keras_kare.kernels.structured.untouched import restored
from keras_kare.layers import NTKRidgeHead
from keras_kare.machine import Choice, Machine, Rows, calibration
from keras_kare.machine import ridge as ridges
from keras_kare.machine.outer_product import agop
from keras_kare.metrics import Wanted
from keras_kare.models import (
    batches,
    classification,
    gathering,
    intake,
    labelled,
    training_step,
)
from keras_kare.models.export import check_format, export_saved_model
from keras_kare.models.summary import described
from keras_kare.models.watch import Watch, watched
from keras_kare.solvers import Solver


class KernelMachine(keras.Model):
    """A kernel machine whose kernel stays as it is: the half of `KAREModel` that predicts.

    Args:
        kernel, head, task, name: As of `KAREModel`.
    """

    def __init__(
        self,
        kernel: keras.Model | Kernel,
        head: NTKRidgeHead | None = None,
        task: str = "auto",
        name: str | None = None,
        **kwargs: Any,
    ):
        _validation.check_option("task", task, _labels.TASKS)
        if isinstance(kernel, KernelMachine):
            raise TypeError(
                "`kernel` must be a network or a kernel, and is a kernel machine already: "
                f"pass its `network`. Received: kernel={kernel.name!r} of type "
                f"{type(kernel).__name__}"
            )
        if isinstance(kernel, keras.Model):
            kernel = NTK(kernel)
        if not isinstance(kernel, Kernel):
            raise TypeError(
                "`kernel` must be a `keras.Model` or a kernel of `keras_kare.kernels`. "
                f"Received: kernel={kernel!r} of type {type(kernel).__name__}"
            )
        if isinstance(kernel, NTK) and kernel.outputs == "full":
            raise ValueError(f"`kernel` must suit KARE and the head. {ONE_VALUE}")
        head = NTKRidgeHead() if head is None else head
        if not isinstance(head, NTKRidgeHead):
            raise TypeError(
                "`head` must be a `keras_kare.NTKRidgeHead`. "
                f"Received: head={head!r} of type {type(head).__name__}"
            )
        # Only the network may be of mixed precision: in `__call__`, Keras would hand the
        # kernel casts of the weights, which nothing can be differentiated by.
        policy = keras.dtype_policies.get(
            kwargs.pop("dtype", None) or keras.config.dtype_policy()
        )
        super().__init__(name=name, dtype=policy.variable_dtype, **kwargs)
        self.kernel = kernel
        self.head = head
        self.task = task
        self._wanted = Wanted()
        self._traced_for: Any = None
        network = self.network
        if kernel.built or (network is not None and network.built):
            kernel.built = self.built = True

    @property
    def network(self) -> keras.Model | None:
        """The network of the kernel, or `None` where the kernel has none."""
        return getattr(self.kernel, "network", None)

    @property
    def machine(self) -> Machine:
        """The kernel machine of the head and the kernel."""
        return self.head.on(self.kernel)

    @property
    def classes(self) -> np.ndarray | None:
        """The classes of a classification, `(k,)`, sorted, in the type of the labels."""
        classes = self.head.classes
        return None if classes is None else classes.labels

    def summary(self, *args: Any, **kwargs: Any) -> None:
        """Print the network's layers, as it would itself, and lines on kernel and head.

        Args as in `keras.Model.summary`.
        """
        network = self.network
        shown = super().summary if network is None else network.summary
        shown(*args, **kwargs)
        for line in described(self):
            (kwargs.get("print_fn") or print)(line)

    def build(self, input_shape: Any) -> None:
        if not self.kernel.built:
            self.kernel.build(input_shape)
        self.built = True

    @alone
    def __call__(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        # Keras forgets losses of all layers inside; those of the network are its user's.
        with restored(self.kernel if self.network is None else self.network):
            return super().__call__(*args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        """Return the kernel machine's outputs for the rows `inputs`, `(n, c)`.

        A stale head is solved again first; inside a `tf.function` of your own the head
        is used as it is, so call `predict` or the model itself once after training.
        (`tf.saved_model.save` writes a `tf.Module` with such a function.)
        """
        if tf.executing_eagerly():
            self._refresh_head()
        return self.machine(inputs)

    @alone
    def fit_head(
        self,
        x: Any,
        y: Any = None,
        validation_data: Any = None,
        sample_weight: Any = None,
    ) -> Self:
        """Solve the head on rows, without any training.

        On a network trained by other means this is the paper's after-NTK.

        Args:
            x: Inputs `(n, ...)` or a dataset of `(x, y)` batches, which is read to its
                end (`dataset.take(...)` gives an endless one an end). With a head whose
                `solver` is `"primal"`, `"nystrom"` or `"eigenpro"`, a dataset is
                streamed: its rows are never in memory together, and none are kept but
                the centres of `"nystrom"`.
            y: Labels or targets, as in `fit`. (Of a stream, labels take one more pass.)
            validation_data: Rows to choose `ridge="auto"` on, as in `fit`. Without
                them, leave-one-out chooses, if the network has not been trained; for
                a trained one the errors of its own training rows choose far too small
                a ridge, so `λ̃ = 1` is used, with a warning. (Training that neither this
                model's nor the network's `fit` did cannot be seen: pass rows.)
            sample_weight: As in `fit`.

        Returns:
            The model.

        Raises:
            ValueError: For bad input, named.
        """
        x, y = intake.taken(self.kernel, x, y)
        stream = None
        if self._streams(x):
            gathering.check_alone(y, sample_weight)
            classes = labelled.classes_in(x, None, self.task)
            rows = gathering.begin(x, None, 2, self.task, classes)
            stream = gathering.stream(x, None, self.task, classes)
        else:
            rows = gathering.gather(x, y, None, "", sample_weight, None, self.task)
        validation_data = intake.validation_taken(self.kernel, validation_data)
        validation = gathering.gather_validation(validation_data, None, rows.classes)
        self._check_rows(rows, validation)
        classification.tell_of_targets(self, rows)
        choice = None if stream else self._choice_without_rows(validation)
        self.machine.state.classes = rows.classes
        self.machine.solve(stream or rows, validation, choice)
        return self

    @alone
    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> np.ndarray:
        """Return the kernel machine's outputs, `(n, c)`.

        Args:
            x: Inputs `(n, ...)`, a dataset, or a generator of batches: of inputs, `(x,)`
                or `(x, y)`.
            batch_size: Rows at a time. Defaults to 1,024.
            verbose, steps, callbacks: As in Keras.

        Raises:
            ValueError: If no head was solved, if it is stale and kept no rows, or if
                `x` is empty or holds NaN or Inf.
        """
        batches.check_ends(x, steps)
        self._refresh_head()
        if batches.is_dataset(x) or intake.is_iterator(x):
            x = intake.opened(self.kernel, x, targets=False)
        else:
            batch_size = gathering.prediction_batch_size(batch_size)
            x = self._prediction_rows(x)
            whole = gathering.in_one_batch(self, (x,), batch_size, steps)
            x, steps = (x, steps) if whole is None else (whole, 1)
        self._forget_stale_traces()
        return super().predict(
            x,
            batch_size=batch_size,
            verbose=verbose,
            steps=steps,
            callbacks=watched(callbacks, Watch(self)),
        )

    @alone
    def predict_on_batch(self, x: Any) -> np.ndarray:
        """Return the kernel machine's outputs for one batch, `(n, c)`, as `predict`."""
        self._refresh_head()
        x = self._prediction_rows(x)
        self._forget_stale_traces()
        return super().predict_on_batch(x)

    @alone
    def predict_proba(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> np.ndarray:
        """Return calibrated probabilities of the classes, `(n, k)`; rows sum to one.

        The sigmoid (two classes) or softmax of the outputs times one number (temperature
        scaling), so that the most likely class is that of `predict_classes`. The number is
        the one with which probabilities of rows fit best that the machine has not seen:
        validation rows, those that chose the ridge, or, by leave-one-out, all rows;
        `head.report["calibrated_by"]` names them. Where they trained the kernel, a warning
        says that probabilities are too sure.

        Args:
            x, batch_size, verbose, steps, callbacks: As of `predict`.

        Returns:
            Columns in the order of `classes`.

        Raises:
            ValueError: As `predict`; if targets were no classes; if there are no rows to
                calibrate on, as after `fit_head` on a stream without `validation_data`.

        Example:

        ```python
        model = kk.KAREModel(network)
        model.fit_head(x, y[:, 0] > 0)  # or integers, or text
        model.predict_proba(x)[:, 1]  # of model.classes[1], True
        ```

        References:
            - Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks",
              arXiv:1706.04599.
        """
        classification.check_classes(self)
        self._refresh_head()
        self._calibrate()
        self.machine.check_calibration()
        scores = tf.constant(self.predict(x, batch_size, verbose, steps, callbacks))
        factor = self.machine.state.inverse_temperature
        return np.asarray(calibration.probabilities(scores, factor))

    @alone
    def predict_classes(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> np.ndarray:
        """Return the most likely class of each row, `(n,)`, in the type of the labels.

        Args:
            x, batch_size, verbose, steps, callbacks: As of `predict`.

        Raises:
            ValueError: As `predict`, and if targets were no classes.
        """
        classes = classification.check_classes(self)
        return classes.of(self.predict(x, batch_size, verbose, steps, callbacks))

    @alone
    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Return the mean squared error of the kernel machine, and compiled metrics.

        Needs no `compile`, except for metrics. With `sample_weight`, a weighted mean.

        Args as in `keras.Model.evaluate`; `batch_size` defaults to 1,024. A generator of
        (x, y) or (x, y, sample_weight) batches is read once.

        Raises:
            ValueError: For bad input, and as `predict`.
        """
        batches.check_ends(x, steps)
        if not self.compiled:
            self.compile()
        if not self._validates():
            self._refresh_head()
        if not kwargs.get("_use_cached_eval_dataset"):  # else it is `fit` that validates
            classes = self.head.classes
            if batches.is_dataset(x) or intake.is_iterator(x):
                gathering.check_alone(y, sample_weight)
                x = intake.opened(self.kernel, x, targets=True)
                x = labelled.encoded(x, classes)
            else:
                x, y = intake.taken(self.kernel, x, y)
                read_as = gathering.read_as(classes)
                rows = gathering.gather(x, y, None, "", sample_weight, **read_as)
                self.kernel.check_shapes("x", rows.x)
                classification.check_metrics(self, rows)
                _validation.check_squares("y", rows.y, keras.config.floatx())
                x, y, sample_weight = rows.parts()
                batch_size = gathering.prediction_batch_size(batch_size)
                whole = gathering.in_one_batch(self, rows.parts(), batch_size, steps)
                if whole is not None:
                    x, y, sample_weight, steps = whole, None, None, 1
        classification.calibrate_for_metrics(self)
        self._forget_stale_traces()
        return super().evaluate(
            x=x,
            y=y,
            batch_size=batch_size,
            verbose=verbose,
            sample_weight=sample_weight,
            steps=steps,
            callbacks=watched(callbacks, Watch(self)),
            return_dict=return_dict,
            **kwargs,
        )

    @alone
    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Return the mean squared error and metrics of one batch."""
        x, y = intake.taken(self.kernel, x, y)
        self._refresh_head()
        read_as = gathering.read_as(self.head.classes)
        rows = gathering.gather(x, y, None, "", sample_weight, **read_as)
        self.kernel.check_shapes("x", rows.x)
        _validation.check_squares("y", rows.y, keras.config.floatx())
        classification.calibrate_for_metrics(self)
        self._forget_stale_traces()
        return super().test_on_batch(*rows.parts(), return_dict=return_dict)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluate one batch: mean squared error of the kernel machine, and the metrics."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        predictions = self(x, training=False)
        y = columns(y, predictions)
        if y.shape[1] != predictions.shape[1]:
            raise ValueError(
                "`y` must have as many columns as the targets that the head was solved "
                f"for. Received: y of {y.shape[1]} columns, predictions of "
                f"{predictions.shape[1]}"
            )
        squared, count = tf.square(y - predictions), training_step.count(y, weights)
        if weights is None:
            loss = tf.reduce_mean(squared)
        else:
            each = tf.reshape(tf.cast(weights, squared.dtype), (-1, 1))
            total = tf.reduce_mean(tf.reduce_sum(each * squared, axis=0))
            loss = tf.math.divide_no_nan(total, count)  # a batch may count for nothing
        self._loss_tracker.update_state(loss, sample_weight=count)
        factor = self.machine.state.inverse_temperature
        given = classification.beside(self, predictions, lambda: factor)
        return self.compute_metrics(x, y, given, weights)

    def save(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
        """Write a `.keras` file: network, head and optimizer; as in Keras.

        Raises:
            ValueError: For `.h5` files, which cannot hold a solved head; for a kernel of
                several networks that share layers, which loading could not tell.
        """
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                "`filepath` must end in `.keras`: `.h5` files cannot hold the solved head. "
                f"Received: filepath={str(filepath)!r}"
            )
        ties.check_kept(self.kernel)  # Keras opens the file first
        super().save(filepath, overwrite=overwrite, **kwargs)

    @alone
    def variance(self, x: Any, noise: bool = False) -> np.ndarray:
        """Return how uncertain predictions are: a Gaussian process' variance, `(n, c)`.

        The kernel machine is the mean of a Gaussian process with kernel `s² K` and noise
        of variance `s² n λ`. This is its posterior variance, with `s²` such that
        leave-one-out errors on the training rows are as large as expected. Those errors
        are optimistic for a kernel that was trained on these rows: compare with errors
        on other rows before relying on it. With `sample_weight` it is the variance of as
        many rows; an intercept is a constant of which nothing is known beforehand.

        Args:
            x: Inputs `(n, ...)`.
            noise: Whether to add the variance of the noise, for the variance of new
                targets instead of the function's. Defaults to `False`.

        Returns:
            Variances in the units of `y²`, float64. Takes a factorisation of the
            training rows' Gram matrix.

        Raises:
            ValueError: As `predict`, and if the head kept no anchors.

        Example:

        ```python
        mean, std = model.predict(x), np.sqrt(model.variance(x, noise=True))
        ```

        References:
            - Rasmussen, Williams, "Gaussian Processes for Machine Learning", eq. 2.26,
              2.42 and 5.12.
        """
        self._refresh_head()
        x = self._prediction_rows(x)
        posterior = self.machine.posterior()
        variance = posterior.unit_variance_at(self.kernel, x, self.head.anchors)
        if noise:
            variance = variance + posterior.unit_noise
        return variance[:, None] * posterior.scale

    @alone
    def agop(self, x: Any) -> np.ndarray:
        """Return the average gradient outer product of predictions, `(d, d)`.

        The mean over rows of `Σ_c ∇f_c(x) ∇f_c(x)ᵀ`: its diagonal tells which columns
        matter, its eigenvectors which directions. As the metric of a kernel it makes a
        recursive feature machine, beside KARE or in turn with it.

        Args:
            x: Rows of numbers, `(n, d)`, such as those that the machine was solved on.

        Returns:
            float64.

        Raises:
            ValueError: As `predict`; if `x` is not one array of floats.

        Example:

        ```python
        x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
        y = np.sign(x[:, :1] * x[:, 1:2])
        model = kk.KAREModel(kk.kernels.Laplace(metric="full"))
        for _ in range(3):
            model.fit_head(x, y)
            model.kernel.set_metric(model.agop(x))
            model.kernel.adapt(x)  # the scale is the median distance, in the new metric
        model.fit_head(x, y)
        ```

        References:
            - Radhakrishnan, Beaglehole, Pandit, Belkin, "Mechanism for feature learning in
              neural networks and backpropagation-free machine learning models", Science
              2024, algorithm 1.
        """
        self._refresh_head()
        return agop(self.machine, x)

    def export(
        self,
        filepath: Any,
        format: str = "tf_saved_model",
        form: str | None = None,
        verbose: bool | None = None,
        classes: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a SavedModel that TensorFlow runs without keras and keras_kare.

        Its signatures take any number of rows, of the type and shape that the head was
        solved on:

        - `serving_default`, also callable as `serve`: `inputs` to `output_0`, the
          kernel machine's outputs, `(n, c)`.
        - `classify`, of a classification: `inputs` to `classes`, `(n, k)` strings, the
          labels in their order, and `scores`, `(n, k)`: the probabilities that
          `predict_proba` returns; the largest is that of the predicted class.

        Rows with NaN or Inf are refused when they are served.

        Lengths and sizes that the network's inputs leave open are open in the
        signatures, too. Where it cannot be traced so, as with `LSTM(unroll=True)`, those
        of the rows that the head was solved on are asked for, with a warning.

        Args:
            filepath: The folder to write.
            format: `"tf_saved_model"`. (`tutorials/serving` tells for which networks
                LiteRT converts that; ONNX cannot.)
            form: `"primal"`: the files hold the network and `w`, and no training row.
                `"dual"`: the anchors are in the files, and each served row is compared
                with each of them. Defaults to `"primal"` where the kernel has a finite
                feature map, as the NTK, and to `"dual"` where it has none.
            verbose: Whether to print where it was written.
            classes: Other names of the classes, or names for targets of -1 and 1: one a
                column, or two for a single column, first that of -1. Defaults to the
                labels; for numbers, to no signature `classify`.
            **kwargs: For `keras.export.ExportArchive.write_out`.

        Raises:
            TypeError: If `classes` is no sequence of names.
            ValueError: If no head was solved, the format or form is unknown, `classes`
                do not fit the targets, or the form is `"dual"` and the head kept no
                anchors, or `"primal"` and the kernel has no such form.

        Example:

        ```python
        model = kk.KAREModel(network)
        model.fit_head(x, np.where(np.ravel(y) > 0, "up", "down"))
        model.export("serving")
        served = tf.saved_model.load("serving")
        served.signatures["classify"](inputs=tf.constant(x))["scores"]  # (n, 2)
        ```
        """
        check_format(format)
        if form is None:
            form = "primal" if self.kernel.has_features else "dual"
        _validation.check_option("form", form, ("primal", "dual"))
        if form == "primal" and not self.kernel.has_features:
            raise ValueError(
                f'`form` must be "dual" for {type(self.kernel).__name__}, which has no '
                "finite feature map: the training rows are in the files. Received: "
                f"form={form!r}"
            )
        self._refresh_head()
        export_saved_model(self, filepath, form, classes, verbose, **kwargs)

    def _prediction_rows(self, x: Any) -> Any:
        x = plain("x", x, self.network)
        self.kernel.check_codes("x", x)
        x = _validation.check_rows("x", x, self.network)
        self.kernel.check_shapes("x", x)
        return x

    @property
    def _trains(self) -> bool:
        """Whether this happens within `fit`."""
        return False

    def _validates(self) -> bool:
        """Solve on rows that train at present, if any do, and tell whether."""
        return False

    def _calibrate(self) -> None:
        """Fit what makes probabilities, where it is not known."""
        self.machine.calibrate()

    def _refresh_head(self) -> None:
        """Solve a stale head again, or refuse; warn of a solution that is not good."""
        self.machine.solve_if_stale()
        self.machine.check_converged()
        if not self._trains:
            self.machine.check_asked_for()

    def _follow_callbacks(self) -> None:
        """Solve again where a callback has changed the weights."""
        self.machine.solve_if_stale()

    def _forget_stale_traces(self) -> None:
        """Drop traced functions that read variables the head no longer uses."""
        kernel_key = tuple(id(v) for v in self.kernel.trainable_variables)
        state = self.machine.state
        key = (state.key(), kernel_key, self.kernel.architecture(), repr(state.classes))
        if self._traced_for != key:
            self.test_function = self.predict_function = None
            self._traced_for = key

    def _check_rows(
        self, rows: Rows, validation: Rows | None, batch_size: int | None = None
    ) -> None:
        """Refuse, before any long work, what cannot be trained or solved on."""
        if len(rows) < 2:
            raise ValueError(
                "`x` must have at least two rows: a kernel compares rows. "
                f"Received: {len(rows)} row"
            )
        if validation is not None and validation.y.shape[1] != rows.y.shape[1]:
            raise ValueError(
                "The targets of `validation_data` must have as many columns as `y`. "
                f"Received: {validation.y.shape[1]} and {rows.y.shape[1]} columns"
            )
        counting = rows.counting()
        if counting is not rows:  # what is found from rows, as scales, is found from these
            self.kernel.check(counting.x)
        self.kernel.check(rows.x, batch_size)
        if all(map(_all_alike, keras.tree.flatten(rows.x))):
            warnings.warn(
                f"The {len(rows)} rows of `x` are all the same, so that nothing can be "
                "told of `y` but its mean.",
                stacklevel=5,
            )
        if validation is not None:
            self.kernel.check_shapes("validation x", validation.x)
        self.build(keras.tree.map_structure(lambda part: tuple(part.shape), rows.x))

    def _streams(self, x: Any) -> bool:
        """Tell whether these are batches, for a solver that takes them one by one."""
        solver = self.head.solver
        known = isinstance(solver, Solver) and solver.streams(self.kernel)
        return known and batches.is_dataset(x)

    def _choice_without_rows(
        self, validation: Rows | None, stacklevel: int = 4
    ) -> Choice | None:
        """Return `λ̃ = 1` where neither rows nor leave-one-out may choose the ridge."""
        if self.head.ridge != "auto" or validation is not None or not self._has_trained():
            return None
        return ridges.without_evidence(
            "default",
            '`ridge="auto"` has no rows to choose on: the network has been trained, so '
            "that leave-one-out on its training rows would choose far too small a ridge. "
            "Using a relative ridge of 1. Pass `validation_data`, or a number as `ridge`.",
            stacklevel=stacklevel,
        )

    def _has_trained(self) -> bool:
        """Tell whether this model or its network has taken a training step here."""
        return self.machine.state.trained or any(
            int(optimizer.iterations.numpy()) > 0
            for model in (self, self.network)
            if (optimizer := getattr(model, "optimizer", None)) is not None
        )

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return {
            **config,
            "kernel": keras.saving.serialize_keras_object(self.kernel),
            "head": keras.saving.serialize_keras_object(self.head),
            "task": self.task,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        config = dict(config)
        for part in ("kernel", "head"):
            config[part] = keras.saving.deserialize_keras_object(
                config[part], custom_objects=custom_objects
            )
        return cls(**config)


def _all_alike(rows: Any) -> bool:
    """Tell whether all rows are the same."""
    few = np.asarray(rows[:2])  # which differ as a rule
    return bool(np.all(few == few[:1])) and bool(np.all(np.asarray(rows) == few[:1]))
