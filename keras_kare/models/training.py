"""Training a kernel: what a `KAREModel` does in `compile`, `fit` and `evaluate`."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf

from keras_kare import _rows, _validation, losses
from keras_kare import metrics as metrics_module
from keras_kare.kernels import Kernel
from keras_kare.kernels.recompute import attach
from keras_kare.kernels.structured.capture import run
from keras_kare.kernels.structured.untouched import untouched
from keras_kare.layers import NTKRidgeHead
from keras_kare.layers.intercept import Decision
from keras_kare.layers.ridge_selection import Choice
from keras_kare.models import batches, rehearsal
from keras_kare.models import rows as rows_module
from keras_kare.models.rows import Rows
from keras_kare.models.shared_step import SharedStep, shares_steps
from keras_kare.models.watch import Watch, keeps_best, watched

ONE_ROW = (
    "`x` yields a batch of one row, which has no KARE. Use `drop_remainder=True`, or "
    "another batch size. (The model has been trained on the batches before it; `fit_head` "
    "takes batches of any size.)"
)

NOT_FINITE = (
    "The gradient of the loss by the weight `{path}` is not finite at the present weights "
    "and inputs; no weight has been changed by this step. Scale inputs and targets to "
    "about one, take a larger ridge in the loss, use "
    '`keras.config.set_floatx("float64")`, or, if training went well before this step, a '
    "smaller learning rate. The gradient"
)

PARTED = 3.0
"""How many times KARE the error on validation rows may be, without a warning."""


class KARETrainer(keras.Model):
    """The training half of `KAREModel`, which adds the kernel and the head."""

    kernel: Kernel
    head: NTKRidgeHead
    validation_anchors: int
    _training_rows: Rows | None
    _intercept: Decision | None
    _streams: Any
    _solve_stream: Any
    history: Any
    train_function: Any
    run_eagerly: bool
    stop_training: bool

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = "kare",
        metrics: Any = None,
        weighted_metrics: Any = None,
        jit_compile: Any = False,
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
                (`kk.metrics.SignedAccuracy`). During training they are computed on
                the batch's leave-one-out predictions: right for a fixed kernel,
                optimistic once the kernel has been trained on these rows. Metrics of
                probabilities (`AUC`, `BinaryCrossentropy`, …) do not fit targets in
                {-1, 1}: compute those from `(1 + predictions) / 2`.
            weighted_metrics: As in Keras: metrics to which weights of rows apply.
            jit_compile: Must be false: XLA cannot say what jitter a Cholesky needed.
            **kwargs: As in `keras.Model.compile`.

        Raises:
            ValueError: If `loss` is no loss of a Gram matrix, or `jit_compile=True` or
                loss weights are given.
        """
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
        optimizer = keras.optimizers.get(optimizer)
        if kwargs.get("auto_scale_loss", True) and self._needs_scaling(optimizer):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        super().compile(
            optimizer=optimizer,
            loss=losses.get(loss),
            metrics=keras.tree.map_structure(metrics_module.get, metrics),
            weighted_metrics=keras.tree.map_structure(metrics_module.get, weighted_metrics),
            jit_compile=False,
            **kwargs,
        )

    def _needs_scaling(self, optimizer: Any) -> bool:
        """As Keras decides by a model's own policy, which here is the network's."""
        network: Any = getattr(self.kernel, "network", None)
        return (
            network is not None
            and network.dtype_policy.name == "mixed_float16"
            and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        )

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One batch: its Gram matrix, the loss, one update of the network."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        given = (y,) if weights is None else (y, weights)
        return self._updated(x, y, weights, *self._differentiated(x, *given))

    def _differentiated(
        self, x: Any, y: Any, *weights: Any
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """The loss of a batch, predictions of its rows, and gradients by the weights."""
        variables = self.trainable_variables
        # What the network notes while it is traced belongs to this graph alone.
        with untouched(getattr(self.kernel, "network", self.kernel)) as scope:
            sources = [v.value for v in variables]
            with tf.GradientTape() as tape:
                tape.watch(sources)
                loss, predictions = self._evaluate(tape, x, y, weights)
                if extras := self._network_losses(x, scope.losses):
                    loss += tf.add_n([tf.cast(extra, loss.dtype) for extra in extras])
                scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(
            scaled,
            sources,
            # The kernel does not depend on the last bias, for one.
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return loss, predictions, gradients

    def _updated(
        self,
        x: Any,
        y: Any,
        weights: Any,
        loss: tf.Tensor,
        predictions: tf.Tensor,
        gradients: list[tf.Tensor],
    ) -> dict[str, tf.Tensor]:
        """Update the network and the metrics, which are returned."""
        variables, y = self.trainable_variables, _columns(y, predictions)
        with tf.control_dependencies(self._refuse_not_finite(gradients, variables)):
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self._loss_tracker.update_state(loss, sample_weight=_count(y, weights))
        return self.compute_metrics(x, y, predictions, weights)

    def _refuse_not_finite(self, gradients: Any, variables: Any) -> list[Any]:
        """Checks to run before an update, which would lose all weights.

        Scaled losses are meant to overflow at times: their optimizer leaves out the step.
        """
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            return []
        return [
            tf.debugging.check_numerics(gradient, NOT_FINITE.format(path=variable.path))
            for gradient, variable in zip(gradients, variables, strict=True)
        ]

    def make_train_function(self, force: bool = False) -> Any:
        """As in Keras; a loss that supplies its gradients trains outside of graphs.

        Where networks of the same architecture may share a step, they do.
        """
        made = self.train_function
        if isinstance(made, SharedStep) and not made.is_current():
            made = None
        if made is not None and not force:
            return made
        if shares_steps(self, KARETrainer):
            self.train_function = SharedStep(self)
            return self.train_function
        eagerly = self.run_eagerly
        self.run_eagerly = eagerly or getattr(self.loss, "supplies_gradients", False)
        try:
            return super().make_train_function(force=True)
        finally:
            self.run_eagerly = eagerly

    def _evaluate(
        self, tape: tf.GradientTape, x: Any, y: Any, weights: tuple[Any, ...]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss of the batch, and predictions of its rows."""
        asked = self._intercept is not None and self._intercept.intercept
        constant = {"intercept": True} if asked else {}
        if not self.loss.supplies_gradients:
            gram = self.kernel.gram(x)
            if gram.shape[0] is None:  # streams show their last batch only when it comes
                several = tf.debugging.assert_greater(tf.shape(gram)[0], 1, ONE_ROW)
                with tf.control_dependencies([several] if several is not None else []):
                    gram = tf.identity(gram)
            return self.loss.evaluate(_columns(y, gram), gram, *weights, **constant)
        variables, step = self.kernel.trainable_variables, int(self.optimizer.iterations)
        y = _columns(y, variables[0])
        with tape.stop_recording():
            value, gradients, predictions = self.loss.value_and_gradients(
                self.kernel, x, y, step, *weights, **constant
            )
        loss = attach(
            tf.constant(value, y.dtype),
            variables,
            lambda upstream: [tf.cast(upstream, g.dtype) * g for g in gradients],
        )
        return loss, tf.constant(predictions, y.dtype)

    def _network_losses(self, x: Any, noted: list[Any]) -> list[tf.Tensor]:
        """What layers have noted (activity regularisers), and regularisers of weights."""
        if tf.executing_eagerly():
            # The kernel's functions note nothing when they run again.
            few = _rows.take(x, slice(2))
            noted = self._noted(x) if self._noted(few) else []
        graph = tf.compat.v1.get_default_graph()
        if any(getattr(extra, "graph", graph) is not graph for extra in noted):
            # In tiles, and by losses that form no Gram matrix, rows are seen elsewhere.
            noted = self._noted(x)
        extras = [tf.convert_to_tensor(extra) for extra in noted]
        for variable in self.trainable_variables:
            if (regularizer := getattr(variable, "regularizer", None)) is not None:
                extras.append(tf.convert_to_tensor(regularizer(variable)))
        return extras

    def _noted(self, x: Any) -> list[Any]:
        """What the network's layers note for rows; nothing where there is no network."""
        network = getattr(self.kernel, "network", None)
        if network is None:
            return []
        with untouched(network) as scope:
            run(network, x)
        return list(scope.losses)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One batch: mean squared error of the kernel machine, and the metrics."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        predictions = self(x, training=False)
        y = _columns(y, predictions)
        if y.shape[1] != predictions.shape[1]:
            raise ValueError(
                "`y` must have as many columns as the targets that the head was solved "
                f"for. Received: y of {y.shape[1]} columns, predictions of "
                f"{predictions.shape[1]}"
            )
        squared, count = tf.square(y - predictions), _count(y, weights)
        if weights is None:
            loss = tf.reduce_mean(squared)
        else:
            each = tf.reshape(tf.cast(weights, squared.dtype), (-1, 1))
            total = tf.reduce_mean(tf.reduce_sum(each * squared, axis=0))
            loss = tf.math.divide_no_nan(total, count)  # a batch may count for nothing
        self._loss_tracker.update_state(loss, sample_weight=count)
        return self.compute_metrics(x, y, predictions, weights)

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
            y: Targets `(n,)` or `(n, c)`, floats; classes are encoded as -1 and 1.
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
            class_weight: The same by class: a dict from the number of a class (0 for
                the lower and 1 for the upper of two targets, else the column) to the
                weight of its rows.

        Without validation rows, `ridge="auto"` takes a rehearsal after training: the
        same training from the same start on four fifths of the rows, whose kernel the
        remaining fifth never trained; they choose the ridge. That doubles the time; a
        number as `ridge`, or validation rows, avoid it.

        A model that a callback saves during training holds the machine of the last
        validation, at the ridge of the loss; without validation it is solved when it
        first predicts.

        With a head whose `solver` is `"primal"`, `"nystrom"` or `"eigenpro"`, a dataset is
        streamed: it trains and is solved on batch by batch, and its rows are never in
        memory together. Validation during training then takes the first
        `validation_anchors` rows as anchors.

        KARE can be fooled by training. A warning tells when, in the last epoch,
        `val_loss` was more than three times `loss`; stop earlier, with
        `keras.callbacks.EarlyStopping("val_loss", restore_best_weights=True)`, or
        minimise `kk.losses.HoldoutKARE`.

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
        _validation.check_whole("steps_per_epoch", steps_per_epoch, 1, optional=True)
        _validation.check_whole("validation_steps", validation_steps, 1, optional=True)
        _validation.check_whole(
            "validation_batch_size", validation_batch_size, 1, optional=True
        )
        streams, steps = self._streams(x), batches.steps_of_rows(x, steps_per_epoch)
        if streams:
            rows_module.check_alone(y, sample_weight, class_weight)
            rows = rows_module.begin(x, steps, self.validation_anchors)
        else:
            weights = {"sample_weight": sample_weight, "class_weight": class_weight}
            rows = rows_module.gather(x, y, steps, **weights)
        if validation_split and validation_data is None:
            if batches.is_dataset(x):
                raise ValueError(
                    "`validation_split` needs arrays. Split the dataset, and pass "
                    f"`validation_data`. Received: validation_split={validation_split}"
                )
            rows, held = rows.split(validation_split)
            validation_data = held.parts()
        validation = rows_module.gather_validation(validation_data, validation_steps)
        arrays = not batches.is_dataset(x)
        if arrays and batch_size is None:
            full = self.loss.supplies_gradients
            batch_size = len(rows) if full else rows_module.default_batch_size(len(rows))
        size = rows.batch_size if batch_size is None else batch_size
        self._check_rows(rows, validation, size)
        self._check_trainable(rows.x)
        self._check_squares(rows, validation)
        shuffles = shuffle and not isinstance(x, tf.data.Dataset)  # else Keras warns
        data = {"x": x, "steps_per_epoch": steps_per_epoch, "shuffle": shuffles}
        if arrays:
            rows_module.check_batch_size(size, len(rows))
            data = self._batches_of(rows, size, shuffle, steps_per_epoch)
        if validation is not None and not batches.is_dataset(validation_data):
            most = rows_module.prediction_batch_size(validation_batch_size or batch_size)
            validation_data = validation.parts()
            whole = self._in_one_batch(validation_data, most, validation_steps)
            if whole is not None:
                validation_data, validation_steps = whole, 1
        if streams:
            stream = rows_module.stream(x, steps)
            self.head.check_stream(stream, validation is not None)
            self._train_with(self.head.decide_intercept_of(stream))
        else:
            self._train_with(self.head.decide_intercept(rows.y, rows.weights))
        self.head.hold(rows.x, rows.y, rows.weights)
        self.head.trained = self.head.trained or epochs > initial_epoch
        if not self.optimizer.built:  # else the step would be traced twice
            self.optimizer.build(self.trainable_variables)
        rehearses = self.head.ridge == "auto" and validation is None
        start = rehearsal.Snapshot(self) if rehearses else None
        watch = Watch(self, initial_epoch)
        self._training_rows = rows
        try:
            history = super().fit(
                **data,
                epochs=epochs,
                verbose=verbose,
                callbacks=watched(callbacks, watch),
                validation_data=validation_data,
                initial_epoch=initial_epoch,
                validation_steps=validation_steps,
                validation_batch_size=validation_batch_size,
                validation_freq=validation_freq,
            )
        finally:
            self._training_rows = None
        ran, first = rehearsal.epochs_run(history, initial_epoch, epochs, watch.restored)
        if start is None or not ran:
            choice = None if ran else self._choice_without_rows(validation)
        else:
            choice = rehearsal.rehearse(
                self,
                rows,
                start,
                ran,
                first,
                size,
                shuffle,
            )
        if streams:
            self._solve_stream(x, steps, validation, self._intercept)
        else:
            self._solve_head(rows, validation, choice, self._intercept)
        if not keeps_best(callbacks):
            _warn_if_parted(history)
        return history

    def _batches_of(
        self, rows: Rows, batch_size: int, shuffle: bool, steps: int | None = None
    ) -> dict[str, Any]:
        """Rows as `keras.Model.fit` takes them: arrays, or a dataset of one batch."""
        whole = self._in_one_batch(
            rows.parts(), batch_size, steps, shuffle=shuffle, fixed=True
        )
        if whole is not None:
            return {"x": whole, "steps_per_epoch": 1, "shuffle": False}
        return {
            "x": rows.x,
            "y": rows.y,
            "sample_weight": rows.weights,
            "batch_size": batch_size,
            "steps_per_epoch": steps,
            "shuffle": shuffle,
        }

    def _in_one_batch(
        self,
        parts: tuple[Any, ...],
        batch_size: int,
        steps: int | None,
        shuffle: bool = False,
        fixed: bool = False,
    ) -> tf.data.Dataset | None:
        """A dataset of one batch, where Keras would take all these rows in one step."""
        count = _rows.count(parts)
        if steps is not None or self.steps_per_execution != 1 or batch_size < count:
            return None
        return rows_module.in_one_batch(parts, shuffle, fixed)

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
        """Mean squared error of the kernel machine, and the compiled metrics.

        Needs no `compile`, except for metrics. With `sample_weight`, a weighted mean.

        Args as in `keras.Model.evaluate`; `batch_size` defaults to 1,024.

        Raises:
            ValueError: For bad input, and as `predict`.
        """
        batches.check_ends(x, steps)
        if not self.compiled:
            self.compile()
        if self._training_rows is not None:
            self._solve_for_validation(self._training_rows)
        else:
            self._refresh_head()
            if not batches.is_dataset(x):
                rows = rows_module.gather(x, y, None, sample_weight=sample_weight)
                _validation.check_squares("y", rows.y, keras.config.floatx())
                x, y, sample_weight = rows.parts()
                batch_size = rows_module.prediction_batch_size(batch_size)
                whole = self._in_one_batch(rows.parts(), batch_size, steps)
                if whole is not None:
                    x, y, sample_weight, steps = whole, None, None, 1
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

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """One update on one batch; the head is stale afterwards. As in Keras."""
        rows = rows_module.gather(
            x, y, None, sample_weight=sample_weight, class_weight=class_weight
        )
        self._check_rows(rows, None)
        self._check_trainable(rows.x)
        self._check_squares(rows, None)
        self.head.trained = True
        if self._intercept is None:  # else as the first batch, or the last `fit`, said
            self._train_with(self.head.decide_intercept(rows.y, rows.weights))
        return super().train_on_batch(*rows.parts(), return_dict=return_dict)

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Mean squared error and metrics of the kernel machine on one batch."""
        rows = rows_module.gather(x, y, None, sample_weight=sample_weight)
        _validation.check_squares("y", rows.y, keras.config.floatx())
        self._refresh_head()
        self._forget_stale_traces()
        return super().test_on_batch(*rows.parts(), return_dict=return_dict)

    def _check_trainable(self, x: Any) -> None:
        if not self.trainable_variables:
            raise ValueError(
                "Training needs a kernel with trainable variables. Solve the head of one "
                "without by `fit_head`. Received: a kernel of type "
                f"{type(self.kernel).__name__}"
            )
        self.kernel.check_gradient(x)

    def _check_squares(self, rows: Rows, validation: Rows | None) -> None:
        """Refuse targets on which a loss would be 0, or overflow, whatever is trained."""
        wide = any(v.dtype == "float64" for v in self.trainable_variables)
        _validation.check_squares("y", rows.y, "float64" if wide else "float32")
        if validation is not None:
            _validation.check_squares("validation y", validation.y, keras.config.floatx())

    def _train_with(self, intercept: Decision) -> None:
        """Train for a machine with a constant or without, decided before any tracing."""
        if intercept.intercept:
            self.loss.check_intercept()
        before = self._intercept is not None and self._intercept.intercept
        if before != intercept.intercept:
            self.train_function = None  # it was traced for the other
        self._intercept = intercept

    def _solve_if_stale(self) -> None:
        """Solve again where a callback has changed the weights."""
        if self.head.is_fresh(self.kernel):
            return
        if self._training_rows is not None:
            self._solve_for_validation(self._training_rows)
        else:
            self.head.solve_again(self.kernel)

    def _solve_for_validation(self, rows: Rows) -> None:
        """An exact head at the ridge of the loss, on not too many rows."""
        rows = rows.spread(self.validation_anchors)
        choice = Choice(self.loss.ridge, by="the loss", relative=self.loss.relative)
        self.head.solve(
            self.kernel,
            rows.x,
            rows.y,
            choice=choice,
            weights=rows.weights,
            solver="auto",
            intercept=self._intercept,
        )

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)


def _warn_if_parted(history: keras.callbacks.History) -> None:
    """Tell when KARE no longer estimates the error on held-out rows."""
    values = [history.history.get(name) for name in ("loss", "val_loss")]
    if not all(values):
        return
    loss, val_loss = (value[-1] for value in values)
    if not val_loss > PARTED * loss:
        return
    warnings.warn(
        f"KARE says {loss:.3g}, but the mean squared error on validation rows is "
        f"{val_loss:.3g}, more than {PARTED:g} times as much: training has overfitted "
        "KARE. Stop earlier, with `keras.callbacks.EarlyStopping('val_loss', "
        "restore_best_weights=True)`, take a larger ridge in the loss, or minimise "
        "`kk.losses.HoldoutKARE`.",
        stacklevel=4,
    )


def _count(y: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """How often the rows count together."""
    if weights is None:
        return tf.cast(tf.shape(y)[0], y.dtype)
    return tf.reduce_sum(tf.cast(weights, y.dtype))


def _columns(y: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Targets as `(n, c)`, of the type of `like`."""
    y = tf.cast(y, like.dtype)
    if y.shape.rank == 2:
        return y
    count = y.shape[1:].num_elements() if y.shape.rank else 1
    return tf.reshape(y, (-1, count))
