"""The balance equation: what the rescaling symmetry of the network conserves.

With κ̃(t) = t r'(t) − r(t) + r(0), the conjugate Q up to a constant, a mirror flow conserves for
each hidden unit Σ_in κ̃ − Σ_out κ̃ (Appendix G.5), and hence for adjacent layers
Q_i − Q_{i+1} (Lemma 3.1): for every separable potential and every selection at kinks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mirrorode.flow.mirror_flow import MirrorFlow


@dataclass(frozen=True)
class Balance:
    """Conserved quantities of (…, n) parameters.

    Attributes:
        value: (…, laws), what is conserved.
        scale: (…, laws), the sum of its terms, to which a drift is relative.
    """

    value: Tensor
    scale: Tensor

    def drift(self) -> Tensor:
        """Largest |value − initial value| relative to the scale, over a trajectory (T, laws)."""
        return ((self.value - self.value[:1]).abs() / self.scale.clamp(min=1e-300)).amax()


def neuron_balance(flow: MirrorFlow, theta: Tensor) -> Balance:
    """One law a hidden unit: Σ κ̃(incoming) − Σ κ̃(outgoing) (Appendix G.5)."""
    incoming, outgoing = [], []
    terms = list(flow.network.unflatten(flow.potential.balance_term(theta)).values())
    for lower, upper in pairwise(terms):
        incoming.append(lower.sum(-1))
        outgoing.append(upper.sum(-2))
    if not incoming:
        return Balance(theta[..., :0], theta[..., :0])
    into, out = torch.cat(incoming, -1), torch.cat(outgoing, -1)
    return Balance(into - out, into + out)


def layer_balance(flow: MirrorFlow, theta: Tensor) -> Balance:
    """One law a pair of adjacent layers: Q_i − Q_{i+1} (Lemma 3.1)."""
    terms = flow.network.unflatten(flow.potential.balance_term(theta))
    layers = torch.stack([term.sum((-2, -1)) for term in terms.values()], -1)
    lower, upper = layers[..., :-1], layers[..., 1:]
    return Balance(lower - upper, lower + upper)
