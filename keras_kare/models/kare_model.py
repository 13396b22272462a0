"""`KAREModel`: train a kernel with KARE, predict with its kernel machine."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels import NTK, Kernel
from keras_kare.kernels.operator import ONE_VALUE
from keras_kare.kernels.structured.untouched import restored
from keras_kare.layers import NTKRidgeHead, ridge_selection
from keras_kare.layers.intercept import Decision
from keras_kare.layers.ridge_selection import Choice
from keras_kare.models import batches
from keras_kare.models import rows as rows_module
from keras_kare.models.export import check_format, export_saved_model
from keras_kare.models.rows import Rows
from keras_kare.models.training import KARETrainer
from keras_kare.models.watch import Watch, watched
from keras_kare.solvers import Solver
from keras_kare.solvers.result import ADVICE


@keras.saving.register_keras_serializable(package="keras_kare")
class KAREModel(KARETrainer, keras.Model):
    """A kernel machine whose kernel is trained to generalise.

    `fit` minimises KARE, an estimate of the test error, by gradient descent on the
    network whose neural tangent kernel (NTK) this is, and ends by solving the head on
    all training rows. `predict` returns the kernel machine's outputs,
    `ŷ(x) = (1/n) K(x, X) (K/n + λI)⁻¹ y`.

    Args:
        kernel: A `keras.Model`, of which the NTK is taken (`kernels.NTK(network)`), or
            any kernel of `keras_kare.kernels`.
        head: A `keras_kare.NTKRidgeHead`. Defaults to one with `ridge="auto"`.
        validation_anchors: Most training rows that the machine is solved on for
            validation during `fit`. Defaults to `4096`.
        name: Name of the model.

    Attributes:
        kernel: The kernel.
        network: The network of the kernel; `model.network.predict(x)` gives its own
            outputs.
        head: The head; `head.report` tells of the last solution.

    Raises:
        TypeError: If `kernel` is neither a model nor a kernel, or `head` no head.
        ValueError: If the kernel is an NTK of `outputs="full"`.

    Example:

    ```python
    import keras, numpy as np
    import keras_kare as kk

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype("float32")
    y = np.sin(x[:, :1] + x[:, 1:2])
    network = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(64, "gelu"), keras.layers.Dense(1)]
    )
    model = kk.KAREModel(network)
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="kare")
    model.fit(x[:100], y[:100], epochs=20, validation_data=(x[100:], y[100:]))
    model.predict(x[100:])
    ```

    `save` and `save_weights` write all that predictions and further training need:
    the network, the head with its anchors and report, and, with `save`, the
    optimizer. With the same libraries and threads, a loaded model predicts the same
    and goes on training with `shuffle=False` as if it had never stopped, to the last
    bit; on other machines sums are added in another order. Files of released versions
    load in later ones. `keras.models.clone_model` gives a compiled model with new
    weights and an unsolved head.

    References:
        - Schwab, Kelly, Malamud, Xu, "Training NTK to generalize with KARE",
          arXiv:2505.11347.
    """

    def __init__(
        self,
        kernel: keras.Model | Kernel,
        head: NTKRidgeHead | None = None,
        validation_anchors: int = 4096,
        name: str | None = None,
        **kwargs: Any,
    ):
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
        if not isinstance(validation_anchors, int) or validation_anchors < 2:
            raise ValueError(
                "`validation_anchors` must be a whole number of at least 2. "
                f"Received: validation_anchors={validation_anchors!r}"
            )
        # Only the network may be of mixed precision: in `__call__`, Keras would hand the
        # kernel casts of the weights, which nothing can be differentiated by.
        policy = keras.dtype_policies.get(
            kwargs.pop("dtype", None) or keras.config.dtype_policy()
        )
        super().__init__(name=name, dtype=policy.variable_dtype, **kwargs)
        self.kernel = kernel
        self.head = head
        self.validation_anchors = validation_anchors
        self._training_rows: Rows | None = None
        self._traced_for: Any = None
        self._intercept: Decision | None = None
        network = self.network
        if network is not None and network.built:
            kernel.built = self.built = True

    @property
    def network(self) -> keras.Model | None:
        """The network of the kernel, or `None` where the kernel has none."""
        return getattr(self.kernel, "network", None)

    def build(self, input_shape: Any) -> None:
        if not self.kernel.built:
            self.kernel.build(input_shape)
        self.built = True

    def __call__(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        # Keras forgets losses of all layers inside; those of the network are its user's.
        with restored(self.kernel if self.network is None else self.network):
            return super().__call__(*args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        """The kernel machine's outputs for the rows `inputs`, `(n, c)`.

        A stale head is solved again first; inside a `tf.function` of your own the head
        is used as it is, so call `predict` or the model itself once after training.
        (`tf.saved_model.save` writes a `tf.Module` with such a function.)
        """
        if tf.executing_eagerly():
            self._refresh_head()
        return self.head.call(inputs, self.kernel)

    def fit_head(
        self,
        x: Any,
        y: Any = None,
        validation_data: Any = None,
        sample_weight: Any = None,
    ) -> None:
        """Solve the head on rows, without any training.

        On a network trained by other means this is the paper's after-NTK.

        Args:
            x: Inputs `(n, ...)` or a dataset of `(x, y)` batches, which is read to its
                end (`dataset.take(...)` gives an endless one an end). With a head whose
                `solver` is `"primal"`, `"nystrom"` or `"eigenpro"`, a dataset is
                streamed: its rows are never in memory together, and none are kept but
                the centres of `"nystrom"`.
            y: Targets `(n,)` or `(n, c)`.
            validation_data: Rows to choose `ridge="auto"` on, as in `fit`. Without
                them, leave-one-out chooses, if the network has not been trained; for
                a trained one the errors of its own training rows choose far too small
                a ridge, so `λ̃ = 1` is used, with a warning. (Training that neither this
                model's nor the network's `fit` did cannot be seen: pass rows.)
            sample_weight: As in `fit`.

        Raises:
            ValueError: For bad input, named.
        """
        validation = rows_module.gather_validation(validation_data, None)
        if self._streams(x):
            rows_module.check_alone(y, sample_weight)
            self._check_rows(rows_module.begin(x, None, 2), validation)
            self._solve_stream(x, None, validation, None)
            return
        rows = rows_module.gather(x, y, None, sample_weight=sample_weight)
        self._check_rows(rows, validation)
        choice = self._choice_without_rows(validation)
        self._solve_head(rows, validation, choice, None)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> np.ndarray:
        """The kernel machine's outputs, `(n, c)`.

        Args:
            x: Inputs `(n, ...)` or a dataset.
            batch_size: Rows at a time. Defaults to 1,024.
            verbose, steps, callbacks: As in Keras.

        Raises:
            ValueError: If no head was solved, if it is stale and kept no rows, or if
                `x` is empty or holds NaN or Inf.
        """
        batches.check_ends(x, steps)
        self._refresh_head()
        if not batches.is_dataset(x):
            batch_size = rows_module.prediction_batch_size(batch_size)
            x = self._prediction_rows(x)
            whole = self._in_one_batch((x,), batch_size, steps)
            x, steps = (x, steps) if whole is None else (whole, 1)
        self._forget_stale_traces()
        return super().predict(
            x,
            batch_size=batch_size,
            verbose=verbose,
            steps=steps,
            callbacks=watched(callbacks, Watch(self)),
        )

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """The kernel machine's outputs for one batch, `(n, c)`; errors as `predict`."""
        self._refresh_head()
        x = self._prediction_rows(x)
        self._forget_stale_traces()
        return super().predict_on_batch(x)

    def save(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
        """Write a `.keras` file: network, head and optimizer; as in Keras.

        Raises:
            ValueError: For `.h5` files, which cannot hold a solved head.
        """
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                "`filepath` must end in `.keras`: `.h5` files cannot hold the solved head. "
                f"Received: filepath={str(filepath)!r}"
            )
        super().save(filepath, overwrite=overwrite, **kwargs)

    def variance(self, x: Any, noise: bool = False) -> np.ndarray:
        """How uncertain predictions are: the variance of a Gaussian process, `(n, c)`.

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
        posterior = self.head.posterior(self.kernel)
        variance = posterior.unit_variance_at(self.kernel, x, self.head.anchors)
        if noise:
            variance = variance + posterior.unit_noise
        return variance[:, None] * posterior.scale

    def export(
        self,
        filepath: Any,
        format: str = "tf_saved_model",
        form: str = "primal",
        verbose: bool | None = None,
        classes: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a SavedModel that TensorFlow runs without keras and keras_kare.

        Its signatures take any number of rows, of the type and shape that the head was
        solved on:

        - `serving_default`, also callable as `serve`: `inputs` to `output_0`, the
          kernel machine's outputs, `(n, c)`.
        - `classify`, with `classes`: `inputs` to `classes`, `(n, k)` strings, the names
          in the order given, and `scores`, `(n, k)`: `(1 + ŷ)/2`, which estimate the
          classes' probabilities by least squares. They sum to about 1 and may leave
          [0, 1]; the largest is that of the predicted class.

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
                with each of them. Defaults to `"primal"`.
            verbose: Whether to print where it was written.
            classes: Names of the classes, for targets of -1 and 1: one a column, or
                two for a single column, first that of -1. Defaults to `None`: no
                signature `classify`.
            **kwargs: For `keras.export.ExportArchive.write_out`.

        Raises:
            TypeError: If `classes` is no sequence of names.
            ValueError: If no head was solved, the format or form is unknown, `classes`
                do not fit the targets, or the form is `"dual"` and the head kept no
                anchors.

        Example:

        ```python
        model = kk.KAREModel(network)
        model.fit_head(x, np.sign(y))
        model.export("serving", classes=["down", "up"])
        served = tf.saved_model.load("serving")
        served.signatures["classify"](inputs=tf.constant(x))["scores"]  # (n, 2)
        ```
        """
        check_format(format)
        _validation.check_option("form", form, ("primal", "dual"))
        self._refresh_head()
        export_saved_model(self, filepath, form, classes, verbose, **kwargs)

    def _prediction_rows(self, x: Any) -> Any:
        x = _validation.check_rows("x", rows_module.without_pandas(x))
        self.kernel.check_shapes("x", x)
        return x

    def _refresh_head(self) -> None:
        """Solve a stale head again; refuse where that is impossible."""
        if not self.head.is_fresh(self.kernel):
            self.head.solve_again(self.kernel)
        report = self.head.report
        if not report.get("converged", True):
            warnings.warn(
                f"The head was solved to a relative residual of {report['residual']:.2g}, "
                f"not {report['tolerance']:.2g} (stopped: {report['stopped']}): "
                "predictions of training rows may be off by that share of the targets. "
                + ADVICE[report["stopped"]],
                RuntimeWarning,
                stacklevel=4,
            )

    def _forget_stale_traces(self) -> None:
        """Drop traced functions that read variables the head no longer uses."""
        kernel_key = tuple(id(v) for v in self.kernel.trainable_variables)
        key = (self.head.trace_key, kernel_key, self.kernel.architecture())
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
        self.kernel.check(rows.x, batch_size)
        self.built = True

    def _solve_head(
        self,
        rows: Rows,
        validation: Rows | None,
        choice: Choice | None,
        intercept: Decision | None,
    ) -> None:
        self.head.solve(
            self.kernel,
            rows.x,
            rows.y,
            validation=None if validation is None else validation.parts(),
            choice=choice,
            weights=rows.weights,
            intercept=intercept,
        )

    def _streams(self, x: Any) -> bool:
        """Whether these are batches, for a solver that takes them one by one."""
        solver = self.head.solver
        known = isinstance(solver, Solver) and solver.streams(self.kernel)
        return known and batches.is_dataset(x)

    def _solve_stream(
        self,
        x: Any,
        steps: int | None,
        validation: Rows | None,
        intercept: Decision | None,
    ) -> None:
        self.head.solve_stream(
            self.kernel,
            rows_module.stream(x, steps),
            validation=None if validation is None else validation.parts(),
            intercept=intercept,
        )

    def _choice_without_rows(self, validation: Rows | None) -> Choice | None:
        """`None` where rows or leave-one-out may choose the ridge."""
        if self.head.ridge != "auto" or validation is not None or not self._has_trained():
            return None
        warnings.warn(
            '`ridge="auto"` has no rows to choose on: the network has been trained, so '
            "that leave-one-out on its training rows would choose far too small a ridge. "
            "Using a relative ridge of 1. Pass `validation_data`, or a number as `ridge`.",
            stacklevel=3,
        )
        return Choice(ridge_selection.WITHOUT_EVIDENCE, by="default")

    def _has_trained(self) -> bool:
        """Whether this model or its network has taken a training step here."""
        return self.head.trained or any(
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
            "validation_anchors": self.validation_anchors,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> KAREModel:
        config = dict(config)
        for part in ("kernel", "head"):
            config[part] = keras.saving.deserialize_keras_object(
                config[part], custom_objects=custom_objects
            )
        return cls(**config)
