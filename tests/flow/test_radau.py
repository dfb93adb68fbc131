"""Radau IIA: order conditions to round-off, and windows that add up to the whole step."""

import numpy as np
import torch

from mirrorode.flow import radau
from mirrorode.flow.kinks import Pairs, crossings, divide


def test_order_conditions():
    """B(5): Σ b c^{k−1} = 1/k; C(3): Σ_j a_ij c_j^{k−1} = c_i^k / k; stiffly accurate."""
    a, c = radau.BUTCHER, radau.NODES
    for k in range(1, 6):
        assert abs(a[-1] @ c ** (k - 1) - 1 / k) < 1e-14
    assert abs(a[-1] @ c**5 - 1 / 6) > 1e-4
    for k in range(1, 4):
        np.testing.assert_allclose(a @ c ** (k - 1), c**k / k, atol=1e-14)


def test_error_weight():
    """γ₀ is the inverse of the real eigenvalue of A⁻¹."""
    values = np.linalg.eigvals(np.linalg.inv(radau.BUTCHER))
    real = values[np.abs(values.imag) < 1e-9].real
    np.testing.assert_allclose(1 / real, radau.ERROR_WEIGHT, rtol=1e-12)


def _pattern():
    return [torch.tensor([[1, 0], [0, 1], [1, 1]]).bool(), torch.tensor([[1], [0], [1]]).bool()]


def test_windows_add_up():
    """Whatever is crossed, the windows of a sample together are the whole step."""
    flips = Pairs.of([(0, 1, 2), (1, 0, 0), (1, 0, 2)], torch.device("cpu"))
    rows = divide(3, _pattern(), flips, torch.tensor([0.5, 0.2, 0.1], dtype=torch.float64))
    total = torch.zeros(3, 3, 3, dtype=torch.float64).index_add(2, rows.sample, rows.quadrature)
    torch.testing.assert_close(total, torch.tensor(radau.BUTCHER)[..., None].expand(3, 3, 3))
    # Sample 2 flips twice: after 0.1 unit 0 of layer 1 is off, after 0.5 unit 1 of layer 0 too.
    last = rows.at_node[2, 2]
    assert rows.pattern[0][last].tolist() == [True, False]
    assert rows.pattern[1][last].tolist() == [False]
    first = rows.at_node[0, 2]
    assert rows.pattern[0][first].tolist() == [True, True]
    assert rows.pattern[1][first].tolist() == [False]


def test_windows_integrate_a_jump_exactly():
    """∫ of a polynomial of degree two up to 1 that switches on at τ."""
    tau = 0.37
    flips = Pairs.of([(0, 1, 0)], torch.device("cpu"))
    rows = divide(1, [torch.zeros(1, 2).bool()], flips, torch.tensor([tau], dtype=torch.float64))
    values = torch.tensor(radau.NODES**2)
    after = rows.quadrature[2, :, 1] @ values
    assert abs(float(after) - (1 - tau**3) / 3) < 1e-14


def test_crossings_are_located():
    times = torch.tensor([0.0, *radau.NODES], dtype=torch.float64)
    value = (times - 0.4)[:, None, None] * torch.tensor([[1.0, -1.0, 0.0]]) + torch.tensor(
        [0, 0, 1.0]
    )
    start = [torch.tensor([[False, True, True]])]
    pairs, when = crossings(start, [value.double()], [torch.zeros(1, 3).bool()])
    assert pairs.unit.tolist() == [0, 1]
    torch.testing.assert_close(when, torch.full((2,), 0.4, dtype=torch.float64), atol=1e-10, rtol=0)
