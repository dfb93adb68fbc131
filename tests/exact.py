"""Mirror flows with a closed solution, without kinks: exact θ at an exact time.

Derivations. With one parameter and f = θ the flow is r''(θ) θ' = e^{−θ}, so that t = ∫ r'' e^θ dθ.
With one sample x and f = θ·x from θ = 0, the dual is z = s·x for a scalar s with ds/dt = e^{−q}, so
that t = ∫ e^{q(s)} ds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.integrate import quad
from torch import Tensor

import mirrorode as mo


@dataclass(frozen=True)
class ExactFlow:
    """A flow, its start, and the exact parameters (n,) at an exact time."""

    name: str
    flow: mo.MirrorFlow
    start: Tensor
    time: float
    theta: Tensor


def _flow(x: list[float], potential: mo.SeparablePotential) -> mo.MirrorFlow:
    data = mo.Dataset(torch.tensor([x], dtype=torch.float64), torch.ones(1))
    return mo.MirrorFlow(mo.MLP((len(x), 1)), data, potential)


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _one_parameter() -> list[ExactFlow]:
    flows = []
    # Euclidean: e^θ = t + e^{θ₀}.
    time = 1e8
    end = math.log(time + math.exp(0.5))
    flows.append(
        ExactFlow("Euclidean", _flow([1.0], mo.Euclidean()), _vector(0.5), time, _vector(end))
    )
    # p = 3, λ = 0: r'' = 2θ, so 2(θ − 1)e^θ = t + C.
    end = 10.8362853
    time = 2 * (end - 1) * math.exp(end)
    potential = mo.SmoothedHomogeneous(3, 0.0)
    flows.append(ExactFlow("p3", _flow([1.0], potential), _vector(1.0), time, _vector(end)))
    # Hyperbolic, λ = 1: r'' = 1/√(θ² + 1).
    time = quad(lambda v: math.exp(v) / math.hypot(v, 1), 0, 10, epsabs=0, epsrel=1e-13)[0]
    potential = mo.HyperbolicEntropy(1.0)
    flows.append(ExactFlow("hyperbolic", _flow([1.0], potential), _vector(0.0), time, _vector(10)))
    return flows


def _one_sample() -> list[ExactFlow]:
    flows = []
    for potential, s in (
        (mo.HyperbolicEntropy(1.0), 1.0),
        (mo.SmoothedHomogeneous(3, 0.0), 4.0),
        (mo.SmoothedHomogeneous(3, 1.0), 9.0),
        (mo.SmoothedHomogeneous(4, 0.5), 20.0),
        (mo.SmoothedHomogeneous(2.5, 0.3), 6.0),
        (mo.Euclidean(), 2.0),
    ):
        x = _vector(2.0, 1.0)

        def growth(v: float, potential=potential, x=x) -> float:
            return math.exp(float(potential.inverse_gradient(v * x) @ x))

        time = quad(growth, 0, s, epsabs=0, epsrel=1e-12, limit=200)[0]
        theta = potential.inverse_gradient(s * x)
        name = f"{potential}, one sample"
        flows.append(ExactFlow(name, _flow([2.0, 1.0], potential), _vector(0, 0), time, theta))
    return flows


FLOWS = _one_parameter() + _one_sample()
