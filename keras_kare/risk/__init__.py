"""What is minimised: KARE, and leave-one-out, with closed-form gradients.

Notation of the formulas, for a Gram matrix `K` of `n` rows, targets `y` of `c`
columns, and a ridge `z`:

    A = K/n + zI,   a = A⁻¹y,   b = A⁻¹a,   t = tr(A⁻¹)/n,   s = |a|²/(n c).

Rows may count `w_i` times each, `N = Σ w` in all. With `E` the `N x n` matrix that
repeats rows, `E K Eᵀ/N + zI` has the eigenvalues of `W½ K W½/N + zI` and `z` another
`N − n` times, and repeated targets live in the range of `E`. So the same formulas hold
with `W½ K W½`, `W½ y`, `A = W½ K W½/N + zI` and

    t = (tr(A⁻¹) + (N − n)/z)/N,   s = |a|²/(N c),

for any `w >= 0`, whole numbers or not, at the cost of `n` rows.

An intercept is a constant `b` beside the machine that no ridge holds back:
`A α + ρ b = W½ y`, `ρᵀα = 0`, with `ρ = w½` (ones without weights). With `u = A⁻¹ρ`,

    P = A⁻¹ − u uᵀ/(ρᵀu)

then stands in for `A⁻¹` in every formula: `α = P W½ y`, and `∂P = −P ∂A P` as
`∂A⁻¹ = −A⁻¹ ∂A A⁻¹`. KARE is GCV still, with the constant as one more degree of freedom.
"""

from keras_kare.risk.alignment import kare, kare_of
from keras_kare.risk.given import Counted, checked, counted
from keras_kare.risk.left_out import leave_one_out, leave_one_out_of, predict
from keras_kare.risk.regression import FLOAT64_BELOW, Regression, mean_of, regress

__all__ = [
    "FLOAT64_BELOW",
    "Counted",
    "Regression",
    "checked",
    "counted",
    "kare",
    "kare_of",
    "leave_one_out",
    "leave_one_out_of",
    "mean_of",
    "predict",
    "regress",
]
