"""KARE of any number of rows, without a Gram matrix, and its gradient.

Notation as in `keras_kare.risk`: `A = K/n + zI`, `a = A⁻¹y`, `b = A⁻¹a`,
`s = |a|²/(n c)`, `t = tr(A⁻¹)/n`, `KARE = s/t²`. There are two ways, both from a feature
map or products `K v` alone: random probes (`probes.py`), and exactly (`exact.py`) where
the feature map has fewer numbers than there are rows.
"""

from keras_kare.risk.stochastic.all_rows import kare, kare_and_gradient
from keras_kare.risk.stochastic.estimate import Estimate

__all__ = ["Estimate", "kare", "kare_and_gradient"]
