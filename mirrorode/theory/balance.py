"""The balance equation: what the rescaling symmetries of the network conserve.

With κ̃(t) = t r'(t) − r(t) + r(0), the conjugate Q up to a constant, a mirror flow conserves for
each hidden unit Σ_in κ̃ − k Σ_out κ̃ (Appendix G.5), k the degree of its activation, and hence for
adjacent layers Q_i − Q_{i+1} (Lemma 3.1): for every separable potential and every selection at
kinks. In a linear network under gradient flow whole matrices are conserved; under other potentials
these laws are all.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mirrorode.flow.balance import Terms, hold
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.problem.networks import MLP
from mirrorode.problem.potentials import Euclidean

WHAT = ("unit, or weights of several", "layer")


@dataclass(frozen=True)
class Invariants:
    """What a flow conserves, at (…, n) parameters.

    Attributes:
        names: one a law.
        values: (…, laws).
        scale: (…, laws), the sum of the terms of each law, to which a drift is relative.
        missing: why there is no law, if there is none.
    """

    names: tuple[str, ...]
    values: Tensor
    scale: Tensor
    missing: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def drifts(self) -> Tensor:
        """Largest |value − first value| of each law relative to the scale, for (T, laws)."""
        return ((self.values - self.values[:1]).abs() / self.scale.clamp(min=1e-300)).amax(0)

    def drift(self) -> Tensor:
        """The largest of all of them."""
        return self.drifts().amax()

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=110).print(self)
        return buffer.getvalue()

    def __rich__(self) -> Table | str:
        if not self.names:
            return f"no laws: {self.missing}"
        table = Table(title="Conserved along the flow")
        for column in ("law", "value", "sum of terms"):
            table.add_column(column)
        last = (part.reshape(-1, len(self))[-1].tolist() for part in (self.values, self.scale))
        for name, value, scale in zip(self.names, *last, strict=True):
            table.add_row(name, f"{value:.6g}", f"{scale:.3g}")
        return table


def invariants(flow: MirrorFlow, theta: Tensor) -> Invariants:
    """All that is known to be conserved, at ``theta`` (…, n).

    The laws of units, found from the network itself; those of layers, which are their sums; and
    for a linear `MLP` under the Euclidean potential what else W_{i+1}ᵀW_{i+1} − W_iW_iᵀ conserves,
    its entries off the diagonal.
    """
    parts = [unit_laws(flow, theta), layer_laws(flow, theta)]
    if (
        isinstance(flow.potential, Euclidean)
        and getattr(flow.network, "activation", "") == "linear"
    ):
        parts.append(matrix_laws(flow, theta))
    return Invariants(
        tuple(name for part in parts for name in part.names),
        torch.cat([part.values for part in parts], -1),
        torch.cat([part.scale for part in parts], -1),
        parts[1].missing,
    )


def unit_laws(flow: MirrorFlow, theta: Tensor) -> Invariants:
    """One law a hidden unit: Σ κ̃(incoming) − k Σ κ̃(outgoing) (Appendix G.5)."""
    return _laws(flow, theta, 0)


def layer_laws(flow: MirrorFlow, theta: Tensor) -> Invariants:
    """One law a hidden layer: Q_i − Q_{i+1} (Lemma 3.1), the sum of those of its units."""
    return _laws(flow, theta, 1)


def _laws(flow: MirrorFlow, theta: Tensor, of: int) -> Invariants:
    """Those of units (0) or layers (1) that the potential leaves."""
    units = flow.symmetries
    if len(units) == 0:
        return Invariants((), theta[..., :0], theta[..., :0], units.missing)
    laws = hold(units, flow.potential)[of]
    terms = Terms.at(units, flow.potential, theta)
    names = list(units.names)
    if of == 1:
        terms = terms.of_layers(units)
        names = [f"layer {layer}: Q in − Q out" for layer in range(1, len(laws) + 1)]
    kept = tuple(name for name, law in zip(names, laws.tolist(), strict=True) if law)
    missing = "" if kept else f"the potential couples weights on both sides of each {WHAT[of]}"
    return Invariants(kept, terms.value[..., laws], terms.scale[..., laws], missing)


def matrix_laws(flow: MirrorFlow, theta: Tensor) -> Invariants:
    """The entries above the diagonal of W_iW_iᵀ − W_{i+1}ᵀW_{i+1} of an `MLP`.

    They are conserved if it is linear and the potential Euclidean; under another potential only
    the laws of units are.
    """
    values, scales, names = [theta[..., :0]], [theta[..., :0]], []
    weights = flow.network.unflatten(theta)
    layered = isinstance(flow.network, MLP)
    for number, (lower, upper) in enumerate(pairwise(weights.values() if layered else ()), 1):
        row, column = torch.triu_indices(lower.shape[-2], lower.shape[-2], 1).unbind()
        into, out = (
            (lower @ lower.mT, upper.mT @ upper),
            (lower.abs() @ lower.abs().mT, upper.abs().mT @ upper.abs()),
        )
        values.append((into[0] - into[1])[..., row, column])
        scales.append((out[0] + out[1])[..., row, column])
        pairs = zip(row.tolist(), column.tolist(), strict=True)
        names += [f"layer {number}: WWᵀ − WᵀW [{j}, {m}]" for j, m in pairs]
    return Invariants(tuple(names), torch.cat(values, -1), torch.cat(scales, -1))
