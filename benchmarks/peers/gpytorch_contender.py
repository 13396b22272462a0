"""A step of the marginal likelihood in GPyTorch on rows in an `.npz`; prints JSON.

python -m venv /tmp/gpytorch
/tmp/gpytorch/bin/pip install -r benchmarks/peers/gpytorch.txt
GPYTORCH_PYTHON=/tmp/gpytorch/bin/python python benchmarks/kare_step.py

A step is the kernel, the likelihood, its gradient by all parameters, and Adam's update, in
float32, with one thread or with all, whichever is faster. The kernel is that of
`Laplace(metric="full")`: Matérn 1/2 of `x F`, where `F` and the length train, and the
noise of the likelihood, from where GPyTorch starts it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time

import gpytorch
import numpy as np
import torch

SETTINGS = {
    "default": contextlib.nullcontext,  # of 1000 rows conjugate gradients and Lanczos
    "Cholesky": lambda: gpytorch.settings.fast_computations(False, False, False),
}


class Process(gpytorch.models.ExactGP):
    """A Gaussian process without a mean, whose kernel sees `x F`."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, length: float):
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
        self.mean = gpytorch.means.ZeroMean()
        self.kernel = gpytorch.kernels.MaternKernel(nu=0.5)
        self.kernel.lengthscale = length
        self.factor = torch.nn.Parameter(torch.eye(x.shape[1]))

    def forward(self, x: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        of = self.kernel(x @ self.factor)
        return gpytorch.distributions.MultivariateNormal(self.mean(x), of)


def seconds(process: Process, repeats: int) -> float:
    """Return the least seconds of a step."""
    process.train()
    (x,), y = process.train_inputs, process.train_targets
    likelihood = gpytorch.mlls.ExactMarginalLogLikelihood(process.likelihood, process)
    optimizer = torch.optim.Adam(process.parameters(), 1e-3)
    times = []
    for _ in range(repeats + 2):  # the first two are warm-up
        begun = time.perf_counter()
        optimizer.zero_grad()
        loss = -likelihood(process(x), y)
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - begun)
    return min(times[2:])


def main(file: str, length: float, repeats: int) -> None:
    """Print the least seconds of a step under each setting, and the mean of the kernel."""
    rows = np.load(file)
    x, y = (torch.from_numpy(rows[name]) for name in ("x", "y"))
    found = dict.fromkeys(SETTINGS, np.inf)
    for threads in {1, torch.get_num_threads()}:
        torch.set_num_threads(threads)
        for name, setting in SETTINGS.items():
            with setting():
                found[name] = min(found[name], seconds(Process(x, y, length), repeats))
    mean = Process(x, y, length).kernel(x).to_dense().mean().item()
    versions = f"GPyTorch {gpytorch.__version__}, torch {torch.__version__}"
    print(json.dumps({"seconds": found, "mean": mean, "versions": versions}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
