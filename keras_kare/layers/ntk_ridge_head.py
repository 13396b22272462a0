"""The solved kernel machine as a Keras layer."""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation, solvers
from keras_kare.kernels import identity
from keras_kare.kernels.kernel import Kernel
from keras_kare.layers import intercept as intercepts
from keras_kare.layers import ridge_selection, solving
from keras_kare.layers.head_state import HeadState, describe, signature
from keras_kare.layers.machine import (
    as_stored,
    machine_targets,
    network_outputs,
    primal_weights,
    system_of,
)
from keras_kare.layers.posterior import Posterior
from keras_kare.layers.ridge_selection import Choice
from keras_kare.layers.solving import Validation
from keras_kare.solvers import Prepared, Solution, Solver
from keras_kare.solvers.stream import Stream

FORMS = ("auto", "dual", "primal")

NOT_FINITE = (
    "A prediction is not finite: it is too large for the type that models compute in, or "
    "the network's derivatives at its row are. Scale targets and inputs to about one, or "
    'use `keras.config.set_floatx("float64")`. Predictions'
)


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
            where leave-one-out would choose. Defaults to `"auto"`.
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
            so), `tolerance`, `converged` (`predict` warns where it is not), `iterations`,
            `stopped`, `kernel_error` (of `"nystrom"`), `seconds`. What a solver cannot
            know is `None`.

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
        _validation.check_ridge("ridge", ridge, auto=True)
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
        super().__init__(name=name, trainable=False, **kwargs)
        self.ridge = ridge
        self.relative = relative
        self.form = form
        self.residual = residual
        self.keep_anchors = keep_anchors
        self.solver = solvers.get(solver)
        self.intercept = intercept
        self.built = True
        self._state = HeadState()
        self._shelf = self._state.shelf  # an attribute, for TensorFlow's savers

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
        if state.constant is not None:
            outputs = tf.cast(outputs, tf.float64) + tf.convert_to_tensor(state.constant)
        outputs = tf.cast(outputs, keras.config.floatx())
        if self.residual:
            outputs += tf.cast(network_outputs(kernel, inputs), outputs.dtype)
        return tf.debugging.check_numerics(outputs, NOT_FINITE)

    def posterior(self, kernel: Kernel) -> Posterior:
        """The Gaussian process of the solution, which needs the anchors.

        Raises:
            ValueError: If the head has not been solved, or kept no anchors.
        """
        state = self._state
        if not state.solved or state.anchors is None or state.targets is None:
            raise ValueError(
                "The variance needs a solved head with all its rows. Call `fit` or "
                "`fit_head(x, y)` first, on arrays, with `keep_anchors=True` and a solver "
                'other than "nystrom".'
            )
        system = system_of(
            kernel,
            self.anchors,
            state.targets,
            self.residual,
            state.row_weights,
            intercept=state.constant is not None,
        )
        solvers.Cholesky().check_memory(system, "Use fewer rows.")
        return Posterior(system, self.report["ridge_value"])

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
        """Whether the solution belongs to the kernel, as it is and with its weights."""
        facts = self._state.facts
        if not self._state.solved or facts["fingerprint"] != kernel.weights_fingerprint():
            return False
        # Other versions of Keras and Python describe the same network in other words.
        made_by, architecture = facts.get("architecture", (None, ""))
        if made_by != identity.made_by(architecture):
            return True
        return bool(architecture == kernel.architecture())

    def hold(self, x: Any, y: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Keep rows to be solved on later, if rows are kept; forget the last solution."""
        self._state.hold(x, y, weights)
        if not self.keep_anchors:
            self._state.drop_anchors()

    def decide_intercept(
        self, y: np.ndarray, weights: np.ndarray | None = None
    ) -> intercepts.Decision:
        """Whether a machine for these targets gets a constant."""
        return intercepts.decide(self.intercept, [(y, weights)])

    def decide_intercept_of(self, stream: Stream) -> intercepts.Decision:
        """The same for a stream, which `"auto"` reads once more."""
        parts = ((y, weights) for _, y, weights in stream.batches())
        return intercepts.decide(self.intercept, parts)

    def solve(
        self,
        kernel: Kernel,
        x: Any,
        y: np.ndarray,
        validation: Validation | None = None,
        choice: Choice | None = None,
        weights: np.ndarray | None = None,
        solver: Solver | str | None = None,
        intercept: intercepts.Decision | None = None,
    ) -> None:
        """Solve on the rows `x`, `y`, choosing the ridge if it is `"auto"`.

        Args:
            kernel: The kernel.
            x: `(n, ...)`.
            y: `(n, c)`.
            validation: Rows to choose the ridge on, their targets and weights.
            choice: A ridge that was chosen elsewhere, to use instead of all that.
            weights: How often each row counts, `(n,)`. Defaults to once.
            solver: How, instead of the head's own solver.
            intercept: What was decided before, on more rows. Defaults to a decision on
                these.

        Raises:
            ValueError: If the kernel is zero on `x`, or `residual=True` does not fit.
            MemoryError: Before the work, if it does not fit in memory.
            KeyboardInterrupt: After Ctrl-C; the head holds the best iterate, if a
                solver was iterating.
        """
        begun = time.perf_counter()
        intercept = intercept or self.decide_intercept(y, weights)
        system = system_of(kernel, x, y, self.residual, weights, intercept.intercept)
        choice = self._users_choice() if choice is None else choice
        decision = solving.decide(
            system,
            1 if choice else len(ridge_selection.GRID),
            self.solver if solver is None else solver,
        )
        prepared = decision.solver.prepare(system)
        if choice is None:
            choice = solving.choose(kernel, prepared, validation, self.residual)
        solution = prepared.checked(prepared.solve(choice.absolute(prepared.unit)))
        form = self._choose_form(kernel, *solving.shape(solution))
        self._state.hold(
            x if solution.centres is None else prepared.anchors_of(solution), y, weights
        )
        if solution.centres is not None:
            self._state.forget_targets()
        self._store(kernel, prepared, solution, choice, form)
        facts = {
            "why": decision.why,
            "intercept_by": intercept.by,
            "seconds": time.perf_counter() - begun,
        }
        self._state.facts["report"].update(facts)
        if solution.stopped == "interrupted":
            raise solving.interrupted(solution)

    def check_stream(self, stream: Stream, validated: bool) -> None:
        """Refuse, before long work, what cannot be solved from a stream.

        Args:
            stream: The rows.
            validated: Whether there are rows to choose `ridge="auto"` on.
        """
        assert isinstance(self.solver, Solver)
        if self.ridge == "auto" and not validated:
            raise ValueError(
                '`ridge="auto"` needs rows to choose on, and a stream is not split. Pass '
                "`validation_data`, or a number as `ridge` of the head."
            )
        if self.form == "dual" and not self.solver.centred:
            raise ValueError(
                '`form="dual"` needs anchors, and a stream leaves none. Use `form="auto"`, '
                f'or `solver="nystrom"`. Received: solver={self.solver.name!r}'
            )
        if self.solver.ordered:
            stream.check_order()

    def solve_stream(
        self,
        kernel: Kernel,
        stream: Stream,
        validation: Validation | None = None,
        intercept: intercepts.Decision | None = None,
    ) -> None:
        """Solve on rows that come in batches, without ever holding them all.

        Args:
            kernel: The kernel.
            stream: The rows.
            validation: Rows to choose `ridge="auto"` on.
            intercept: What was decided before. Defaults to a decision on these rows.

        Raises:
            ValueError: If the ridge is `"auto"` and there are no rows to choose it on.
        """
        begun = time.perf_counter()
        choice = self._users_choice()
        self.check_stream(stream, validation is not None)
        assert isinstance(self.solver, Solver)
        intercept = intercept or self.decide_intercept_of(stream)
        stream = stream.with_intercept(intercept.intercept)
        if self.residual:
            left = functools.partial(machine_targets, kernel, residual=True)
            stream = stream.with_targets(left)
        prepared = self.solver.prepare_stream(kernel, stream)
        if choice is None:
            choice = solving.choose(kernel, prepared, validation, self.residual)
        solution = prepared.solve(choice.absolute(prepared.unit))
        like = stream.first if prepared.anchors is None else prepared.anchors
        self._state.hold(like, None, None)
        if prepared.anchors is None:
            self._state.drop_anchors()
        form = (
            "primal"
            if prepared.anchors is None
            else self._choose_form(kernel, *solving.shape(solution))
        )
        self._store(kernel, prepared, solution, choice, form, like)
        facts = {
            "why": "the user",
            "intercept_by": intercept.by,
            "seconds": time.perf_counter() - begun,
        }
        self._state.facts["report"].update(facts)
        if solution.stopped == "interrupted":
            raise solving.interrupted(solution)

    def solve_again(self, kernel: Kernel) -> None:
        """Solve on the rows that were kept, at the relative ridge chosen before.

        Raises:
            ValueError: If no rows were kept.
        """
        state = self._state
        if state.anchors is None or state.targets is None:
            raise ValueError(
                "The head is stale: the network's weights have changed since it was "
                "solved, and it kept no rows to be solved again (as always on a stream, by "
                '`solver="nystrom"`, and with `keep_anchors=False`). Call `fit_head` again.'
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
        intercept: bool = False,
    ) -> Choice:
        """The ridge with the least squared error on validation rows, solving on `x`."""
        system = system_of(kernel, x, y, self.residual, weights, intercept)
        decision = solving.decide(system, len(ridge_selection.GRID), self.solver)
        prepared = decision.solver.prepare(system)
        return solving.choose(kernel, prepared, validation, self.residual, by)

    def _users_choice(self) -> Choice | None:
        if self.ridge == "auto":
            return None
        return Choice(float(self.ridge), by="the user", relative=self.relative)

    def _store(
        self,
        kernel: Kernel,
        prepared: Prepared,
        solution: Solution,
        choice: Choice,
        form: str,
        like: Any = None,
    ) -> None:
        """Take over a solution for the rows that are held."""
        state, x = self._state, self.anchors if like is None else like
        dual = None if solution.dual is None else prepared.predictor(solution)
        if dual is not None:
            state.set_dual(dual)
        state.set_constant(solution.constant)
        weights = None
        if form == "primal" and solution.weights is not None:
            flat = prepared.predictor_weights(solution)
            weights = as_stored(kernel, kernel.weights_from(flat, x))
        elif form == "primal":
            assert dual is not None
            weights = primal_weights(kernel, x, dual)
        state.set_weights(weights)
        relative_ridge = solution.ridge / prepared.unit
        if not self.keep_anchors:
            state.drop_anchors()
        architecture = kernel.architecture()
        state.facts = {
            "fingerprint": kernel.weights_fingerprint(),
            "architecture": [identity.made_by(architecture), architecture],
            "choice": dataclasses.asdict(choice),
            "inputs": describe(x),
            "report": {
                "ridge": relative_ridge if self.relative else solution.ridge,
                "ridge_value": solution.ridge,
                "relative_ridge": relative_ridge,
                "chosen_by": choice.by,
                **solving.report(solution),
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
                "The head kept no anchors (as on a stream, and with `keep_anchors=False`), "
                "so only its primal form is left. Received: "
                f"form={form!r}"
            )
        self._check_form(form, kernel)
        other = NTKRidgeHead.from_config({**self.get_config(), "form": form})
        other._state.hold(self.anchors, state.targets, state.row_weights)
        other._state.set_dual(state.dual.numpy())
        other._state.set_constant(None if self.constant is None else self.constant.numpy())
        if form == "primal":
            other._state.set_weights(
                primal_weights(kernel, self.anchors, state.dual.numpy())
            )
        other._state.facts = {**state.facts, "report": {**self.report, "form": form}}
        return other

    def prediction_variables(self) -> list[tf.Variable]:
        """The variables that predictions read, besides the kernel's."""
        return self._state.read()

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
            "solver": self.solver
            if isinstance(self.solver, str)
            else keras.saving.serialize_keras_object(self.solver),
            "intercept": self.intercept,
        }
