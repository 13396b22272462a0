"""Full-batch descent on a Gram loss, compiled once and run many times."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare._step import differentiated
from keras_kare.kernels.kernel import Kernel
from keras_kare.losses import GramLoss


class Descent:
    """Many steps in one graph: what `KAREModel.fit` does, without its callbacks.

    On a few hundred rows a step takes about a millisecond, and what Keras does around
    it takes many times as long. Experiments and cross-fitting train hundreds of small
    networks of one shape, so that they run whole trainings in the graph: one trace
    serves any number of rows, targets, and starts.

    Args:
        kernel: The kernel that is trained, with inputs of one array.
        loss: A `GramLoss`.
        optimizer: A Keras optimizer; its learning rate is given to `run`. Each `restart`
            sets it back to its start.
        row: Shape and type of a row. Defaults to those of the kernel's `network`.

    Example:

    ```python
    descent = Descent(kk.kernels.NTK(network), kk.losses.KARE(0.1), keras.optimizers.SGD())
    losses = descent.run(x, y, learning_rate=10.0, steps=300)
    ```
    """

    def __init__(
        self,
        kernel: Kernel,
        loss: GramLoss,
        optimizer: Any,
        row: tf.TensorSpec | None = None,
    ):
        self.kernel, self.loss, self.optimizer = kernel, loss, optimizer
        self._variables = list(kernel.trainable_variables)
        optimizer.build(self._variables)
        self._start = list(map(copy_of, optimizer.variables))
        dtype = self._variables[0].dtype
        if row is None:
            inputs = kernel.network.inputs[0]
            row = tf.TensorSpec(inputs.shape[1:], inputs.dtype)
        self.rows = tf.TensorSpec((None, *row.shape), row.dtype)
        signature = [
            self.rows,
            tf.TensorSpec((None, None), dtype),
            *[tf.TensorSpec((), tf.int32)] * 3,
        ]
        self._run, self._run_weighted = (
            tf.function(self._steps, autograph=False, input_signature=signature + more)
            for more in ([], [tf.TensorSpec((None,), dtype)])
        )

    def restart(self) -> None:
        """Forget the optimizer's moments and its count of steps."""
        for variable, value in zip(self.optimizer.variables, self._start, strict=True):
            variable.assign(value)

    def run(
        self,
        x: Any,
        y: Any,
        learning_rate: float,
        steps: int,
        batches: int = 1,
        seed: int = 0,
        weights: np.ndarray | None = None,
    ) -> np.ndarray:
        """Take steps, on all rows or on even batches of them.

        Args:
            x: Inputs, `(n, ...)`.
            y: Targets, `(n, c)`.
            learning_rate: That of the optimizer.
            steps: How many.
            batches: Into how many the rows are cut, anew after each pass. Defaults to `1`.
            seed: Seed of the cuts, which also depend on the optimizer's count of steps: two
                runs of 10 steps do what one of 20 does. Defaults to `0`.
            weights: How often each row counts, `(n,)`. Defaults to once.

        Returns:
            The loss before each step. Where one is not finite, the weights stay as they
            are from there on: the array ends with that loss.
        """
        _check_counts(steps, batches, len(x))
        self.optimizer.learning_rate.assign(learning_rate)
        dtype = self._variables[0].dtype
        x = tf.cast(x, self.rows.dtype)
        y = tf.cast(y, dtype)
        run: Any = self._run
        more: tuple[tf.Tensor, ...] = ()
        if weights is not None:
            run, more = self._run_weighted, (tf.cast(weights, dtype),)
        state = [*self._variables, *self.optimizer.variables]
        before, count = list(map(copy_of, state)), int(self.optimizer.iterations)
        try:
            losses, taken = run(x, y, steps, batches, seed, *more)
        except tf.errors.InvalidArgumentError:
            # The loss refuses a kernel that is not finite, or not positive definite.
            if not all(map(_validation.all_finite, (x, y))):
                raise
            taken = int(self.optimizer.iterations) - count
            for variable, value in zip(state, before, strict=True):
                variable.assign(value)
            losses, _ = run(x, y, taken, batches, seed, *more)  # those before were fine
            losses = losses.numpy()
            return np.append(losses, losses.dtype.type("nan"))
        return losses.numpy()[: int(taken)]

    def seen(self, batch: list[tf.Tensor], moment: tf.Tensor) -> list[tf.Tensor]:
        """Return what a step sees of its batch; subclasses may disturb it.

        Args:
            batch: `x`, `y`, and weights where there are some.
            moment: The seed of `run` and the number of the step, `(2,)`: a seed for
                TensorFlow's stateless random functions.
        """
        return batch

    def _steps(
        self, x: tf.Tensor, y: tf.Tensor, steps: Any, batches: Any, seed: Any, *weights: Any
    ) -> tuple[Any, Any]:
        losses = tf.TensorArray(y.dtype, size=steps)
        n = tf.shape(x)[0]

        def cut() -> tf.Tensor:
            count = tf.cast(self.optimizer.iterations, tf.int32)
            epoch, part = count // batches, count % batches
            order = tf.random.experimental.stateless_shuffle(
                tf.range(n), tf.stack([seed, epoch])
            )
            return order[n * part // batches : n * (part + 1) // batches]

        def step(i: tf.Tensor, fine: tf.Tensor, losses: Any) -> tuple[Any, Any, Any]:
            rows = tf.cond(batches > 1, cut, lambda: tf.range(n))
            batch = [tf.gather(part, rows) for part in (x, y, *weights)]
            moment = tf.stack([seed, tf.cast(self.optimizer.iterations, tf.int32)])
            batch = self.seen(batch, moment)
            loss, _, gradients = differentiated(
                self.loss, self.kernel, self._variables, *batch
            )
            for part in (loss, *gradients):
                fine &= tf.reduce_all(tf.math.is_finite(part))
            # not at all: moments and weight decay move weights without a gradient
            tf.cond(
                fine, lambda: self._apply(gradients), lambda: self.optimizer.iterations + 0
            )
            loss = tf.where(fine | ~tf.math.is_finite(loss), loss, np.nan)
            return i + 1, fine, losses.write(i, loss)

        taken, _, losses = tf.while_loop(
            lambda i, fine, losses: (i < steps) & fine,
            step,
            (tf.constant(0), tf.constant(True), losses),
        )
        return losses.stack(), taken

    def _apply(self, gradients: list[tf.Tensor]) -> tf.Tensor:
        self.optimizer.apply(gradients, self._variables)
        return self.optimizer.iterations + 0


def _check_counts(steps: int, batches: int, rows: int) -> None:
    _validation.check_whole("steps", steps, 0)
    _validation.check_whole("batches", batches, 1)
    if batches > rows:
        raise ValueError(
            f"`batches` must be at most the number of rows, {rows}. "
            f"Received: batches={batches!r}"
        )


def copy_of(variable: Any) -> np.ndarray:
    """Return a variable's value of this moment; Keras' own way warns with NumPy 2."""
    return np.array(variable.value.numpy())
