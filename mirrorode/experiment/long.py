"""What the paper calls unreachable: λ = 10 as time goes on (Figures 3 and 7, Table 5).

How long it takes until Q̂^{1/α} is within a share ε of the horizon φ, measured and by Appendix H.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mirrorode.experiment import paper
from mirrorode.experiment.panels import product, short
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.stopping import LogTime
from mirrorode.flow.trajectory import Trajectory
from mirrorode.problem.potentials import HyperbolicEntropy, SmoothedHomogeneous
from mirrorode.theory.alignment import misaligned
from mirrorode.theory.margins import norm_margin

SLOW, FAST = "p3-10", "p3-0.1"
"""The potential that is followed, and the one it is compared with."""
EPOCHS = (1_000, 10_000, 100_000)
"""T in Table 5."""
PUBLISHED = (8.03e-4, 1.21e-3, 1.39e-3)
"""The L_3-margins there."""
LATER = (1e2, 1e3, 1e4, 1e6, 1e8)
"""log t to which it is followed on."""
NEAR = 0.99
"""Share of the L_3-margin of the small λ that counts as having arrived."""
EPSILONS = (0.1, 0.03, 0.01)

BISECTIONS = 30


def moments(limit: float) -> list[tuple[str, LogTime]]:
    """Where the slow student is looked at, by name."""
    known = [(f"{count:,} epochs", paper.epochs(SLOW, 2, count)) for count in EPOCHS]
    later = [(f"log t = {short(time)}", time) for time in LATER if time < limit]
    return [(name, LogTime(time)) for name, time in [*known, *later]]


def since(run: Trajectory, holds: Callable[[Tensor], bool]) -> float:
    """The log t from which on ``holds`` of θ up to the end; infinite if it does not there.

    That of a saved point where there is no dense output.
    """
    flags = [holds(theta) for theta in run.theta]
    if not flags[-1]:
        return math.inf
    if all(flags):
        return -math.inf
    first = len(flags) - 1 - flags[::-1].index(False)
    low, high = float(run.log_time[first]), float(run.log_time[first + 1])
    if not math.isfinite(low):
        low = high - 10.0
    for _ in range(BISECTIONS if run.steps else 0):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if holds(run.at(log_time=middle)) else (middle, high)
    return high


def reaches(run: Trajectory, k: int, goal: float) -> Callable[[Tensor], bool]:
    """Whether the L_k-margin at θ is at least ``goal``."""
    return lambda theta: float(norm_margin(run.flow, theta, k)) >= goal


def aligned_since(run: Trajectory, epsilon: float) -> float:
    """The log t from which on 1 − φ/Q̂^{1/α} is at most ε."""
    return since(run, lambda theta: float(misaligned(run.flow, theta)) <= epsilon)


def aligned_by_theory(run: Trajectory, epsilon: float) -> float:
    """A log t from which on it must be, for the L_α-margin γ at the end.

    Q̂ = ‖θ‖₁ + (at most) n√λ for the hyperbolic entropy, and (p−1)‖θ‖_p^p + ½pλ‖θ‖₂² for the
    smoothed potential, where ‖θ‖₂² ≤ n^{1−2/p}‖θ‖_p². Both are a/‖θ‖_α^{max(1, p−2)} of φ at most,
    a = n√λ or λn^{1−2/p}/(2(p−1)); and log t ≈ q_min = γ‖θ‖_α^L.
    """
    flow, potential = run.flow, run.flow.potential
    assert isinstance(potential, HyperbolicEntropy | SmoothedHomogeneous)
    n = flow.network.size
    if isinstance(potential, HyperbolicEntropy):
        a, power, k = n * math.sqrt(potential.lam), 1.0, 1.0
    else:
        k = potential.p
        a, power = potential.lam * n ** (1 - 2 / k) / (2 * (k - 1)), k - 2
    margin = float(norm_margin(flow, run.theta[-1], k))
    return margin * (a / epsilon) ** (flow.network.degree / power)


def lemma(flow: MirrorFlow) -> float:
    """The log t of Lemma 4.10, without its constant."""
    potential = flow.potential
    assert isinstance(potential, SmoothedHomogeneous)
    return (potential.p * potential.lam * flow.network.size / 2) ** (
        flow.network.degree / potential.p
    )


def alike(one: tuple[Trajectory, Tensor], other: tuple[Trajectory, Tensor]) -> float:
    """Cosine between two representations |a_j| w_j, neuron by neuron: they start as the same."""
    first, second = (product(run, theta).reshape(-1) for run, theta in (one, other))
    return float(torch.nn.functional.cosine_similarity(first, second, dim=0))
