"""The globally largest L₂-margin of two-layer networks with two inputs, of any width.

By Theorem 4.9 with α = 2 it is the convex problem min Σ|ã_j| subject to
y_i s Σ_j ã_j σ(w̃_j·x_i) ≥ 1 over directions w̃ on the circle, s the output scale; the largest margin
is 1/(2 Σ|ã_j|).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.problem.errors import InputError, require
from mirrorode.problem.networks import MLP

Array = NDArray[np.float64]

GRID = 90  # directions to start with, besides those of the kinks
EXACT = 1e-10  # the tightest tolerance that HiGHS takes
CLOSED = 1e-9  # relative duality gap that is none
ROUNDS = 50


@dataclass(frozen=True, eq=False)
class GlobalMargin:
    """The largest q_min/‖θ‖₂² of a two-layer network of any width.

    Attributes:
        margin: attained by the neurons given.
        gap: the relative duality gap: no network has a margin above margin × (1 + gap).
        directions: w̃_j, (J, 2), of length one.
        weights: ã_j, (J,).
        duals: multipliers of the samples, (K,).
    """

    margin: float
    gap: float
    directions: Tensor
    weights: Tensor
    duals: Tensor

    def __repr__(self) -> str:
        return (
            f"GlobalMargin({self.margin:.10g}, {len(self.weights)} neurons, "
            f"relative gap {self.gap:.1e})"
        )


def global_margin(flow: MirrorFlow) -> GlobalMargin:
    """The globally optimal L₂-margin on the data of ``flow``, by linear programs over directions.

    Between two directions at which a sample has its kink, Σ λ_i y_i σ(w̃·x_i) is linear in w̃, so
    that the direction at which the dual is violated most is known in closed form. It is added until
    none is.

    Raises:
        InputError: unless the network is an `MLP` with two inputs, one hidden layer and one output.
    """
    network = flow.network
    if not (isinstance(network, MLP) and network.widths[::2] == (2, 1)):
        must = "be an MLP with two inputs, one hidden layer and one output"
        raise InputError(f"`network` must {must}, but is {network}")
    x, y = (part.double().cpu().numpy() for part in (flow.dataset.x, flow.dataset.y))
    size = float(np.hypot(*x.T).max())  # the tolerances of the linear program are absolute
    require(size > 0, "dataset", "have an input that is not zero", "all zero")
    return _Circle(x / size, y, *network.slopes[0]).solve(float(network.output_scale or 1.0) * size)


@dataclass(frozen=True)
class _Circle:
    """Samples, labels and the slopes of the activation."""

    x: Array
    y: Array
    off: float
    on: float

    def features(self, directions: Array) -> Array:
        """y_i σ(w·x_i), (K, J)."""
        pre = self.x @ directions.T
        return self.y[:, None] * np.where(pre > 0, self.on, self.off) * pre

    def solve(self, scale: float) -> GlobalMargin:
        """Exchange, from a grid and all kinks."""
        angle = np.arctan2(self.x[:, 1], self.x[:, 0])[np.abs(self.x).max(1) > 0]
        kinks = np.unique(np.concatenate([angle + np.pi / 2, angle - np.pi / 2]) % (2 * np.pi))
        grid = np.linspace(0, 2 * np.pi, GRID, endpoint=False)
        angles = np.concatenate([kinks, grid])
        ends = np.stack([kinks, np.append(kinks[1:], kinks[0] + 2 * np.pi)], 1)
        for _ in range(ROUNDS):
            directions = np.stack([np.cos(angles), np.sin(angles)], 1)
            weights, duals = self._program(directions)
            excess, worst = self._violation(duals, ends)
            if excess <= CLOSED:
                break
            angles = np.append(angles, worst)
        total = float(np.abs(weights).sum())
        used = np.abs(weights) > EXACT * total
        # Scaled to be feasible, the dual bounds the optimum from below.
        bound = float(duals.sum()) / (1 + max(0.0, excess))
        return GlobalMargin(
            scale / (2 * total),
            total / bound - 1,
            torch.from_numpy(directions[used]),
            torch.from_numpy(weights[used] / scale),
            torch.from_numpy(duals / scale),
        )

    def _program(self, directions: Array) -> tuple[Array, Array]:
        """ã and λ of the linear program over given directions."""
        rows = self.features(directions)
        found = linprog(
            np.ones(2 * len(directions)), np.hstack([-rows, rows]), -np.ones(len(rows)),
            bounds=(0, None), method="highs",
            options={"primal_feasibility_tolerance": EXACT, "dual_feasibility_tolerance": EXACT},
        )  # fmt: skip
        must = "have labels that some two-layer network takes"
        require(found.x is not None, "dataset", must, "not so")
        count = len(directions)
        return found.x[:count] - found.x[count:], -found.ineqlin.marginals

    def _violation(self, duals: Array, ends: Array) -> tuple[float, Array]:
        """By how much |Σ λ_i y_i σ(w·x_i)| exceeds 1 at most, and the angles where it does."""
        middle = ends.mean(1)
        pre = np.stack([np.cos(middle), np.sin(middle)], 1) @ self.x.T
        image = (np.where(pre > 0, self.on, self.off) * (duals * self.y)) @ self.x  # v of each arc
        best, value = [], []
        for sign in (1.0, -1.0):
            towards = np.arctan2(sign * image[:, 1], sign * image[:, 0])
            inside = (towards - ends[:, 0]) % (2 * np.pi) <= ends[:, 1] - ends[:, 0]
            best.append(towards[inside])
            value.append(np.hypot(*image[inside].T))
        angles, sizes = np.concatenate(best), np.concatenate(value)
        at_kinks = np.abs(
            duals @ self.features(np.stack([np.cos(ends[:, 0]), np.sin(ends[:, 0])], 1))
        )
        excess = max(sizes.max(initial=0.0), at_kinks.max(initial=0.0)) - 1
        return float(excess), angles[sizes > 1 + 0.1 * CLOSED] % (2 * math.pi)
