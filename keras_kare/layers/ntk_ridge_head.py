"""The solved kernel machine as a Keras layer."""

from __future__ import annotations

import dataclasses
import time
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels.kernel import Kernel
from keras_kare.layers import ridge_selection
from keras_kare.layers.head_state import HeadState, describe, signature
from keras_kare.layers.machine import (
    System,
    machine_targets,
    network_outputs,
    primal_weights,
)
from keras_kare.layers.posterior import Posterior
from keras_kare.layers.ridge_selection import Choice
from keras_kare.solvers import Solution

FORMS = ("auto", "dual", "primal")

Validation = tuple[Any, np.ndarray, np.ndarray | None]
"""Rows to choose the ridge on, their targets, and how often each counts."""


@keras.saving.register_keras_serializable(package="keras_kare")
class NTKRidgeHead(keras.layers.Layer):
    """Kernel ridge regression on a kernel, and its predictions.

    Solves `(K/n + λI) α = y` in float64 and predicts `ŷ(x) = (1/n) K(x, X) α`.

    Args:
        ridge: The ridge, a positive number, or `"auto"`: chosen on validation rows
            where there are any, else on rows held out from training, and by
            leave-one-out only where the kernel never saw `y`; `report` names the
            way. Candidates are `λ̃ = 1e-8 … 1e4`, all from one eigendecomposition.
            Defaults to `"auto"`.
        relative: Whether a given ridge is `λ̃`, with `λ = λ̃ tr(K)/n²`, or `λ`
            itself. Defaults to `True`.
        form: How predictions are computed. `"dual"`: kernel against the anchors.
            `"primal"`: from `w = (1/n) J(X)ᵀ α`, as one forward-mode derivative of
            the network in direction `w`; the cost does not depend on `n`, and no
            anchors are needed. `"auto"`: whichever takes fewer operations. They
            agree. Defaults to `"auto"`.
        residual: Whether the machine corrects the network instead of replacing it:
            `ŷ(x) = f(x) + (1/n) K(x, X) (K/n + λI)⁻¹ (y − f(X))`. Defaults to `False`.
        keep_anchors: Whether training rows are kept, which lets a stale head be
            solved again. `False` needs the primal form. Defaults to `True`.
        name: Name of the layer.

    Attributes:
        dual: `α`, `(n, c)` float64, or `None` (not solved, or dropped).
        anchors: The inputs `X`, or `None`.
        ridge_value: `λ` of the last solution, or `None`.
        report: Of the last solution: `ridge` (in the units of the argument),
            `ridge_value` (`λ`), `relative_ridge` (`λ̃`), `chosen_by`, `rows`,
            `leave_one_out_mse`, `kare` (at `z = λ`; `None` where weights of rows sum to
            less than the next), `effective_dimension`
            (`tr K(K + nλI)⁻¹`), `jitter`, `solver`, `form`, `seconds`.

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
        name: str | None = None,
        **kwargs: Any,
    ):
        _validation.check_ridge("ridge", ridge, auto=True)
        _validation.check_option("form", form, FORMS)
        if not keep_anchors and form == "dual":
            raise ValueError(
                "`keep_anchors=False` needs the primal form: the dual one predicts from "
                'the anchors. Received: form="dual", keep_anchors=False'
            )
        super().__init__(name=name, trainable=False, **kwargs)
        self.ridge = ridge
        self.relative = relative
        self.form = form
        self.residual = residual
        self.keep_anchors = keep_anchors
        self.built = True
        self._state = HeadState()

    def call(self, inputs: Any, kernel: Kernel) -> tf.Tensor:
        """Predictions for the rows `inputs`, `(n, c)`, by the kernel it was solved on."""
        state = self._state
        if not state.solved:
            raise ValueError(
                "The head has not been solved. Call `fit` or `fit_head(x, y)` first."
            )
        if state.weights is not None:
            outputs = kernel.jvp(inputs, [tf.convert_to_tensor(w) for w in state.weights])
        else:
            anchors = keras.tree.map_structure(tf.convert_to_tensor, state.anchors)
            dual = tf.convert_to_tensor(state.dual)
            cross = kernel.cross(inputs, anchors, dtype="float64")
            outputs = tf.matmul(cross, dual) / tf.cast(tf.shape(dual)[0], tf.float64)
        outputs = tf.cast(outputs, keras.config.floatx())
        if self.residual:
            outputs += tf.cast(network_outputs(kernel, inputs), outputs.dtype)
        return outputs

    def posterior(self, kernel: Kernel) -> Posterior:
        """The Gaussian process of the solution, which needs the anchors.

        Raises:
            ValueError: If the head has not been solved, or kept no anchors.
        """
        state = self._state
        if not state.solved or state.anchors is None or state.targets is None:
            raise ValueError(
                "The variance needs a solved head with its anchors. Call `fit` or "
                "`fit_head(x, y)` first, with `keep_anchors=True`."
            )
        system = System.of(
            kernel, self.anchors, state.targets, self.residual, state.row_weights
        )
        return Posterior(system, self.report["ridge_value"])

    @property
    def dual(self) -> tf.Tensor | None:
        dual = self._state.dual if self._state.solved else None
        return None if dual is None else dual.read_value()

    @property
    def anchors(self) -> Any:
        if self._state.anchors is None:
            return None
        return keras.tree.map_structure(lambda v: v.read_value(), self._state.anchors)

    @property
    def targets(self) -> np.ndarray | None:
        """Targets of the anchors, `(n, c)`, or `None` where no rows are kept."""
        return self._state.targets

    @property
    def columns(self) -> int:
        """Number `c` of targets that it predicts; 0 before it is solved."""
        state = self._state
        if state.weights is not None:
            return int(state.weights[0].shape[0])
        return 0 if state.dual is None else int(state.dual.shape[1])

    @property
    def ridge_value(self) -> float | None:
        return self.report.get("ridge_value")

    @property
    def report(self) -> dict[str, Any]:
        return dict(self._state.facts.get("report", {}))

    @property
    def trace_key(self) -> Any:
        """Changes whenever a traced prediction function has to be traced again."""
        return self._state.key()

    @property
    def trained(self) -> bool:
        """Whether a model that holds this head has trained its kernel."""
        return self._state.trained

    @trained.setter
    def trained(self, value: bool) -> None:
        self._state.trained = value

    def is_fresh(self, kernel: Kernel) -> bool:
        """Whether the solution belongs to the kernel's present weights."""
        solved_for = self._state.facts.get("fingerprint")
        return self._state.solved and solved_for == kernel.fingerprint()

    def hold(self, x: Any, y: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Keep rows to be solved on later, if rows are kept; forget the last solution."""
        self._state.hold(x, y, weights)
        if not self.keep_anchors:
            self._state.drop_anchors()

    def solve(
        self,
        kernel: Kernel,
        x: Any,
        y: np.ndarray,
        validation: Validation | None = None,
        choice: Choice | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        """Solve on the rows `x`, `y`, choosing the ridge if it is `"auto"`.

        Args:
            kernel: The kernel.
            x: `(n, ...)`.
            y: `(n, c)`.
            validation: Rows to choose the ridge on, their targets and weights.
            choice: A ridge that was chosen elsewhere, to use instead of all that.
            weights: How often each row counts, `(n,)`. Defaults to once.

        Raises:
            ValueError: If the kernel is zero on `x`, or `residual=True` does not fit.
        """
        begun = time.perf_counter()
        system = System.of(kernel, x, y, self.residual, weights)
        if choice is None and self.ridge != "auto":
            choice = Choice(float(self.ridge), by="the user", relative=self.relative)
        solution = None
        if choice is None and validation is not None:
            choice, solution = self._choose(kernel, x, system, validation)
        elif choice is None:
            choice, solution = ridge_selection.by_leave_one_out(system)
        if solution is None:
            solution = system.solve(choice.absolute(system.unit))
        form = self._choose_form(kernel, *solution.dual.shape)
        self._state.hold(x, y, weights)
        self._store(kernel, system, solution, choice, form)
        self._state.facts["report"]["seconds"] = time.perf_counter() - begun

    def solve_again(self, kernel: Kernel) -> None:
        """Solve on the rows that were kept, at the relative ridge chosen before.

        Raises:
            ValueError: If no rows were kept.
        """
        state = self._state
        if state.anchors is None or state.targets is None:
            raise ValueError(
                "The head is stale: the network's weights have changed since it was "
                "solved, and it kept no rows to be solved again. Call "
                "`fit_head(x, y)`, or make it with `keep_anchors=True`."
                if state.solved
                else "The head has not been solved. Call `fit` or `fit_head(x, y)` first."
            )
        before = state.facts.get("choice")
        choice = Choice(**before) if before and self.ridge == "auto" else None
        if choice is None and self.ridge == "auto":
            warnings.warn(
                "The head is solved at a relative ridge of 1, since none was chosen before "
                "training ended. Call `fit_head(x, y, validation_data=...)` to choose one.",
                stacklevel=4,
            )
            choice = Choice(ridge_selection.WITHOUT_EVIDENCE, by="default")
        self.solve(
            kernel, self.anchors, state.targets, choice=choice, weights=state.row_weights
        )

    def choose_ridge(
        self,
        kernel: Kernel,
        x: Any,
        y: np.ndarray,
        validation: Validation,
        by: str,
        weights: np.ndarray | None = None,
    ) -> Choice:
        """The ridge with the least squared error on validation rows, solving on `x`."""
        system = System.of(kernel, x, y, self.residual, weights)
        return self._choose(kernel, x, system, validation, by)[0]

    def _choose(
        self,
        kernel: Kernel,
        x: Any,
        system: System,
        validation: Validation,
        by: str = "validation data",
    ) -> tuple[Choice, Solution]:
        xv, yv, weights = validation
        cross = kernel.cross(xv, x, dtype="float64").numpy()
        left = machine_targets(kernel, xv, yv, self.residual)
        return ridge_selection.by_rows(system, cross, left, weights, by)

    def _store(
        self,
        kernel: Kernel,
        system: System,
        solution: Solution,
        choice: Choice,
        form: str,
    ) -> None:
        """Take over a solution for the rows that are held."""
        state, x = self._state, self.anchors
        dual = system.dual(solution)
        state.set_dual(dual)
        state.set_weights(primal_weights(kernel, x, dual) if form == "primal" else None)
        relative_ridge = solution.ridge / system.unit
        if not self.keep_anchors:
            state.drop_anchors()
        state.facts = {
            "fingerprint": kernel.fingerprint(),
            "choice": dataclasses.asdict(choice),
            "inputs": describe(x),
            "report": {
                "ridge": relative_ridge if self.relative else solution.ridge,
                "ridge_value": solution.ridge,
                "relative_ridge": relative_ridge,
                "chosen_by": choice.by,
                "rows": len(solution.dual),
                "leave_one_out_mse": solution.leave_one_out_mse,
                "kare": solution.kare,
                "effective_dimension": solution.effective_dimension,
                "jitter": solution.jitter,
                "solver": solution.solver,
                "form": form,
            },
        }

    def _choose_form(self, kernel: Kernel, anchors: int, targets: int) -> str:
        if self.form != "auto" or not self.keep_anchors:
            form = self.form if self.keep_anchors else "primal"
            self._check_form(form, kernel)
            return form
        costs = kernel.prediction_cost(anchors, targets)
        return min(costs, key=lambda form: costs[form])

    def _check_form(self, form: str, kernel: Kernel) -> None:
        if form == "primal" and not kernel.has_features:
            raise ValueError(
                f'{type(kernel).__name__} has no primal form. Use `form="dual"` and '
                f"`keep_anchors=True`. Received: form={self.form!r}, "
                f"keep_anchors={self.keep_anchors}"
            )

    def in_form(self, form: str, kernel: Kernel) -> NTKRidgeHead:
        """This solution, to be predicted with in the form `"primal"` or `"dual"`."""
        if form == self.report["form"]:
            return self
        state = self._state
        if state.anchors is None or state.dual is None:
            raise ValueError(
                "The head kept no anchors, so only its primal form is left. Received: "
                f"form={form!r}"
            )
        self._check_form(form, kernel)
        other = NTKRidgeHead.from_config({**self.get_config(), "form": form})
        other._state.hold(self.anchors, state.targets, state.row_weights)
        other._state.set_dual(state.dual.numpy())
        if form == "primal":
            other._state.set_weights(
                primal_weights(kernel, self.anchors, state.dual.numpy())
            )
        other._state.facts = {**state.facts, "report": {**self.report, "form": form}}
        return other

    def prediction_variables(self) -> list[tf.Variable]:
        """The variables that predictions read, besides the kernel's."""
        state = self._state
        if state.weights is not None:
            return list(state.weights)
        return [*keras.tree.flatten(state.anchors), state.dual]

    def input_signature(self) -> Any:
        """Shapes and types of the inputs it was solved on, as `tf.TensorSpec`s."""
        return signature(self._state.facts["inputs"])

    def save_own_variables(self, store: Any) -> None:
        self._state.save(store)

    def load_own_variables(self, store: Any) -> None:
        self._state.load(store)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        config.pop("trainable", None)
        return {
            **config,
            "ridge": self.ridge,
            "relative": self.relative,
            "form": self.form,
            "residual": self.residual,
            "keep_anchors": self.keep_anchors,
        }
