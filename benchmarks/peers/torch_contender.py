"""torch.func, as in PyTorch's tutorial on the NTK: vmap of the gradient of one row.

The tutorial's `vmap(jacrev)` is `vmap(grad)` for one output. Gradients are contracted
variable by variable. `torch.linalg.inv` and its derivative take two thirds of the time of
the best way through `torch.linalg.cholesky` (KARE of 1000 rows).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import problems
import protocol
import torch
import torch_networks
from torch.func import functional_call, grad, vmap

Parameters = dict[str, torch.Tensor]


class TorchContender:
    """One task in PyTorch."""

    def __init__(self, options: Any, n: int):
        self.options = options
        x, y = problems.data(options.case, n)
        self.x, self.y = torch_networks.rows(options.case, x), torch.from_numpy(y)
        self.module = torch_networks.network(options.case)
        self.optimizer = torch.optim.SGD(self.module.parameters(), options.learning_rate)
        self.before = [p.detach().clone() for p in self.module.parameters()]
        self.run = {"gram": self._run_gram, "step": self._run_step}[options.what]

    def gram(self, parameters: Parameters) -> torch.Tensor:
        def one_row(parameters: Parameters, row: torch.Tensor) -> torch.Tensor:
            return functional_call(self.module, parameters, (row[None],))[0, 0]

        gradients = vmap(grad(one_row), (None, 0))(parameters, self.x)
        flat = [g.flatten(1) for g in gradients.values()]
        return sum(g @ g.T for g in flat)

    def _run_gram(self) -> None:
        self.last = self.gram({k: p.detach() for k, p in self.module.named_parameters()})

    def _run_step(self) -> None:
        self.optimizer.zero_grad()
        self.last = kare(self.y, self.gram(dict(self.module.named_parameters())))
        self.last.backward()
        self.optimizer.step()

    def result(self) -> dict[str, np.ndarray]:
        last = self.last.detach().numpy()
        if self.options.what == "gram":
            return {"gram": last}
        pairs = zip(self.module.parameters(), self.before, strict=True)
        updates = [(new.detach() - old).norm().item() for new, old in pairs]
        return {"kare": last, "updates": np.array(updates)}

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}


def kare(y: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    n = len(gram)
    inverse = torch.linalg.inv(gram / n + problems.RIDGE * torch.eye(n))
    return (inverse @ y).square().mean() / inverse.diagonal().mean().square()


if __name__ == "__main__":
    protocol.serve(TorchContender)
