"""Potentials that couple coordinates: duality, what is conserved under them, and refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mirrorode as mo

QUARTIC = mo.Radial(mo.SmoothedHomogeneous(4, 1.0))


class Own(mo.Potential):
    """‖θ‖⁴/4 + ‖θ‖²/2 + Σ θ_k θ_{k+1}/4, from its value alone."""

    def value(self, theta):
        square = theta.square().sum(-1, keepdim=True)
        return square**2 / 4 + square / 2 + self.between(theta)

    def between(self, theta):
        return (theta[..., 1:] * theta[..., :-1]).sum(-1, keepdim=True) / 4


class OwnQuartic(Own):
    """‖θ‖⁴/4 + ‖θ‖²/2."""

    def between(self, theta):
        return 0.0


COUPLED = [QUARTIC, mo.Radial(mo.HyperbolicEntropy(0.1)), mo.Radial(mo.Cosh()), Own(), OwnQuartic()]
every = pytest.mark.parametrize("potential", COUPLED, ids=repr)


def points(size):
    return size * torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()


@every
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
@settings(max_examples=20, deadline=None)
def test_duality(potential, size, weights):
    """The inverse map, Fenchel–Young and D A = 1 to 1e-10."""
    theta = size * torch.tensor(weights, dtype=torch.float64)[None]
    dual = potential.gradient(theta)
    back = potential.inverse_gradient(dual)
    torch.testing.assert_close(back, theta, rtol=1e-10, atol=1e-10 * size)
    value, conjugate = potential.value(theta).sum(), potential.conjugate(dual).sum()
    product = (theta * dual).sum()
    scale = value.abs() + conjugate.abs() + product.abs() + 1e-300
    assert float((value + conjugate - product).abs() / scale) < 1e-10
    vector = points(1.0)[:1]
    again = potential.precondition(theta, potential.hessian_product(theta, vector))
    torch.testing.assert_close(again, vector, rtol=1e-9, atol=1e-9)
    assert bool((potential.balance_term(theta) >= 0).all())


@every
def test_products_are_those_of_the_gradient(potential):
    """A v by differences of z, which nothing above has looked at."""
    theta, vector, h = points(1.0), points(1.0).flip(0), 1e-6
    ahead, behind = (potential.gradient(theta + side * h * vector) for side in (1, -1))
    slope = (ahead - behind) / (2 * h)
    torch.testing.assert_close(potential.hessian_product(theta, vector), slope, rtol=1e-6, atol=0)


def test_radial_is_what_its_value_says():
    theta = points(3.0)
    for name in ("gradient", "balance_term", "value"):
        mine, theirs = getattr(QUARTIC, name)(theta), getattr(OwnQuartic(), name)(theta)
        torch.testing.assert_close(mine, theirs)
    far = 1e6 * theta[0]
    reached = (4 * QUARTIC.balance_term(far).sum()) ** 0.25
    torch.testing.assert_close(QUARTIC.horizon(far), reached)
    assert QUARTIC.degree == 4


def test_zero():
    none = torch.zeros(3, dtype=torch.float64)
    for potential in (QUARTIC, OwnQuartic()):
        assert torch.equal(potential.gradient(none), none)
        assert torch.equal(potential.inverse_gradient(none), none)
        torch.testing.assert_close(potential.precondition(none, none + 1), none + 1)


def linear_flow(potential):
    x = points(1.0)[:, :2]
    y = torch.sign(x @ torch.tensor([1.0, 0.3], dtype=torch.float64))
    network = mo.MLP((2, 4, 1), activation="linear")
    return mo.MirrorFlow(network, mo.Dataset(x, y), potential)


def layerwise(one):
    return mo.Layerwise({"W1": one, "W2": one})


def solved(potential, method="auto", end=20.0, rtol=1e-6):
    flow = linear_flow(potential)
    start = flow.network.initial(0)
    return mo.solve(flow, start, until=mo.LogInverseLoss(end), method=method, rtol=rtol)


def test_layers_are_conserved_and_units_are_not():
    """Lemma 3.1 holds; the laws of units, which are not offered, do not."""
    run = solved(layerwise(QUARTIC))
    assert run.success
    laws = mo.invariants(run.flow, run.theta)
    assert laws.names == ("layer 1: Q in − Q out",)
    assert float(laws.drift()) < 1e-4
    assert run.drift.shape == (len(run.theta), 1)
    # A unit by itself gains what others lose, by far more than that.
    w1, w2 = run.flow.network.unflatten(run.theta).values()
    terms = w1.square().sum(-1) - w2[:, 0].square()
    assert float((terms - terms[0]).abs().amax() / w1[0].square().sum()) > 0.1
    verdicts = {verdict.statement: verdict for verdict in mo.verify(run)}
    assert all(it.outcome is not mo.Outcome.FAILS for it in verdicts.values())
    units = verdicts["App. G.5: the same for every unit"]
    assert units.outcome is mo.Outcome.NOT_APPLICABLE
    assert "couples weights" in units.detail
    perturbed = run.theta.clone()
    perturbed[-1, perturbed[-1].abs().argmax()] *= 1.05
    assert float(mo.invariants(run.flow, perturbed).drift()) > 1e-3


def test_nothing_is_conserved_where_layers_are_coupled():
    run = solved(QUARTIC, end=5.0)
    assert run.success
    assert run.drift is None
    laws = mo.invariants(run.flow, run.theta)
    assert len(laws) == 0
    assert "couples weights on both sides of each layer" in str(laws)


def test_one_coupled_layer_is_enough_to_lose_the_laws_of_units():
    mixed = linear_flow(mo.Layerwise({"W1": mo.Euclidean(), "W2": QUARTIC}))
    laws = mo.invariants(mixed, mixed.network.initial(0))
    assert laws.names == ("layer 1: Q in − Q out",)
    plain = linear_flow(layerwise(mo.Euclidean()))
    assert len(mo.invariants(plain, plain.network.initial(0))) == 5


def test_value_alone_and_the_baseline_give_the_same_flow():
    run = solved(layerwise(QUARTIC), end=1.0, rtol=1e-4)
    own = solved(layerwise(OwnQuartic()), end=1.0, rtol=1e-4)
    assert own.stats.steps == run.stats.steps
    torch.testing.assert_close(own.theta[-1], run.theta[-1], rtol=1e-10, atol=1e-10)
    baseline = solved(layerwise(QUARTIC), "dopri5", end=1.0)
    torch.testing.assert_close(baseline.theta[-1], run.theta[-1], rtol=1e-3, atol=1e-3)


def test_stored_with_a_trajectory(tmp_path):
    run = solved(layerwise(QUARTIC), end=2.0)
    run.save(tmp_path / "run.npz")
    again = mo.Trajectory.load(tmp_path / "run.npz")
    assert repr(again.flow.potential) == repr(run.flow.potential)


def _own(value=None, **methods):
    kind = type("Own", (mo.Potential,), {"value": value or QUARTIC.value, **methods})
    return linear_flow(kind())


def _total(_, theta):
    return theta.square().sum(-1)


def _saddle(_, theta):
    return theta[..., :1] ** 2 - theta[..., 1:].square().sum(-1, keepdim=True)


def _half(_, theta):
    return theta.square().sum(-1, keepdim=True) / 2


def _twice(_, theta):
    return 2 * theta


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: _own(_total),
            r"`value` of Own must have its terms in the last dimension, \(4, 1\) for 4 points, "
            r"but is \(4,\)",
        ),
        (lambda: _own(_saddle), "`potential` must be strictly convex, but Own is not"),
        (lambda: _own(_half, gradient=_twice), "`gradient` must be that of its value"),
        (lambda: mo.Radial(3), "`profile` must be one separable function, but is 3"),
        (lambda: mo.Radial(layerwise(QUARTIC)), "`profile` must be one separable function"),
        (lambda: mo.audit(QUARTIC), "`potential` must be a separable potential"),
        (lambda: QUARTIC.inverse_hessian(points(1.0)), "`potential` must be separable"),
        (lambda: Own().horizon(points(1.0)), "`potential` must have a horizon"),
    ],
)
def test_refused(build, sentence):
    with pytest.raises(mo.InputError, match=sentence):
        build()
