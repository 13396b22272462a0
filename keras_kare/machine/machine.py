"""A head that is bound to its kernel: it solves, predicts, and knows whether it is fresh.

A Keras layer that held the kernel would track its network twice. So the head holds settings
and state, and `head.on(kernel)` binds the two for the time of a call.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_kare import solvers
from keras_kare._sentences import sentence
from keras_kare.kernels import identity
from keras_kare.kernels.kernel import Kernel
from keras_kare.machine import intercept as intercepts
from keras_kare.machine import prediction, solving
from keras_kare.machine import ridge as ridges
from keras_kare.machine.evidence import LEFT_OUT
from keras_kare.machine.intercept import Intercept
from keras_kare.machine.posterior import Posterior
from keras_kare.machine.problem import Problem, Rows
from keras_kare.machine.ridge import Choice
from keras_kare.machine.solving import Solved
from keras_kare.machine.state import State, describe, values
from keras_kare.machine.trains import changed, trains
from keras_kare.solvers import Solver
from keras_kare.solvers.solution import ADVICE
from keras_kare.solvers.stream import Stream

NOT_SOLVED = "The head has not been solved. Call `fit` or `fit_head(x, y)` first."

NO_ROWS = (
    "It kept no rows to be solved again (as always on a stream, by "
    '`solver="nystrom"`, and with `keep_anchors=False`). Call `fit_head` again.'
)

STALE = (
    f"The head is stale: the network's weights have changed since it was solved. {NO_ROWS}"
)

PROVISIONAL = (
    "The head holds a machine of a validation during training ({}), not the one that `fit` "
    "ends with: call `fit_head(x, y, validation_data=...)` for that."
)

NOT_CALIBRATED = (
    "Probabilities need rows to be calibrated on, and this machine has kept none (as on a "
    "stream), or too few, or was not fitted to classes: pass `validation_data` to `fit` or "
    "`fit_head`."
)

OPTIMISTIC = (
    "Probabilities were calibrated by {} on rows that trained the kernel, and are too "
    "sure: pass `validation_data` to `fit` or `fit_head`."
)

NOT_FINITE = sentence(
    "A prediction is not finite: it is too large for the type that models compute in, or "
    "the network's derivatives at its row are. Scale targets and inputs to about one, or "
    'use `keras.config.set_floatx("float64")`. Predictions'
)


@dataclass(frozen=True)
class Settings:
    """What a user asks of a machine: the arguments of `NTKRidgeHead`, checked there."""

    ridge: float | str
    relative: bool
    form: str
    residual: bool
    keep_anchors: bool
    solver: Solver | str
    intercept: bool | str


class Machine:
    """The kernel machine of a kernel, some settings, and a state that it reads and writes.

    Args:
        kernel: The kernel.
        settings: What the user asks for.
        state: What was solved, and rows to solve on.
    """

    def __init__(self, kernel: Kernel, settings: Settings, state: State):
        self.kernel, self.settings, self.state = kernel, settings, state

    def __call__(self, x: Any) -> tf.Tensor:
        """Return predictions for rows, `(n, c)`, of `output_dtype`.

        Raises:
            ValueError: If nothing was solved.
            tf.errors.InvalidArgumentError: If one is not finite.
        """
        state = self.state
        if not state.solved:
            raise ValueError(NOT_SOLVED)
        if state.weights is not None:
            outputs = self.kernel.jvp(x, [tf.convert_to_tensor(w) for w in state.weights])
        else:
            anchors = keras.tree.map_structure(tf.convert_to_tensor, state.anchors)
            cross = self.kernel.cross(x, anchors, dtype="float64")
            outputs = prediction.from_cross(cross, tf.convert_to_tensor(state.dual))
        if state.constant is not None:
            outputs = tf.cast(outputs, tf.float64) + tf.convert_to_tensor(state.constant)
        outputs = tf.cast(outputs, prediction.output_dtype(self.kernel))
        if self.settings.residual:
            f = prediction.network_outputs(self.kernel, x)
            outputs += tf.cast(f, outputs.dtype)
        return tf.debugging.check_numerics(outputs, NOT_FINITE)

    def is_fresh(self) -> bool:
        """Tell whether the solution belongs to the kernel as it is, with its weights."""
        facts = self.state.facts
        if not self.state.solved:
            return False
        if facts["fingerprint"] != self.kernel.weights_fingerprint():
            return False
        # Other versions of Keras and Python describe the same network in other words.
        made_by, architecture = facts.get("architecture", (None, ""))
        if made_by != identity.made_by(architecture):
            return True
        return bool(architecture == self.kernel.architecture())

    def check_rows(self, rows: Rows | Stream, validated: bool) -> None:
        """Refuse, before long work, what cannot be solved from a stream.

        Args:
            rows: In memory, or a stream.
            validated: Whether there are rows to choose `ridge="auto"` on.

        Raises:
            ValueError: Where a stream lacks what the settings need.
        """
        settings = self.settings
        if isinstance(rows, Rows):
            return
        assert isinstance(settings.solver, Solver)
        if settings.ridge == "auto" and not validated:
            raise ValueError(
                '`ridge="auto"` needs rows to choose on, and a stream is not split. Pass '
                "`validation_data`, or a number as `ridge` of the head."
            )
        if settings.form == "dual" and not settings.solver.centred:
            raise ValueError(
                '`form="dual"` needs anchors, and a stream leaves none. Use `form="auto"`, '
                f'or `solver="nystrom"`. Received: solver={settings.solver.name!r}'
            )
        if settings.solver.ordered:
            rows.check_order()

    def decide_intercept(self, rows: Rows | Stream) -> Intercept:
        """Decide whether a machine of these rows has a constant; may read a stream once."""
        return intercepts.decide(
            self.settings.intercept, ((y, weights) for _, y, weights in rows.batches())
        )

    def solve(
        self,
        rows: Rows | Stream,
        validation: Rows | None = None,
        choice: Choice | None = None,
        solver: Solver | str | None = None,
        intercept: Intercept | None = None,
        provisional: str = "",
    ) -> None:
        """Solve on rows, choosing the ridge if it is `"auto"`, and keep the solution.

        Args:
            rows: In memory, or a stream, whose rows are never held together.
            validation: Rows to choose the ridge on.
            choice: A ridge that was chosen elsewhere, to use instead of all that.
            solver: How, instead of the settings' own solver.
            intercept: What was decided before, on more rows. Defaults to a decision on
                these.
            provisional: In which way this is not the machine that the settings ask for.

        Raises:
            ValueError: If the kernel is zero on the rows, `residual=True` does not fit, or
                a stream lacks what the settings need.
            MemoryError: Before the work, if it does not fit in memory.
            KeyboardInterrupt: After Ctrl-C; the state holds the best iterate, if a solver
                was iterating.
        """
        begun, settings = time.perf_counter(), self.settings
        self.check_rows(rows, validation is not None)
        intercept = intercept or self.decide_intercept(rows)
        solved = solving.solve(
            self._problem(rows, intercept),
            settings.solver if solver is None else solver,
            choice or ridges.of_user(settings.ridge, settings.relative),
            validation,
        )
        self._keep(rows, solved)
        self.state.facts["provisional"] = provisional
        self.state.facts["report"] |= {
            "intercept_by": intercept.by,
            "seconds": time.perf_counter() - begun,
        }
        solved.check_interrupted()

    def check_converged(self) -> None:
        """Warn where the solution is not as good as it should be."""
        report = self.state.facts["report"]
        if report.get("converged", True):
            return
        warnings.warn(
            f"The head was solved to a relative residual of {report['residual']:.2g}, "
            f"not {report['tolerance']:.2g} (stopped: {report['stopped']}): predictions of "
            "training rows may be off by that share of the targets. "
            + ADVICE[report["stopped"]],
            RuntimeWarning,
            stacklevel=5,
        )

    def check_asked_for(self) -> None:
        """Warn where the machine is not the one that `fit` ends with."""
        if provisional := self.state.facts.get("provisional"):
            warnings.warn(PROVISIONAL.format(provisional), RuntimeWarning, stacklevel=5)

    def calibrate(self) -> None:
        """Fit what scores are multiplied by to become probabilities, where it is not known.

        Raises:
            ValueError: If there are no rows for that.
        """
        state, report = self.state, self.state.facts["report"]
        if state.calibrate():
            return
        rows = state.rows()
        if rows is not None and len(rows) > 2:
            problem = self._problem(rows, Intercept(state.constant is not None, ""))
            ridge, solver = report["relative_ridge"], self.settings.solver
            state.evidence = solving.held_out(problem, solver, ridge)
        if not state.calibrate():
            raise ValueError(NOT_CALIBRATED)

    def check_calibration(self) -> None:
        """Warn where probabilities were fitted on rows that trained the kernel."""
        by = self.state.facts["report"]["calibrated_by"]
        if self.state.trained and (by == LEFT_OUT or by.startswith("hold-out")):
            warnings.warn(OPTIMISTIC.format(by), RuntimeWarning, stacklevel=4)

    def solve_if_stale(self) -> None:
        """Solve again where weights have changed since; errors as of `solve_again`.

        A warning says so where other variables train than when it was solved.
        """
        if self.is_fresh():
            return
        others = changed(self.state.facts, self.kernel)
        if others and self.state.rows() is not None:
            warnings.warn(f"{others} It is solved again.", stacklevel=5)
        self.solve_again()

    def solve_again(self) -> None:
        """Solve on the rows that were kept, at the relative ridge chosen before.

        Raises:
            ValueError: If no rows were kept.
        """
        rows = self.state.rows()
        if rows is None:
            others = changed(self.state.facts, self.kernel)
            stale = f"{others} {NO_ROWS}" if others else STALE
            raise ValueError(stale if self.state.solved else NOT_SOLVED)
        before, choice = self.state.facts.get("choice"), None
        if isinstance(self.settings.ridge, str):
            choice = Choice(**before) if before else None
            choice = choice or ridges.without_evidence(
                "default",
                "The head is solved at a relative ridge of 1, since none was chosen before "
                "training ended. Call `fit_head(x, y, validation_data=...)` to choose one.",
                stacklevel=6,
            )
        self.solve(rows, choice=choice, provisional=self.state.facts.get("provisional", ""))

    def choose_ridge(
        self, rows: Rows, validation: Rows, by: str, intercept: Intercept
    ) -> Choice:
        """Choose a ridge on validation rows, for a machine of `rows` that is not kept."""
        problem = self._problem(rows, intercept)
        return solving.choose_ridge(problem, self.settings.solver, validation, by)

    def posterior(self) -> Posterior:
        """Return the Gaussian process of the solution, which needs the anchors.

        Raises:
            ValueError: If nothing was solved, or no anchors were kept.
        """
        state, rows = self.state, self.state.rows()
        if not state.solved or rows is None:
            raise ValueError(
                "The variance needs a solved head with all its rows. Call `fit` or "
                "`fit_head(x, y)` first, on arrays, with `keep_anchors=True` and a solver "
                'other than "nystrom".'
            )
        intercept = state.constant is not None
        problem = Problem(self.kernel, rows, self.settings.residual, intercept)
        system = solvers.Cholesky().check_memory(problem.system(), "Use fewer rows.")
        return Posterior(system, state.facts["report"]["ridge_value"])

    def in_form(self, form: str) -> Machine:
        """Return this machine, to predict in the form `"primal"` or `"dual"`.

        Raises:
            ValueError: If the kernel or what was kept does not allow that.
        """
        state, report = self.state, self.state.facts["report"]
        if form == report["form"]:
            return self
        if state.anchors is None or state.dual is None:
            raise ValueError(
                "The head kept no anchors (as on a stream, and with `keep_anchors=False`), "
                f"so only its primal form is left. Received: form={form!r}"
            )
        self._check_form(form)
        other = state.copy()
        other.set_weights(None)
        if form == "primal":
            anchors, dual = values(state.anchors), state.dual.numpy()
            other.set_weights(prediction.primal_weights(self.kernel, anchors, dual))
        other.facts = {**state.facts, "report": {**report, "form": form}}
        return Machine(self.kernel, dataclasses.replace(self.settings, form=form), other)

    def _problem(self, rows: Rows | Stream, intercept: Intercept) -> Problem:
        return Problem(self.kernel, rows, self.settings.residual, intercept.present)

    def _keep(self, rows: Rows | Stream, solved: Solved) -> None:
        """Take over a solution, in the form in which it will predict."""
        state, kernel, prepared = self.state, self.kernel, solved.prepared
        solution, anchors = solved.solution, prepared.anchors_of(solved.solution)
        form = "primal" if anchors is None else self._choose_form(solved)
        like = rows.first if isinstance(rows, Stream) and anchors is None else anchors
        if isinstance(rows, Rows) and solution.centres is None:
            state.hold(like, rows.y, rows.weights)
        else:
            state.hold(like)  # the anchors are not the rows that targets belong to
        dual = None if solution.dual is None else prepared.predictor(solution)
        if dual is not None:
            state.set_dual(dual)
        state.set_constant(solution.constant)
        weights = None
        if form == "primal" and solution.weights is not None:
            flat = prepared.predictor_weights(solution)
            weights = prediction.as_stored(kernel, kernel.weights_from(flat, like))
        elif form == "primal":
            assert dual is not None
            weights = prediction.primal_weights(kernel, like, dual)
        state.set_weights(weights)
        if anchors is None or not self.settings.keep_anchors:
            state.drop_anchors()
        architecture = kernel.architecture()
        state.facts = {
            "fingerprint": kernel.weights_fingerprint(),
            "architecture": [identity.made_by(architecture), architecture],
            "trains": trains(kernel),
            "choice": solved.choice.to_json(),
            "inputs": describe(like),
            "report": {**solved.report(self.settings.relative), "form": form},
        }
        state.evidence = solved.evidence

    def _choose_form(self, solved: Solved) -> str:
        """Return the user's form, or the one that takes fewer operations."""
        if self.settings.form != "auto" or not self.settings.keep_anchors:
            form = self.settings.form if self.settings.keep_anchors else "primal"
            self._check_form(form)
            return form
        solution = solved.solution
        anchors = solution.rows if solution.dual is None else len(solution.dual)
        costs = self.kernel.prediction_cost(anchors, solution.columns)
        return min(costs, key=lambda form: costs[form])

    def _check_form(self, form: str) -> None:
        if form == "primal" and not self.kernel.has_features:
            raise ValueError(
                f'{type(self.kernel).__name__} has no primal form. Use `form="dual"` and '
                f"`keep_anchors=True`. Received: form={self.settings.form!r}, "
                f"keep_anchors={self.settings.keep_anchors}"
            )
