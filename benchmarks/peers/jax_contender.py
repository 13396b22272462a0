"""neural-tangents: `empirical_ntk_fn` in each of its implementations, under `jax.jit`.

Every implementation gets the formulas that suit it best:

- Convolutions are products of patches for the Jacobian contraction, whose step is 20
  times slower with `conv_general_dilated`, and for the Gram matrix by structured
  derivatives (2 times). Elsewhere they are convolutions.
- The embedding is a look-up, but a product with one-hot rows for structured derivatives,
  which have no rule for look-ups and ask for tens of gigabytes.
- The system of KARE is solved through a Cholesky by `jax.scipy.linalg.solve`, which with
  its derivative takes half the time of `cho_solve` (KARE of 1000 rows).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jax_networks
import jaxlib
import neural_tangents as nt
import numpy as np
import problems
import protocol
from jax.tree_util import tree_map

IMPLEMENTATIONS = {
    "structured": nt.NtkImplementation.STRUCTURED_DERIVATIVES,
    "vector-products": nt.NtkImplementation.NTK_VECTOR_PRODUCTS,
    "jacobian": nt.NtkImplementation.JACOBIAN_CONTRACTION,
}


class JaxContender:
    """One task in neural-tangents."""

    def __init__(self, options: Any, n: int):
        self.options = options
        structured = options.implementation == "structured"
        gram = options.what == "gram"
        apply = jax_networks.network(
            options.case,
            patches=options.implementation == "jacobian" or (structured and gram),
            one_hot=structured,
        )
        self.kernel = nt.empirical_ntk_fn(
            apply,
            trace_axes=(),
            vmap_axes=0,
            implementation=IMPLEMENTATIONS[options.implementation],
        )
        x, y = problems.data(options.case, n)
        if structured and problems.CASES[options.case].family == "text":
            x = np.eye(problems.VOCABULARY, dtype="float32")[x]
        self.x, self.y = jnp.asarray(x), jnp.asarray(y)
        self.before = tree_map(jnp.asarray, problems.weights(options.case))
        self.parameters = self.before
        task = jax.jit(self.gram if gram else self.step)
        self.task = task.lower(self.parameters, self.x, self.y).compile()

    def gram(self, parameters: jax_networks.Parameters, x: jax.Array, y: Any) -> jax.Array:
        return self.kernel(x, None, parameters)[..., 0, 0]

    def step(self, parameters: jax_networks.Parameters, x: jax.Array, y: jax.Array) -> Any:
        def loss(parameters: jax_networks.Parameters) -> jax.Array:
            return kare(y, self.gram(parameters, x, y))

        value, gradients = jax.value_and_grad(loss)(parameters)
        rate = self.options.learning_rate
        return value, tree_map(lambda p, g: p - rate * g, parameters, gradients)

    def run(self) -> None:
        self.last = self.task(self.parameters, self.x, self.y)
        jax.block_until_ready(self.last)
        if self.options.what == "step":
            self.last, self.parameters = self.last

    def result(self) -> dict[str, np.ndarray]:
        if self.options.what == "gram":
            return {"gram": np.asarray(self.last)}
        # A dictionary's leaves come sorted by name: keep the order of the layers.
        pairs = [
            (new, old)
            for name in problems.weights(self.options.case)
            for new, old in zip(self.parameters[name], self.before[name], strict=True)
        ]
        updates = [float(jnp.linalg.norm(jnp.ravel(new - old))) for new, old in pairs]
        return {"kare": np.asarray(self.last), "updates": np.array(updates)}

    def versions(self) -> dict[str, str]:
        return {
            "neural-tangents": nt.__version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
        }


def kare(y: jax.Array, gram: jax.Array) -> jax.Array:
    n = len(gram)
    identity = jnp.eye(n)
    system = gram / n + problems.RIDGE * identity
    inverse = jax.scipy.linalg.solve(system, identity, assume_a="pos")
    return jnp.mean((inverse @ y) ** 2) / jnp.mean(jnp.diagonal(inverse)) ** 2


if __name__ == "__main__":
    protocol.serve(JaxContender)
