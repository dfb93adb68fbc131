"""What is not homogeneous, or cannot be followed, is refused in one sentence that says why."""

import re

import pytest
import torch
from torch import nn

import mirrorode as mo
from tests.problem.handmade import Formula, linear


def masked(x, w, a):
    hidden = x @ w
    with torch.no_grad():
        mask = (hidden * 1 > 0).to(hidden)
    return (hidden * mask) @ a


REFUSALS = {
    "bias above": (
        lambda: nn.Sequential(linear(3, 5), nn.ReLU(), linear(5, 1, bias=True)),
        "be homogeneous in its trainable parameters, but f(2θ) differs from 2^",
    ),
    "gelu": (
        lambda: nn.Sequential(linear(3, 5), nn.GELU(), linear(5, 1)),
        "but calls gelu in its submodule `1` (GELU)",
    ),
    "softmax": (
        lambda: nn.Sequential(linear(3, 5), nn.Softmax(1), linear(5, 1)),
        "but calls softmax in its submodule `1` (Softmax)",
    ),
    "batch norm": (
        lambda: nn.Sequential(linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), linear(5, 1)),
        "but calls batch_norm in its submodule `1` (BatchNorm1d)",
    ),
    "sigmoid": (
        lambda: nn.Sequential(linear(3, 5), nn.Sigmoid(), linear(5, 1)),
        "but calls sigmoid in its submodule `1` (Sigmoid)",
    ),
    "dropout": (
        lambda: nn.Sequential(linear(3, 5), nn.Dropout(), linear(5, 1)),
        "which draws at random: call `module.eval()` first",
    ),
    "where": (
        lambda: Formula(lambda x, w, a: torch.where(x @ w > 0, x @ w, 0) @ a, (3, 5), (5, 1)),
        "but calls gt: what is chosen by comparing",
    ),
    "mask behind no_grad": (
        lambda: Formula(masked, (3, 5), (5, 1)),
        "be a polynomial of degree 2 in its trainable parameters on a fixed activation pattern",
    ),
    "sort": (
        lambda: Formula(lambda x, w, a: (x @ w).sort(1).values @ a, (3, 5), (5, 1)),
        "but calls sort",
    ),
    "norm": (
        lambda: Formula(lambda x, w: torch.linalg.vector_norm(x @ w, dim=1), (3, 5)),
        "but calls vector_norm",
    ),
    "clamp": (
        lambda: Formula(lambda x, w: (x @ w).clamp(-1, 1).sum(1), (3, 5)),
        "but clamps to [-1, 1]",
    ),
    "quotient": (
        lambda: Formula(lambda x, v, w: (x @ v) ** 2 / w.sum(), (3, 1), (5,)),
        "look at pow, div",
    ),
    "root": (
        lambda: Formula(lambda x, w: (x @ w).square().sum(1) ** 0.5, (3, 5)),
        "look at pow",
    ),
    "batch mean": (
        lambda: Formula(lambda x, w: (x - x.mean(0)) @ w, (3, 1)),
        "its outputs for a batch differ from those followed sample by sample by",
    ),
    "choice by the input": (
        lambda: Formula(lambda x, w: x @ w if x.sum() > 0 else -(x @ w), (3, 1)),
        "be a function that torch.func can follow",
    ),
    "two outputs": (
        lambda: nn.Sequential(linear(3, 5), nn.ReLU(), linear(5, 2)),
        "give one number a sample, of shape (6, 1) or (6,), but is (6, 2)",
    ),
    "nothing to train": (
        lambda: nn.Sequential(linear(3, 5), nn.ReLU()).requires_grad_(False),
        "have trainable parameters, but is without any",
    ),
    "no dependence": (
        lambda: Formula(lambda x, w: 0 * (x @ w), (3, 1)),
        "have an output that depends on its trainable parameters, but is zero at 30",
    ),
    "not finite": (
        lambda: Formula(lambda x, w: (x @ w) * float("inf"), (3, 1)),
        "give finite outputs",
    ),
    "place of a maximum": (
        lambda: Formula(lambda x, w: (x @ w).sum(1) * (x @ w).max(1).indices, (3, 5)),
        "be a function that torch.func can follow",
    ),
    "in place, by a side effect": (
        lambda: Formula(lambda x, w: (lambda u: (u.relu_(), u.sum(1))[1])(x @ w), (3, 5)),
        "its outputs for a batch differ from those followed sample by sample by",
    ),
    "no module": (lambda: "relu", "be a torch.nn.Module, but is relu"),
}


@pytest.mark.parametrize(("build", "reason"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(build, reason):
    torch.manual_seed(0)
    with pytest.raises(mo.InputError, match="^`module` must .*" + re.escape(reason)) as caught:
        mo.Network(build())
    assert "\n" not in str(caught.value)


def test_by_how_much_it_is_not_homogeneous():
    """A bias of N(0, 1) on five hidden units costs tens of per cent, and is named."""
    module = nn.Sequential(linear(3, 5), nn.ReLU(), linear(5, 1, bias=True))
    with pytest.raises(mo.InputError, match=r"by [\d.]+ % \(it has biases: 2.bias\)$"):
        mo.Network(module)


def test_a_wrong_degree_or_dimension_is_refused():
    module = nn.Sequential(linear(3, 5), nn.ReLU(), linear(5, 4), nn.ReLU(), linear(4, 1))
    assert mo.Network(module, degree=3).degree == 3
    with pytest.raises(mo.InputError, match=r"^`degree` must be 3, as found, but is 2$"):
        mo.Network(module, degree=2)
    with pytest.raises(mo.InputError, match=r"^`module` must take inputs \(K, 4\), but: "):
        mo.Network(module, dim=4)
