"""Mirror flows of one ReLU neuron with kinks and a known solution: exact θ at every time.

All have f = a σ(w·x), θ = (w, a). Where the output weight is frozen, `trainable` says so; the flow
of the remaining coordinates is what is exact. Derivations are in the functions.

=====================  ==============================================================
`slides_for_ever`      enters a kink and stays on it, in any separable metric
`must_not_stick`       passes a kink that two opposite samples share
`leaves`               enters a kink, slides, leaves it tangentially
`both_layers`          enters a kink and slides while the output weight grows
`captured`             starts on a kink, is driven to w = 0 along it and stays
=====================  ==============================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor

import mirrorode as mo


@dataclass(frozen=True)
class KinkedFlow:
    """A flow, its start and its solution.

    Attributes:
        name: for test ids.
        flow: network (d, 1, 1) with output scale 1, samples, potential.
        start: θ at t = 0.
        trainable: boolean, the coordinates that move.
        theta: exact θ at a time t ≥ 0.
        entry: when the kink is reached.
        exit: when it is left, or w = 0 is reached; inf if never.
        times: some in every phase.
        xi: exact sliding coefficient at a time, where known.
    """

    name: str
    flow: mo.MirrorFlow
    start: Tensor
    trainable: Tensor
    theta: Callable[[float], Tensor]
    entry: float
    exit: float
    times: tuple[float, ...]
    xi: Callable[[float], float] | None = None


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _flow(x: list[list[float]], y: list[float], potential: mo.SeparablePotential) -> mo.MirrorFlow:
    data = mo.Dataset(torch.tensor(x, dtype=torch.float64), torch.tensor(y))
    return mo.MirrorFlow(mo.MLP((len(x[0]), 1, 1), output_scale=1.0), data, potential)


def _moving(dim: int, output: bool = False) -> Tensor:
    return torch.tensor([True] * dim + [output])


def _integral(function: Callable[[float], float], low: float, high: float) -> float:
    return quad(function, low, high, epsabs=0, epsrel=1e-13, limit=200)[0]


def _inverse(time: Callable[[float], float], low: float, high: float):
    """The argument in [low, high] at which a monotone `time` has a given value."""
    return lambda t: float(brentq(lambda v: time(v) - t, low, high, xtol=1e-14, rtol=1e-14))


def slides_for_ever(potential: mo.SeparablePotential) -> KinkedFlow:
    """Samples (1, 0) labelled + and v = (3/5, 4/5) labelled −, a = 1 frozen, from w = (1/2, −1).

    Off the kink of v: r''(w₁) w₁' = e^{−w₁} and w₂ = −1, until w·v = 0 at w₁ = 4/3. On it, with
    w₂ = −¾w₁ and D_k = 1/r''(w_k), the least-norm element has w₁' = D₁(e^{−w₁} − 0.6 ξ) with
    ξ = 0.6 D₁ e^{−w₁} / (0.36 D₁ + 0.64 D₂), that is
    0.64 e^{−w₁} = (0.36 r''(w₂) + 0.64 r''(w₁)) w₁'. Euclidean: e^{w₁} = e^{1/2} + t, then
    e^{w₁} = e^{4/3} + 0.64 (t − t*), t* = e^{4/3} − e^{1/2}.
    """

    def stiffness(w: float) -> float:
        return 1 / float(potential.inverse_hessian(_vector(w)))

    def free(w: float) -> float:
        return _integral(lambda u: stiffness(u) * math.exp(u), 0.5, w)

    entry = free(4 / 3)

    def bound(w: float) -> float:
        def rate(u: float) -> float:
            return (0.5625 * stiffness(-0.75 * u) + stiffness(u)) * math.exp(u)

        return entry + _integral(rate, 4 / 3, w)

    before, after = _inverse(free, 0.5, 4 / 3), _inverse(bound, 4 / 3, 30.0)

    def theta(t: float) -> Tensor:
        if t <= entry:
            return _vector(before(t), -1, 1)
        w = after(t)
        return _vector(w, -0.75 * w, 1)

    def xi(t: float) -> float:
        w = float(theta(t)[0])
        first, second = 1 / stiffness(w), 1 / stiffness(-0.75 * w)
        return 0.6 * first * math.exp(-w) / (0.36 * first + 0.64 * second)

    times = (0.5 * entry, 1.5 * entry, 1e4)
    flow = _flow([[1, 0], [0.6, 0.8]], [1, -1], potential)
    name, start = f"slides for ever, {potential}", _vector(0.5, -1, 1)
    return KinkedFlow(name, flow, start, _moving(2), theta, entry, math.inf, times, xi)


def must_not_stick() -> KinkedFlow:
    """d = 1, samples 1 labelled + and −1 labelled −, a = 1 frozen, from w = −1, Euclidean.

    The loss is 1 + e^{−w} on both sides of w = 0: w = log(e^{−1} + t), through 0 at 1 − e^{−1}.
    Taken by itself the kink of the second sample attracts.
    """
    flow = _flow([[1.0], [-1.0]], [1, -1], mo.Euclidean())
    entry = 1 - math.exp(-1)
    return KinkedFlow(
        "must not stick",
        flow,
        _vector(-1, 1),
        _moving(1),
        lambda t: _vector(math.log(math.exp(-1) + t), 1),
        entry,
        entry,
        (0.3, 1.0, 1e4),
    )


def leaves() -> KinkedFlow:
    """Samples (2, 2)+, (1, −1)+ and v = (0, 1)−, a = 1 frozen, from e^{q₁} = 1.3, e^{q₂} = 1.2.

    Off the kink of v the first two are orthogonal, so that their margins decouple:
    e^{q₁} = e^{q₁(0)} + 8t, e^{q₂} = e^{q₂(0)} + 2t and w = (q₁/4 + q₂/2, q₁/4 − q₂/2). The kink
    is met when q₁ = 2q₂: 4t² − 3.2t + 0.14 = 0. On it q₁ = 2w₁ and q₂ = w₁, E = e^{w₁} has
    E' = 1 + 2/E, so t − t₁ = E − E₁ − 2 log((E + 2)/(E₁ + 2)), and ξ = 2/E² − 1/E falls to zero at
    E = 2. Then w leaves, tangentially, and e^{q₁} = 4 + 8s, e^{q₂} = 2 + 2s.
    """
    entry = (3.2 - math.sqrt(8.0)) / 8
    first = 1.2 + 2 * entry

    def bound(e: float) -> float:
        return entry + e - first - 2 * math.log((e + 2) / (first + 2))

    exit_, inverse = bound(2.0), _inverse(bound, first, 2.0)

    def apart(e1: float, e2: float) -> Tensor:
        q1, q2 = math.log(e1), math.log(e2)
        return _vector(q1 / 4 + q2 / 2, q1 / 4 - q2 / 2, 1)

    def theta(t: float) -> Tensor:
        if t <= entry:
            return apart(1.3 + 8 * t, 1.2 + 2 * t)
        if t >= exit_:
            return apart(4 + 8 * (t - exit_), 2 + 2 * (t - exit_))
        return _vector(math.log(inverse(t)), 0, 1)

    def xi(t: float) -> float:
        e = math.exp(float(theta(t)[0]))
        return 2 / e**2 - 1 / e

    flow = _flow([[2, 2], [1, -1], [0, 1]], [1, 1, -1], mo.Euclidean())
    times = (0.5 * entry, 0.5 * (entry + exit_), 2 * exit_, 1e4)
    name, start = "leaves", apart(1.3, 1.2)
    return KinkedFlow(name, flow, start, _moving(2), theta, entry, exit_, times, xi)


def both_layers() -> KinkedFlow:
    """Samples (1, 0)+ and (3/5, 4/5)−, all weights trained, from w = (1/2, −1), a = 1/2.

    Off the kink of the second a = w₁ stays (a² − w₁² is conserved): w₁' = w₁ e^{−w₁²}, until
    w₁ = 4/3. On it w = s (4/5, −3/5) with s = 5/3 at first, q = 0.8 a s, a' = 0.8 s e^{−q} and
    s' = 0.8 a e^{−q}; s² − a² = 1, so a = sinh u, s = cosh u, u' = 0.8 e^{−0.4 sinh 2u}, and
    ξ = 0.6 e^{−q}.
    """

    def free(w: float) -> float:
        return _integral(lambda v: math.exp(v * v) / v, 0.5, w)

    entry, begin = free(4 / 3), math.asinh(4 / 3)

    def bound(u: float) -> float:
        return entry + _integral(lambda v: math.exp(0.4 * math.sinh(2 * v)) / 0.8, begin, u)

    before, after = _inverse(free, 0.5, 4 / 3), _inverse(bound, begin, 3.0)

    def theta(t: float) -> Tensor:
        if t <= entry:
            w = before(t)
            return _vector(w, -1, w)
        u = after(t)
        return _vector(0.8 * math.cosh(u), -0.6 * math.cosh(u), math.sinh(u))

    def xi(t: float) -> float:
        w, _, a = theta(t).tolist()
        return 0.6 * math.exp(-a * w)

    flow = _flow([[1, 0], [0.6, 0.8]], [1, -1], mo.Euclidean())
    name, start = "both layers", _vector(0.5, -1, 0.5)
    times = (0.5 * entry, 1.5 * entry, 1e4)
    return KinkedFlow(name, flow, start, _moving(2, True), theta, entry, math.inf, times, xi)


def captured() -> KinkedFlow:
    """Samples (0, 1)−, (1, 0)−, (1/2, 1/2)+, all weights trained, from w = (1, 0), a = √2.

    The neuron starts on the kink of the first sample, where ½e^{−as/2} is its upward pull without
    that sample and ½e^{−as/2} − 1 < 0 with it: it slides, w = (s, 0). With
    b(q) = ½e^{−q/2} − e^{q} < 0 at q = as: s' = a b, a' = s b; a² − s² = 1, so s = sinh u,
    a = cosh u, u' = b(½ sinh 2u): s = 0 in finite time. There no direction gains,
    −σ(u₂) − σ(u₁) + ½σ(u₁ + u₂) ≤ 0, so w = 0 and a = 1 for ever.
    """
    begin = math.asinh(1.0)

    def rate(u: float) -> float:
        q = 0.5 * math.sinh(2 * u)
        return 1 / (math.exp(q) - 0.5 * math.exp(-q / 2))

    def bound(u: float) -> float:
        return _integral(rate, u, begin)

    end, inverse = bound(0.0), _inverse(bound, 0.0, begin)

    def theta(t: float) -> Tensor:
        u = inverse(t) if t < end else 0.0
        return _vector(math.sinh(u), 0, math.cosh(u))

    def xi(t: float) -> float:
        w, _, a = theta(t).tolist()
        return 0.5 * math.exp(-a * w / 2)

    flow = _flow([[0, 1], [1, 0], [0.5, 0.5]], [-1, -1, 1], mo.Euclidean())
    start, times = _vector(1, 0, math.sqrt(2)), (0.5 * end, 0.9 * end, 2 * end, 10.0)
    return KinkedFlow("captured", flow, start, _moving(2, True), theta, 0.0, end, times, xi)


FLOWS = (
    slides_for_ever(mo.Euclidean()),
    slides_for_ever(mo.SmoothedHomogeneous(3, 1.0)),
    slides_for_ever(mo.HyperbolicEntropy(0.1)),
    must_not_stick(),
    leaves(),
    both_layers(),
    captured(),
)
