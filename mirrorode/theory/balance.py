"""The balance equation: what the rescaling symmetry of the network conserves.

With κ̃(t) = t r'(t) − r(t) + r(0), the conjugate Q up to a constant, a mirror flow conserves for
each hidden unit Σ_in κ̃ − Σ_out κ̃ (Appendix G.5), and hence for adjacent layers
Q_i − Q_{i+1} (Lemma 3.1): for every separable potential and every selection at kinks. In a diagonal
network a coordinate is a unit between each pair of layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.problem.networks import MLP, DiagonalLinear


@dataclass(frozen=True)
class Balance:
    """Conserved quantities of (…, n) parameters.

    Attributes:
        value: (…, laws), what is conserved.
        scale: (…, laws), the sum of its terms, to which a drift is relative.
        missing: why there is no law, if there is none.
    """

    value: Tensor
    scale: Tensor
    missing: str = ""

    def drift(self) -> Tensor:
        """Largest |value − initial value| relative to the scale, over a trajectory (T, laws)."""
        return ((self.value - self.value[:1]).abs() / self.scale.clamp(min=1e-300)).amax()


def neuron_balance(flow: MirrorFlow, theta: Tensor) -> Balance:
    """One law a hidden unit: Σ κ̃(incoming) − Σ κ̃(outgoing) (Appendix G.5)."""
    incoming, outgoing = [], []
    for lower, upper in pairwise(_terms(flow, theta)):
        diagonal = isinstance(flow.network, DiagonalLinear)
        incoming.append(lower if diagonal else lower.sum(-1))
        outgoing.append(upper if diagonal else upper.sum(-2))
    if not incoming:
        return _none(flow, theta)
    into, out = torch.cat(incoming, -1), torch.cat(outgoing, -1)
    return Balance(into - out, into + out)


def layer_balance(flow: MirrorFlow, theta: Tensor) -> Balance:
    """One law a pair of adjacent layers: Q_i − Q_{i+1} (Lemma 3.1)."""
    axes = -1 if isinstance(flow.network, DiagonalLinear) else (-2, -1)
    sums = [term.sum(axes) for term in _terms(flow, theta)]
    if len(sums) < 2:
        return _none(flow, theta)
    layers = torch.stack(sums, -1)
    lower, upper = layers[..., :-1], layers[..., 1:]
    return Balance(lower - upper, lower + upper)


def _terms(flow: MirrorFlow, theta: Tensor) -> list[Tensor]:
    """κ̃ of each parameter, layer by layer, where it is known how layers follow each other."""
    if not isinstance(flow.network, MLP | DiagonalLinear):
        return []
    return list(flow.network.unflatten(flow.potential.balance_term(theta)).values())


def _none(flow: MirrorFlow, theta: Tensor) -> Balance:
    known = isinstance(flow.network, MLP | DiagonalLinear)
    reason = "has no hidden layer" if known else "is a module, whose symmetries are not found yet"
    return Balance(theta[..., :0], theta[..., :0], f"the network {reason}")
