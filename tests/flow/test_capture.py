"""The pull on a unit at zero: the largest force over all directions, against brute force."""

import math

import torch

from mirrorode.flow.capture import strongest


def test_strongest_in_the_plane():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        inputs = torch.randn(15, 2, generator=generator, dtype=torch.float64)
        force = torch.randn(15, generator=generator, dtype=torch.float64) - 0.7
        value, direction = strongest(inputs, force)
        angles = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)
        around = torch.stack([angles.cos(), angles.sin()], 1)
        brute = float((torch.relu(around @ inputs.T) @ force).max())
        size = float(force.abs() @ inputs.norm(dim=1))
        assert float(value) * size >= brute - 1e-9
        assert abs(float(value) * size - brute) < 1e-2
        assert abs(float(direction.norm()) - 1) < 1e-12


def test_a_unit_that_only_loses_is_kept():
    """All samples push back: no direction pulls it away."""
    value, _ = strongest(torch.eye(2, dtype=torch.float64), -torch.ones(2, dtype=torch.float64))
    assert float(value) <= 0
