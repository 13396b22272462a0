"""The solved kernel machine as a Keras layer."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation, solvers
from keras_kare._labels import Classes
from keras_kare.kernels.kernel import Kernel
from keras_kare.machine import Machine, Settings, State
from keras_kare.machine import ridge as ridges
from keras_kare.machine.machine import PROVISIONAL
from keras_kare.machine.prediction import from_cross
from keras_kare.machine.state import values
from keras_kare.solvers import Solver

FORMS = ("auto", "dual", "primal")


@keras.saving.register_keras_serializable(package="keras_kare")
class NTKRidgeHead(keras.layers.Layer):
    """Kernel ridge regression on a kernel, and its predictions.

    Solves `(K/n + λI) α = y` in float64 and predicts `ŷ(x) = (1/n) K(x, X) α`, from ten
    rows to a million.

    Args:
        ridge: The ridge, a positive number, or `"auto"`: chosen on validation rows
            where there are any, else on rows held out from training, and by
            leave-one-out only where the kernel never saw `y`; `report` names the
            way. Candidates are `λ̃ = 1e-8 … 1e4`, all from one eigendecomposition; for
            solvers that iterate, one a decade, `1e2 … 1e-4`, and rows are held out
            where leave-one-out would choose. A name that was registered by
            `keras_kare.machine.register_way`: by that. Defaults to `"auto"`.
        relative: Whether a given ridge is `λ̃`, with `λ = λ̃ tr(K)/n²`, or `λ`
            itself. Defaults to `True`.
        form: How predictions are computed. `"dual"`: kernel against the anchors.
            `"primal"`: from `w = (1/n) J(X)ᵀ α`, as one forward-mode derivative of
            the network in direction `w`; the cost does not depend on `n`, and no
            anchors are needed (`w` is held in the network's type; in float64 where it
            would overflow or vanish there). `"auto"`: whichever takes fewer operations.
            They agree. Defaults to `"auto"`.
        residual: Whether the machine corrects the network instead of replacing it:
            `ŷ(x) = f(x) + (1/n) K(x, X) (K/n + λI)⁻¹ (y − f(X))`. Defaults to `False`.
        keep_anchors: Whether training rows are kept, which lets a stale head be
            solved again. `False` needs the primal form. Rows of a stream never are, and
            of `"nystrom"` the centres only. Defaults to `True`.
        intercept: Whether there is a constant `b` beside the machine, which no ridge holds
            back: `ŷ(x) = (1/n) K(x, X) α + b` with `(K/n + λI) α + 1 b = y`, `1ᵀα = 0`.
            It is part of all that follows: KARE in `fit`, leave-one-out, the choice of
            the ridge, `variance`, export. `False`: the paper's machine, whose predictions
            a ridge shrinks towards zero. `"auto"`: only where some target is far from
            zero on the training rows: where its mean is more than 3 times its standard
            deviation, or it is constant, and not zero. Targets that all are -1 or 1,
            as classes are encoded, never are. (Measured on diabetes, with targets
            shifted by 3 standard deviations: errors without a constant are 1 to 4 %
            larger than with one; by 10, up to 17 %; by 50, up to 113 %.) A stream is
            read once more for that. Defaults to `"auto"`.
        solver: How the system is solved: the name of a solver of `keras_kare.solvers`, or
            one with its settings, such as `kk.solvers.CG(tolerance=1e-4)`.
            `"spectral"`, `"cholesky"`: the matrix is formed; thousands of rows.
            `"primal"`: exact, as many unknowns as the network has variables; streams.
            `"cg"`: any number of rows and variables, to a tolerance.
            `"eigenpro"`: the same by steps on batches of rows; for large ridges;
            streams.
            `"nystrom"`: an approximation on `m` centres, which are then the anchors;
            streams.
            `"auto"`: the exact solver that takes fewest operations and fits in memory;
            the report says why. Defaults to `"auto"`.
        name: Name of the layer.

    Attributes:
        dual: `α`, `(n, c)` float64, or `None` (not solved, or dropped).
        anchors: The inputs `X`, or `None`.
        ridge_value: `λ` of the last solution, or `None`.
        report: Of the last solution: `ridge` (in the units of the argument),
            `ridge_value` (`λ`), `relative_ridge` (`λ̃`), `chosen_by`, `rows`,
            `leave_one_out_mse`, `kare` (at `z = λ`; `None` where weights of rows sum to
            less than the next), `effective_dimension`
            (`tr K(K + nλI)⁻¹`), `jitter`, `solver`, `why` (it was taken), `form`,
            `residual` (`|y − (K/n + λI) α|/|y|`, the largest of all targets),
            `intercept` (`b`, one number a target, or `None`), `intercept_by` (who said
            so), `calibrated_by` (rows that probabilities of classes are calibrated on, or
            `None`), `tolerance`, `converged` (`predict` warns where it is not),
            `iterations`, `stopped`, `kernel_error` (of `"nystrom"`), `seconds`. What a
            solver cannot know is `None`.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    ```python
    head = kk.NTKRidgeHead(ridge=1e-2, relative=True)
    model = kk.KAREModel(network, head=head)
    model.fit_head(x, y)
    model.head.report["effective_dimension"]
    ```

    References:
        - Schwab et al., arXiv:2505.11347 (after-NTK and the residual machine).
    """

    def __init__(
        self,
        ridge: float | str = "auto",
        relative: bool = True,
        form: str = "auto",
        residual: bool = False,
        keep_anchors: bool = True,
        solver: str | Solver = "auto",
        intercept: bool | str = "auto",
        name: str | None = None,
        **kwargs: Any,
    ):
        ridges.check(ridge)
        _validation.check_option("form", form, FORMS)
        if not isinstance(intercept, bool) and intercept != "auto":
            raise ValueError(
                '`intercept` must be True, False or "auto". '
                f"Received: intercept={intercept!r}"
            )
        if not keep_anchors and form == "dual":
            raise ValueError(
                "`keep_anchors=False` needs the primal form: the dual one predicts from "
                'the anchors. Received: form="dual", keep_anchors=False'
            )
        super().__init__(name=name, trainable=False, autocast=False, **kwargs)
        self.ridge = ridge
        self.relative = relative
        self.form = form
        self.residual = residual
        self.keep_anchors = keep_anchors
        self.solver = solvers.get(solver)
        self.intercept = intercept
        self.built = True
        self._state = State()
        self._shelf = self._state.shelf  # an attribute, for TensorFlow's savers

    def call(self, inputs: Any) -> tf.Tensor:
        """Return the dual machine's outputs from kernel values with the anchors.

        Args:
            inputs: `K(x, X)`, `(m, n)`.

        Returns:
            `(1/n) K(x, X) α + b`, `(m, c)` float64. (To it, with `residual=True`,
            `KAREModel` adds what the network says.)

        Raises:
            ValueError: If there is no dual solution.
        """
        state = self._state
        if not state.solved or state.dual is None:
            raise ValueError(
                "The head holds no dual solution: it has not been solved, or kept no "
                "anchors. Call `fit` or `fit_head(x, y)` first, with `keep_anchors=True`."
            )
        outputs = from_cross(tf.cast(inputs, tf.float64), state.dual.read_value())
        return outputs if state.constant is None else outputs + state.constant

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, int]:
        return (input_shape[0], self._state.columns)

    def on(self, kernel: Kernel) -> Machine:
        """Return the machine of this head and a kernel, which solves and predicts."""
        return Machine(kernel, self._settings(), self._state)

    @property
    def dual(self) -> tf.Tensor | None:
        dual = self._state.dual if self._state.solved else None
        return None if dual is None else dual.read_value()

    @property
    def constant(self) -> tf.Tensor | None:
        """The intercept `b`, `(c,)` float64, or `None` where there is none."""
        constant = self._state.constant if self._state.solved else None
        return None if constant is None else constant.read_value()

    @property
    def anchors(self) -> Any:
        anchors = self._state.anchors
        return None if anchors is None else values(anchors)

    @property
    def targets(self) -> np.ndarray | None:
        """Targets of the anchors, `(n, c)`, or `None` where no rows are kept."""
        return self._state.targets

    @property
    def classes(self) -> Classes | None:
        """What the targets stand for, or `None` for numbers: `KAREModel` finds them."""
        return self._state.classes

    @property
    def inverse_temperature(self) -> float | None:
        """What outputs are multiplied by to become probabilities, once it is known."""
        known: float | None = self._state.facts.get("inverse_temperature")
        return known

    @property
    def ridge_value(self) -> float | None:
        return self.report.get("ridge_value")

    @property
    def report(self) -> dict[str, Any]:
        return dict(self._state.facts.get("report", {}))

    def save_own_variables(self, store: Any) -> None:
        self._state.save(store)

    def load_own_variables(self, store: Any) -> None:
        self._state.load(store)
        if provisional := self._state.facts.get("provisional"):
            warnings.warn(PROVISIONAL.format(provisional), RuntimeWarning, stacklevel=2)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        config.pop("trainable", None)
        settings = vars(self._settings())
        if isinstance(self.solver, Solver):
            settings["solver"] = keras.saving.serialize_keras_object(self.solver)
        return {**config, **settings}

    def _settings(self) -> Settings:
        return Settings(
            self.ridge,
            self.relative,
            self.form,
            self.residual,
            self.keep_anchors,
            self.solver,
            self.intercept,
        )
