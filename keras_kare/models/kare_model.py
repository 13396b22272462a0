"""`KAREModel`: train a kernel with KARE, predict with its kernel machine."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf

from keras_kare import _validation, losses
from keras_kare import metrics as metrics_module
from keras_kare._labels import Classes
from keras_kare._progress import Waiting
from keras_kare._sentences import alone
from keras_kare._step import columns, differentiated
from keras_kare.kernels import Kernel
from keras_kare.kernels.structured.untouched import untouched
from keras_kare.layers import NTKRidgeHead
from keras_kare.machine import Intercept, Rows
from keras_kare.machine.machine import PROVISIONAL
from keras_kare.models import (
    classification,
    gathering,
    intake,
    overfitting,
    training_step,
)
from keras_kare.models.kernel_machine import KernelMachine
from keras_kare.models.session import Session
from keras_kare.models.shared_step import SharedStep, shares_steps
from keras_kare.models.transfer import Retraced, Told, before_training
from keras_kare.models.watch import Watch, keeps_best, watched

FIRST_STEP = (
    "The kernel's graph is traced, and the first step taken with it; networks of the same "
    "architecture wait for that once."
)


@keras.saving.register_keras_serializable(package="keras_kare")
class KAREModel(KernelMachine):
    """A kernel machine whose kernel is trained to generalise.

    `fit` minimises KARE, an estimate of the test error, by gradient descent on the
    network whose neural tangent kernel (NTK) this is, and ends by solving the head on
    all training rows. `predict` returns the kernel machine's outputs,
    `ŷ(x) = (1/n) K(x, X) (K/n + λI)⁻¹ y`.

    Args:
        kernel: A `keras.Model`, of which the NTK is taken (`kernels.NTK(network)`), or
            any kernel of `keras_kare.kernels`.
        head: A `keras_kare.NTKRidgeHead`. Defaults to one with `ridge="auto"`.
        task: How `y` is read. `"classification"`: as labels, in one column or one-hot;
            `"regression"`: as numbers; `"auto"`: integers, booleans and text are labels,
            floats are numbers. Labels of two classes become one column of -1 and 1, of more
            one column a class. Defaults to `"auto"`.
        validation_anchors: Most training rows that the machine is solved on for
            validation during `fit`. Defaults to `4096`.
        name: Name of the model.

    Attributes:
        kernel: The kernel.
        network: The network of the kernel; `model.network.predict(x)` gives its own
            outputs.
        head: The head; `head.report` tells of the last solution.
        classes: Labels of the classes, `(k,)`, or `None` for numbers.

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
    weights and an unsolved head. A network or kernel that the kernel has several times is
    one in files, copies and clones, too.

    References:
        - Schwab, Kelly, Malamud, Xu, "Training NTK to generalize with KARE",
          arXiv:2505.11347.
    """

    history: Any
    run_eagerly: bool
    stop_training: bool
    train_function: Any

    def __init__(
        self,
        kernel: keras.Model | Kernel,
        head: NTKRidgeHead | None = None,
        task: str = "auto",
        validation_anchors: int = 4096,
        name: str | None = None,
        **kwargs: Any,
    ):
        if not isinstance(validation_anchors, int) or validation_anchors < 2:
            raise ValueError(
                "`validation_anchors` must be a whole number of at least 2. "
                f"Received: validation_anchors={validation_anchors!r}"
            )
        super().__init__(kernel, head, task, name=name, **kwargs)
        self.validation_anchors = validation_anchors
        self.input_noise = 0.0
        self._session: Session | None = None
        self._intercept: Intercept | None = None
        self._told = Told()

    @property
    def _has_constant(self) -> bool:
        """Whether the machine that it trains for has an intercept."""
        return self._intercept is not None and self._intercept.present

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = "kare",
        metrics: Any = None,
        weighted_metrics: Any = None,
        jit_compile: Any = False,
        input_noise: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Configure training.

        Args:
            optimizer: As in Keras. KARE's gradient grows with the square of the
                targets; the paper uses plain `SGD`. Where the network is of the policy
                `"mixed_float16"` its loss is scaled (`auto_scale_loss=False`: not).
            loss: `"kare"`, `kk.losses.KARE(...)`, or another `kk.losses.GramLoss`.
                Defaults to `"kare"`: `KARE(ridge=0.1)`. With `kk.losses.FullKARE`,
                training steps run outside of graphs.
            metrics: As in Keras; `"accuracy"` means sign or argmax accuracy
                (`kk.metrics.SignedAccuracy`). Where `y` holds labels, metrics of classes
                (`AUC`, `F1Score`, `BinaryCrossentropy`, …) and your own get 0 and 1 (of two
                classes), one-hot columns or numbers of classes, as they expect, and
                calibrated probabilities; metrics of numbers get targets in -1 and 1, and
                outputs (`kk.metrics.OfClasses`). During training they are computed on
                the batch's leave-one-out predictions, calibrated on themselves: right for
                a fixed kernel, optimistic once the kernel has been trained on these rows.
            weighted_metrics: As in Keras: metrics to which weights of rows apply.
            jit_compile: Must be false: XLA cannot say what jitter a Cholesky needed.
            input_noise: Standard deviation of Gaussian noise on the rows of a training
                step, in units of that of each column in the batch. It is another at each
                step, so that kernels cannot be trained to please these very rows; the
                head is solved on the rows as they are. Steps then are not shared with
                other models. Defaults to `0.0`.
            **kwargs: As in `keras.Model.compile`.

        Raises:
            ValueError: If `loss` is no loss of a Gram matrix, `jit_compile=True` or
                loss weights are given, or `input_noise` is negative or not finite.
        """
        _validation.check_at_least_zero("input_noise", input_noise)
        if jit_compile not in (False, None, "auto"):
            raise ValueError(
                "`jit_compile` is not supported yet: training checks its factorisations "
                f"in ways that XLA cannot. Received: jit_compile={jit_compile!r}"
            )
        if kwargs.get("loss_weights") is not None:
            raise ValueError(
                "`loss_weights` is not supported: there is one loss, of the Gram matrix. "
                f"Received: loss_weights={kwargs['loss_weights']!r}"
            )
        metrics, weighted_metrics = (
            keras.tree.map_structure(
                metrics_module.get,
                [given] if isinstance(given, str | keras.metrics.Metric) else given,
            )
            for given in (metrics, weighted_metrics)
        )
        self.input_noise = float(input_noise)
        self._wanted = metrics_module.Wanted.by(metrics, weighted_metrics)
        optimizer = keras.optimizers.get(optimizer)
        if kwargs.get("auto_scale_loss", True) and self._needs_scaling(optimizer):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        super().compile(
            optimizer=optimizer,
            loss=losses.get(loss),
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            jit_compile=False,
            **kwargs,
        )

    def _needs_scaling(self, optimizer: Any) -> bool:
        """Decide as Keras does by a model's own policy, which here is the network's."""
        network: Any = getattr(self.kernel, "network", None)
        return (
            network is not None
            and network.dtype_policy.name == "mixed_float16"
            and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        )

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Train on one batch: its Gram matrix, the loss, one update of the network."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        if self.input_noise:
            x = training_step.noisy(x, self.input_noise, self.optimizer.iterations)
        given = (y,) if weights is None else (y, weights)
        return self._updated(x, y, weights, *self._differentiated(x, *given))

    def _differentiated(
        self, x: Any, y: Any, *weights: Any
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Return the loss of a batch, predictions of its rows, and gradients."""
        eagerly = self.loss.supplies_gradients
        # What the network notes while it is traced belongs to this graph alone.
        with untouched(self.kernel if self.network is None else self.network) as scope:
            return differentiated(
                self.loss,
                self.kernel,
                self.trainable_variables,
                x,
                training_step.several_rows(x, y),
                *weights,
                intercept=self._has_constant,
                step=int(self.optimizer.iterations) if eagerly else 0,
                extras=lambda: training_step.network_losses(self, x, scope.losses),
                scale=self.optimizer.scale_loss,
            )

    def _updated(
        self,
        x: Any,
        y: Any,
        weights: Any,
        loss: tf.Tensor,
        predictions: tf.Tensor,
        gradients: list[tf.Tensor],
    ) -> dict[str, tf.Tensor]:
        """Update the network and the metrics, and return these."""
        variables, y = self.trainable_variables, columns(y, predictions)
        with tf.control_dependencies(
            training_step.checks(self.optimizer, gradients, variables)
        ):
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self._loss_tracker.update_state(loss, sample_weight=training_step.count(y, weights))
        given = classification.beside(
            self, predictions, lambda: classification.of_batch(predictions, y, weights)
        )
        return self.compute_metrics(x, y, given, weights)

    def make_train_function(self, force: bool = False) -> Any:
        """Make what trains, as Keras does, and outside of graphs where a loss needs that.

        Where networks of the same architecture may share a step, they do.
        """
        made = self.train_function
        if isinstance(made, SharedStep) and not made.is_current():
            made = None
        if made is not None and not force:
            return made
        if shares_steps(self, KAREModel):
            self.train_function = SharedStep(self)
            return self.train_function
        self.train_function = Retraced(self, self._make_own_train_function)
        return self.train_function

    def _make_own_train_function(self) -> Any:
        eagerly = self.run_eagerly
        self.run_eagerly = eagerly or getattr(self.loss, "supplies_gradients", False)
        try:
            super().make_train_function(force=True)
            return self.train_function
        finally:
            self.run_eagerly = eagerly

    @alone
    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Any = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int = 1,
    ) -> keras.callbacks.History:
        """Train the kernel, then solve the head on all training rows.

        Args:
            x: Inputs `(n, ...)`, a `tf.data.Dataset` or a `keras.utils.PyDataset` of
                `(x, y)` batches. Datasets are read once more, to solve the head. Of
                one that is endless, or of unknown cardinality (`filter`,
                `from_generator`), the first `steps_per_epoch` batches are its rows,
                while epochs go on in it as in Keras; where it is known to end (see
                `tf.data.experimental.assert_cardinality`), or without
                `steps_per_epoch`, all of them are.
            y: Labels of classes, `(n,)` or one-hot, or numbers, `(n,)` or `(n, c)`: see
                `task`.
            batch_size: Rows of a Gram matrix. Defaults to all of them up to 4,096
                rows, and to batches of about 1,024, evenly split, above. (Keras's 32
                would make a poor Gram matrix.) With `kk.losses.FullKARE`, all of
                them, however many.
            validation_data: Rows that never train. `val_loss` is the kernel machine's
                mean squared error on them, which KARE, the training `loss`, estimates;
                their gap is the overfitting of KARE itself. During training the
                machine is solved at the ridge of the loss, on at most
                `validation_anchors` rows. `ridge="auto"` is chosen on these rows, once,
                at the end.
                Of a dataset, these are the first `validation_steps` batches.
            validation_split: The last share of the rows becomes `validation_data`.
            epochs, verbose, callbacks, shuffle, initial_epoch, steps_per_epoch,
                validation_steps, validation_batch_size, validation_freq: As in Keras.
            sample_weight: How often each row counts, `(n,)`, non-negative: KARE, the
                machine and its ridge are those of rows repeated so often (see
                `keras_kare.risk`). Their scale matters; Keras averages instead.
            class_weight: The same by class: a dict from labels, or from numbers of classes
                (0 for the lower and 1 for the upper of two targets, else the column) to the
                weight of their rows; 1 for classes that it does not name.

        Without validation rows, `ridge="auto"` takes a rehearsal after training: the
        same training from the same start on four fifths of the rows, whose kernel the
        remaining fifth never trained; they choose the ridge. That doubles the time; a
        number as `ridge`, or validation rows, avoid it.

        A model that a callback saves during training (`ModelCheckpoint`) holds the machine
        that was asked for: it is solved for each file, on all rows, as at the end of `fit`.
        Where that cannot be, as for `ridge="auto"` without validation rows, and in files of
        weights alone, it is the one of the last validation, and loading and predicting
        warn.

        With a head whose `solver` is `"primal"`, `"nystrom"` or `"eigenpro"`, a dataset is
        streamed: it trains and is solved on batch by batch, and its rows are never in
        memory together. Validation during training then takes the first
        `validation_anchors` rows as anchors.

        KARE can be fooled by training. A warning tells when, in the last epoch,
        `val_loss` was more than three times `loss`, or, after a rehearsal, the error on
        the rows that it left out; stop earlier, with
        `keras.callbacks.EarlyStopping("val_loss", restore_best_weights=True)`, or train
        with noise, `compile(..., input_noise=1.0)`. What makes the gap, and what closes it,
        is measured in `benchmarks/results/README.md`.

        Training that may be killed: with `keras.callbacks.BackupAndRestore(folder,
        double_checkpoint=True)` the same script, run again, goes on at the epoch that
        was broken off, and ends with the same weights if its batches come in the same
        order (full batches, `shuffle=False`). Keras writes backups in place: without
        `double_checkpoint`, a kill while it does leaves one that cannot be read, as does
        a kill during the very first backup: delete the folder then. Keep
        `save_freq="epoch"`: Keras resumes at the start of an epoch, so that weights from
        its middle would train some batches twice, which a warning tells. (So does a kill
        in the instant between writing weights and epoch.) Other callbacks start afresh:
        Keras does not back up what `EarlyStopping` has counted.

        Training that diverges ends in an error that says so, with or without
        `TerminateOnNaN`. A warning tells where, at its end, the error on validation rows
        is more than three times KARE, which training then has fooled, unless
        `EarlyStopping` restores the weights that were best on them.

        Returns:
            A `History`: `loss` is KARE, and what regularisers of the network add;
            `val_loss` the measured mean squared error.

        Raises:
            ValueError: For bad input, named, before any training.
            tf.errors.InvalidArgumentError: If a gradient is not finite, before it
                changes any weight; or if training has diverged.
        """
        if not self.compiled:
            raise ValueError("Call `compile` before `fit`.")
        _validation.check_counts(
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
        )
        _validation.check_whole("epochs", epochs, 0)
        with Waiting(FIRST_STEP, verbose) as waiting:
            x, y = intake.taken(self.kernel, x, y)
            validation_data = intake.validation_taken(self.kernel, validation_data)
            session = Session.gathered(
                self,
                x,
                y,
                batch_size,
                validation_split,
                validation_data,
                steps_per_epoch,
                validation_steps,
                sample_weight=sample_weight,
                class_weight=class_weight,
            )
            before_training(self, session.rows.x)
            data = session.training_data(
                shuffle, steps_per_epoch
            ) | session.validation_data(
                validation_data, validation_batch_size or batch_size, validation_steps
            )
            start = session.begin(trains=epochs > initial_epoch)
            watch = Watch(self, initial_epoch, waiting)
            self._session = session
            try:
                history = super().fit(
                    **data,
                    epochs=epochs,
                    verbose=verbose,
                    callbacks=watched(callbacks, watch),
                    initial_epoch=initial_epoch,
                    validation_freq=validation_freq,
                )
            finally:
                self._session = None
        session.end(history, start, watch, (initial_epoch, epochs), shuffle)
        if not keeps_best(callbacks):
            overfitting.warn_after(history)
        return history

    @alone
    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Update the network once, on one batch; the head is stale afterwards."""
        known = self.head.classes  # as the first batch, or the last `fit`, said
        x, y = intake.taken(self.kernel, x, y)
        rows = gathering.gather(
            x, y, None, "", sample_weight, class_weight, self.task, known
        )
        self._check_rows(rows, None)
        self._check_trainable(rows, None)
        before_training(self, rows.x)
        if self._intercept is None:
            classification.tell_of_targets(self, rows)
        self.machine.state.trained = True
        intercept = self._intercept or self.machine.decide_intercept(rows)
        self._train_with(intercept, rows.classes)
        return super().train_on_batch(*rows.parts(), return_dict=return_dict)

    def _check_trainable(self, rows: Rows, validation: Rows | None) -> None:
        """Refuse kernels without weights, and targets on which no loss would mean much."""
        if not self.trainable_variables:
            raise ValueError(
                "Training needs a kernel with trainable variables. Solve the head of one "
                "without by `fit_head`. Received: a kernel of type "
                f"{type(self.kernel).__name__}"
            )
        _validation.check_counts_a_row("sample_weight", rows.weights)
        self.kernel.check_gradient(rows.x)
        wide = any(v.dtype == "float64" for v in self.trainable_variables)
        _validation.check_squares("y", rows.y, "float64" if wide else "float32")
        if validation is not None:
            _validation.check_squares("validation y", validation.y, keras.config.floatx())

    def _train_with(self, intercept: Intercept, classes: Classes | None) -> None:
        """Train for a constant or none, and labels or none, decided before any tracing."""
        if intercept.present:
            self.loss.check_intercept()
        state = self.machine.state
        others = (len(each or ()) for each in (state.classes, classes))
        if self._has_constant != intercept.present or len(set(others)) > 1:
            self.train_function = None  # it was traced for the other
        self._intercept, state.classes = intercept, classes

    @property
    def _trains(self) -> bool:
        return self._session is not None

    def save(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
        if self._session is not None:
            self._session.solve_for_file()
        super().save(filepath, overwrite=overwrite, **kwargs)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            if self._trains:  # `BackupAndRestore`: what was solved then does not matter
                warnings.filterwarnings("ignore", PROVISIONAL.partition(" (")[0])
            super().load_weights(filepath, *args, **kwargs)

    def _validates(self) -> bool:
        if self._session is not None:
            self._session.solve_for_validation()
        return self._session is not None

    def _calibrate(self) -> None:
        if self._session is None:
            super()._calibrate()
        else:
            self._session.calibrate()

    def _follow_callbacks(self) -> None:
        if self._session is None:
            super()._follow_callbacks()
        elif not self.machine.is_fresh():
            self._session.solve_for_validation()

    def get_compile_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_compile_config()
        return config and {**config, "input_noise": self.input_noise}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and self.optimizer is not None:
            self._told.build(self.optimizer, self.trainable_variables)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return {**config, "validation_anchors": self.validation_anchors}
