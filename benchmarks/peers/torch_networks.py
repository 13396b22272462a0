"""The networks in PyTorch, as modules, with the weights of `problems`."""

from __future__ import annotations

import math

import numpy as np
import problems
import torch
from torch import nn
from torch.nn import functional


def network(case: str) -> nn.Module:
    """The module of a case, with its weights."""
    weights = problems.weights(case)
    module = _MODULES[problems.CASES[case].family](weights)
    for name, arrays in weights.items():
        _load(getattr(module, name), arrays)
    return module


def rows(case: str, x: np.ndarray) -> torch.Tensor:
    """Rows as the modules take them: images channels first."""
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy() if x.ndim == 4 else x)


class MLP(nn.Module):
    """Dense layers with GELU."""

    def __init__(self, weights: problems.Weights):
        super().__init__()
        for name, (kernel, _) in weights.items():
            setattr(self, name, nn.Linear(*kernel.shape))
        self.hidden = [name for name in weights if name != "output"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.hidden:
            x = functional.gelu(getattr(self, name)(x))
        return self.output(x)


class CNN(nn.Module):
    """Convolutions with ReLU, and the mean over positions."""

    def __init__(self, weights: problems.Weights):
        super().__init__()
        _add_convolutions(self, weights)
        self.hidden = [name for name in weights if name != "output"]
        self.output = nn.Linear(*weights["output"][0].shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.hidden:
            x = functional.relu(getattr(self, name)(x))
        return self.output(x.mean((2, 3)))


class ResNet(nn.Module):
    """Residual blocks of two convolutions, and the mean over positions."""

    def __init__(self, weights: problems.Weights):
        super().__init__()
        _add_convolutions(self, weights)
        self.blocks = len(weights) // 2
        self.output = nn.Linear(*weights["output"][0].shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(self.blocks):
            inner = functional.relu(getattr(self, f"conv_{i}a")(x))
            x = x + getattr(self, f"conv_{i}b")(inner)
        return self.output(x.mean((2, 3)))


class Text(nn.Module):
    """Embedding, one self-attention with its residual, and the mean over tokens."""

    def __init__(self, weights: problems.Weights):
        super().__init__()
        self.embedding = nn.Embedding(*weights["embedding"][0].shape)
        self.attention = Attention(weights["embedding"][0].shape[1])
        self.output = nn.Linear(*weights["output"][0].shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        return self.output((x + self.attention(x)).mean(1))


class Attention(nn.Module):
    """Self-attention; plain products, since the fused ones have no second derivative."""

    def __init__(self, width: int):
        super().__init__()
        inner = problems.HEADS * problems.KEY_DIM
        self.projections = nn.ModuleList(nn.Linear(width, inner) for _ in range(3))
        self.mix = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = (*x.shape[:-1], problems.HEADS, problems.KEY_DIM)
        query, key, value = (p(x).reshape(heads) for p in self.projections)
        scores = torch.einsum("nthk,nshk->nhts", query, key) / math.sqrt(problems.KEY_DIM)
        mixed = torch.einsum("nhts,nshk->nthk", scores.softmax(-1), value)
        return self.mix(mixed.flatten(-2))


_MODULES = {"mlp": MLP, "cnn": CNN, "resnet": ResNet, "text": Text}


def _add_convolutions(module: nn.Module, weights: problems.Weights) -> None:
    for name, (kernel, *_) in weights.items():
        if kernel.ndim == 4:
            inner, width = kernel.shape[2:]
            setattr(module, name, nn.Conv2d(inner, width, 3, padding="same"))


def _load(layer: nn.Module, arrays: list[np.ndarray]) -> None:
    if isinstance(layer, Attention):
        for i, linear in enumerate((*layer.projections, layer.mix)):
            kernel, bias = arrays[2 * i : 2 * i + 2]
            _load(linear, [kernel.reshape(linear.in_features, -1), bias.ravel()])
        return
    if not isinstance(layer, nn.Embedding):  # the last axis is the output's in Keras
        arrays = [np.moveaxis(arrays[0], (-1, -2), (0, 1)), *arrays[1:]]
    with torch.no_grad():
        for parameter, array in zip(layer.parameters(), arrays, strict=True):
            parameter.copy_(torch.from_numpy(array.copy()))
