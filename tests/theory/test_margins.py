"""Margins are scale-invariant, and the Q-margin of gradient flow is the L₂-margin."""

import pytest
import torch

import mirrorode as mo
from mirrorode.theory.balance import layer_laws, unit_laws


def test_norm_margins(small_flow):
    flow = small_flow("euclidean")
    theta = flow.network.initial(0)
    q_min = float(flow.margins(theta).min())
    for k in (1, 2, 3):
        margin = float(mo.norm_margin(flow, theta, k))
        assert margin == pytest.approx(q_min / float(theta.abs().pow(k).sum()) ** (2 / k))
        assert float(mo.norm_margin(flow, 7.3 * theta, k)) == pytest.approx(margin)
    with pytest.raises(mo.InputError, match="`k` must be at least 1"):
        mo.norm_margin(flow, theta, 0.5)


def test_euclidean_q_margin_is_the_l2_margin(small_flow):
    flow = small_flow("euclidean")
    theta = flow.network.initial(0)
    torch.testing.assert_close(mo.q_margin(flow, theta), mo.norm_margin(flow, theta, 2))


@pytest.mark.parametrize("name", ["hyperbolic", "euclidean", "p3"])
def test_soft_margin_below_margin(small_flow, name):
    """Lemma 4.3, and its two margins meet late."""
    flow = small_flow(name)
    theta = torch.stack([flow.network.initial(seed) for seed in range(4)])
    assert bool((mo.soft_q_margin(flow, theta) <= mo.q_margin(flow, theta)).all())


def test_layer_law_is_the_sum_of_neuron_laws(small_flow):
    flow = small_flow("p3")
    theta = flow.network.initial(0)
    torch.testing.assert_close(
        unit_laws(flow, theta).values.sum(-1), layer_laws(flow, theta).values.sum(-1)
    )


def test_balance_is_what_rescaling_moves(small_flow):
    """Negative control of the invariants: a rescaled neuron has the same function, another law."""
    flow = small_flow("hyperbolic")
    theta = flow.network.initial(0)
    moved = theta.clone()
    weights = flow.network.unflatten(moved)
    weights["W1"][0] *= 2
    weights["W2"][:, 0] /= 2
    torch.testing.assert_close(flow.margins(theta), flow.margins(moved))
    change = unit_laws(flow, moved).values - unit_laws(flow, theta).values
    assert abs(float(change[0])) > 0.1
    assert float(change[1:].abs().max()) == 0
