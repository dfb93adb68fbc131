"""VGG without batch normalization: homogeneous in its weights, and in them layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirrorode.problem.errors import require

POOL = 0
"""Among channels: a max-pooling of 2 × 2."""


@dataclass(frozen=True)
class VGG:
    """Convolutions of 3 × 3, poolings, then linear layers; ReLU between; a bias only at the input.

    That bias acts as an input that is one, so that the network is homogeneous still (J.3).

    Args:
        channels: of each convolution, with `POOL` between.
        hidden: widths of the linear layers before the last.
    """

    channels: Sequence[int]
    hidden: Sequence[int] = ()

    def build(self, inputs: int, side: int, classes: int, seed: int) -> nn.Sequential:
        """The network for square images, with weights after He: N(0, 2/fan-in), and no bias yet.

        Args:
            inputs: channels of the images; side: their height and width; classes: outputs.
            seed: of the weights.

        Raises:
            InputError: if the images are too small for the poolings.
        """
        layers: list[nn.Module] = []
        width = inputs
        for channels in self.channels:
            if channels == POOL:
                layers.append(nn.MaxPool2d(2))
                side //= 2
                require(side > 0, "side", "be large enough for every pooling", "too small")
                continue
            layers += [nn.Conv2d(width, channels, 3, padding=1, bias=not layers), nn.ReLU()]
            width = channels
        layers.append(nn.Flatten())
        width *= side**2
        for hidden in self.hidden:
            layers += [nn.Linear(width, hidden, bias=False), nn.ReLU()]
            width = hidden
        layers.append(nn.Linear(width, classes, bias=False))
        network = nn.Sequential(*layers)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 1:
                    parameter.zero_()
                else:
                    deviation = math.sqrt(2 / math.prod(parameter.shape[1:]))
                    parameter.normal_(0.0, deviation, generator=generator)
        return network


VGG16 = VGG(
    (64, 64, POOL, 128, 128, POOL, *(256,) * 3, POOL, *(512,) * 3, POOL, *(512,) * 3, POOL),
    hidden=(512, 512),
)
"""Configuration D of Simonyan and Zisserman for images of 32 × 32: 13 convolutions, 3 linear."""
SMALL = VGG((16, 16, POOL, 32, 32, POOL, 64, POOL), hidden=(64,))
"""Of the same construction, for images of 8 × 8: 5 convolutions, 2 linear."""


def weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights of every layer by name, without the bias."""
    return {name: it.detach() for name, it in network.named_parameters() if it.ndim > 1}


@torch.no_grad()
def prune(network: nn.Module, sparsity: float) -> None:
    """Set the smallest weights of each layer to zero, a share ``sparsity`` of them (in place)."""
    for weight in weights(network).values():
        count = round(sparsity * weight.numel())
        kept = torch.ones(weight.numel(), dtype=weight.dtype, device=weight.device)
        kept[weight.abs().flatten().argsort()[:count]] = 0.0
        weight.mul_(kept.reshape(weight.shape))


def participation(weight: Tensor) -> float:
    """(Σ|w|)²/(n Σw²): 1/n for one weight, 2/π for normal ones, 1 if all are of one size."""
    size = weight.abs().double()
    return float(size.sum() ** 2 / (size.numel() * size.square().sum()))
