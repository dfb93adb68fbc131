"""Margins of Definitions 4.1 and 4.2, norm margins of Tables 2–8; θ may be a batch (…, n)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.problem.errors import InputError, require_number


def norm_margin(flow: MirrorFlow, theta: Tensor, k: float) -> Tensor:
    """The L_k-margin min_i q_i / ‖θ‖_k^L with the entrywise norm of all layers together; (…).

    Raises:
        InputError: if ``k`` is not at least 1.
    """
    if k != math.inf:
        require_number(k, "k", "be at least 1", 1.0, strict=False)
    size = torch.linalg.vector_norm(theta, ord=k, dim=-1)
    return flow.margins(theta).amin(-1) / size**flow.network.degree


def q_potential(flow: MirrorFlow, theta: Tensor) -> Tensor:
    """Q̂ = αQ(∇R(θ)), (…), from θ itself: no digit is lost at small weights.

    Raises:
        InputError: if the potential has no asymptotic degree.
    """
    potential, alpha = flow.potential, asymptotic_degree(flow)
    at_zero = -potential.value(theta.new_zeros(theta.shape[-1])).sum()  # Q(0) = −R(0)
    return alpha * (potential.balance_term(theta).sum(-1) + at_zero)


def asymptotic_degree(flow: MirrorFlow) -> float:
    """α of Definition 4.1.

    Raises:
        InputError: if the potential has none.
    """
    alpha = flow.potential.degree
    if alpha is None:
        raise InputError(
            f"`potential` must have an asymptotic degree, but {flow.potential} has none"
        )
    return alpha


def q_margin(flow: MirrorFlow, theta: Tensor) -> Tensor:
    """γ = min_i q_i / Q̂^{L/α} (Definition 4.1), (…)."""
    return flow.margins(theta).amin(-1) / _normaliser(flow, theta)


def soft_q_margin(flow: MirrorFlow, theta: Tensor) -> Tensor:
    """γ̃ = log(1/𝓛) / Q̂^{L/α} (Definition 4.2), (…)."""
    return flow.log_inverse_loss(theta) / _normaliser(flow, theta)


def _normaliser(flow: MirrorFlow, theta: Tensor) -> Tensor:
    return q_potential(flow, theta) ** (flow.network.degree / asymptotic_degree(flow))


def layer_product_margin(outputs: Tensor, labels: Tensor, weights: Iterable[Tensor]) -> Tensor:
    """min_i (f_{y_i} − max_{j ≠ y_i} f_j)(x_i) / Π_l ‖W_l‖_F, as Appendix J.3 follows it.

    Args:
        outputs: of a network of several classes, (K, classes).
        labels: (K,), integers.
        weights: one tensor a layer, in which the network is homogeneous each by itself.
    """
    own = outputs.gather(1, labels[:, None])[:, 0]
    others = outputs.scatter(1, labels[:, None], -math.inf).amax(1)
    sizes = [torch.linalg.vector_norm(it) for it in weights]
    return (own - others).amin() / torch.stack(sizes).prod()
