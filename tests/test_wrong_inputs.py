"""Wrong inputs: each is refused with one sentence that names it and says what it must be."""

import re

import pytest
import torch
from torch import nn

import mirrorode as mo

ONES = torch.ones(2, 2, dtype=torch.float64)
LABELS = torch.tensor([1.0, -1.0], dtype=torch.float64)
INF, NAN = float("inf"), float("nan")


def data():
    return mo.Dataset([[2.0, 1.0], [1.0, -1.0]], [1.0, 1.0])


def flow(potential=None):
    return mo.MirrorFlow(mo.MLP((2, 3, 1)), data(), potential or mo.Euclidean())


def solve(theta=None, until=None, **options):
    here = flow()
    theta = here.network.initial(0) if theta is None else theta
    return mo.solve(here, theta, until=until or mo.LogInverseLoss(-0.5), **options)


def own(value):
    """A potential of one's own with this value."""
    kind = type("Own", (mo.SeparablePotential,), {"value": lambda _, theta: value(theta)})
    return kind()


WRONG = {
    "lam": [
        lambda: mo.HyperbolicEntropy(lam=-1.0),
        lambda: mo.HyperbolicEntropy(lam=0.0),
        lambda: mo.HyperbolicEntropy(lam=NAN),
        lambda: mo.HyperbolicEntropy(lam="small"),
        lambda: mo.SmoothedHomogeneous(p=3, lam=-0.1),
        lambda: mo.SmoothedHomogeneous(p=3, lam=INF),
    ],
    "p": [
        lambda: mo.SmoothedHomogeneous(p=1.5, lam=1.0),
        lambda: mo.SmoothedHomogeneous(p=NAN, lam=1.0),
        lambda: mo.Power(1.0),
        lambda: mo.Power(INF),
    ],
    "factor": [
        lambda: mo.Scaled(mo.Euclidean(), -2.0),
        lambda: mo.Scaled(mo.Euclidean(), 0.0),
        lambda: mo.Scaled(mo.Euclidean(), torch.tensor([1.0, NAN])),
    ],
    "width": [lambda: mo.for_width(mo.Euclidean(), 0)],
    "widths": [
        lambda: mo.MLP((2,)),
        lambda: mo.MLP((2, 0, 1)),
        lambda: mo.MLP((2, 3, 2)),
        lambda: mo.MLP((2, 2.5, 1)),
    ],
    "activation": [
        lambda: mo.MLP((2, 3, 1), activation="gelu"),
        lambda: mo.MLP((2, 3, 1), activation=3),
    ],
    "dim": [lambda: mo.DiagonalLinear(0, 2)],
    "depth": [lambda: mo.DiagonalLinear(2, 0)],
    "x": [
        lambda: mo.Dataset([[NAN, 1.0], [1.0, 1.0]], LABELS),
        lambda: mo.Dataset(torch.ones(3, dtype=torch.float64), LABELS),
        lambda: mo.Dataset(torch.empty(0, 2), torch.empty(0)),
    ],
    "y": [
        lambda: mo.Dataset(ONES, [1.0, 0.5]),
        lambda: mo.Dataset(ONES, [1.0, -1.0, 1.0]),
        lambda: mo.Dataset(ONES, [0.0, 1.0]),
    ],
    "samples": [lambda: mo.teacher_student(0, seed=1)],
    "teachers": [lambda: mo.teacher_student(5, teachers=0, seed=1)],
    "module": [
        lambda: mo.Network(nn.Sequential(nn.Linear(2, 1, bias=False), nn.GELU())),
        lambda: mo.Network(nn.Sequential(nn.Linear(2, 1, bias=False), nn.Softmax(dim=-1))),
        lambda: mo.Network("resnet"),
    ],
    "network": [lambda: mo.MirrorFlow(nn.Linear(2, 1), data(), mo.Euclidean())],
    "potential": [
        lambda: mo.MirrorFlow(mo.MLP((2, 3, 1)), data(), "euclidean"),
        lambda: flow(own(torch.abs)),
        lambda: flow(own(lambda theta: -(theta**2))),
        lambda: flow(own(lambda theta: theta.abs() + theta**2)),
        lambda: flow(own(lambda theta: torch.log(torch.cosh(theta.clamp(-300, 300))))),
        lambda: flow(own(lambda theta: theta**3)),
        lambda: mo.audit("euclidean"),
    ],
    "value": [
        lambda: flow(own(lambda theta: theta.sum())),
        lambda: flow(own(lambda theta: (theta**2).detach())),
        lambda: flow(own(lambda theta: theta**2 / 0.0)),
    ],
    "dataset": [lambda: mo.MirrorFlow(mo.MLP((3, 3, 1)), data(), mo.Euclidean())],
    "theta0": [
        lambda: solve(torch.ones(5, dtype=torch.float64)),
        lambda: solve(torch.full((9,), NAN, dtype=torch.float64)),
    ],
    "rtol": [lambda: solve(rtol=0.0), lambda: solve(rtol=-1e-6), lambda: solve(rtol=2.0)],
    "atol": [lambda: solve(atol=-1.0)],
    "max_steps": [lambda: solve(max_steps=0)],
    "method": [lambda: solve(method="rk45")],
    "until": [lambda: solve(until=1e4)],
    "saveat": [lambda: solve(saveat=[3.0])],
    "t": [lambda: mo.Time(-1.0), lambda: mo.Time(NAN)],
    "norm": [lambda: mo.max_margin(ONES, LABELS, norm=0.5)],
}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [pytest.param(name, call, id=f"{name}-{k}") for name, calls in WRONG.items()
     for k, call in enumerate(calls)],
)  # fmt: skip
def test_refused(name, wrong):
    with pytest.raises(mo.InputError) as refused:
        wrong()
    text = str(refused.value)
    assert "must" in text
    assert f"`{name}`" in text
    assert "\n" not in text
    assert len(re.findall(r"\. [A-Z]", text)) == 0  # one sentence


def test_fifty():
    assert sum(map(len, WRONG.values())) >= 50
