"""Every statement holds along a flow, and fails along something that is not one."""

import json
from dataclasses import fields, replace

import pytest
import torch

import mirrorode as mo

EVENTUAL = {"Thm 4.7, Cor. 4.8", "Cor. I.1"}
"""Statements about the limit, which the hyperbolic entropy approaches slowly."""


def outcomes(run):
    """The outcome of each statement, by its number; the two halves of Theorem 4.6 apart."""
    found = {}
    for verdict in mo.verify(run):
        key = verdict.statement.split(":")[0]
        found[f"{key}b" if key in found else key] = verdict.outcome
    return found


def failing(run):
    return {name for name, outcome in outcomes(run).items() if outcome is mo.Outcome.FAILS}


@pytest.mark.parametrize("name", ["hyperbolic", "euclidean", "p3"])
def test_none_fails(small_run, name):
    """Every statement is decided at log(1/loss) = 1e4, and none fails."""
    verdicts = mo.verify(small_run(name))
    assert len(verdicts) == 26
    assert verdicts.passed
    late = {v.statement.split(":")[0] for v in verdicts if v.outcome is mo.Outcome.NOT_YET}
    assert late == (EVENTUAL if name == "hyperbolic" else set())
    for verdict in verdicts:
        assert verdict.passed is None or verdict.slack >= 0, str(verdict)
        assert verdict.detail


def _named(run, start):
    (found,) = [verdict for verdict in mo.verify(run) if verdict.statement.startswith(start)]
    return found


def _perturbed(run, size=0.03):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(run.theta.shape, generator=generator, dtype=run.theta.dtype)
    return replace(run, theta=run.theta * (1 + size * noise))


@pytest.mark.parametrize("name", ["hyperbolic", "euclidean", "p3"])
def test_a_perturbed_trajectory_fails(small_run, name):
    """Negative control: 3 % of noise breaks duality, balance and all about growth, nothing else.

    Bounds that hold at every θ, as Assumption 4.4, and those about t alone still hold.
    """
    found = failing(_perturbed(small_run(name)))
    assert found >= {
        "Lemma 2.5", "Lemma 3.1", "App. G.5", "Eq. (4)", "Lemma 4.3", "Theorem 4.5", "Lemma D.1",
        "Definition I.4", "Corollary G.8",
    }  # fmt: skip
    assert not found & {
        "Dissipation", "Assumption 4.4", "Lemma D.2", "Lemma F.1", "Theorem 4.6", "Theorem 4.6b",
        "Lemma E.2", "Lemma G.7", "Lemma G.10", "Assumption H.1", "Lemma 4.10",
    }  # fmt: skip
    for verdict in mo.verify(_perturbed(small_run(name))):
        assert (verdict.slack < 0) == (verdict.outcome in (mo.Outcome.FAILS, mo.Outcome.NOT_YET))


def _relabelled(run, degree):
    """The run, its potential sold under another degree α."""
    own = run.flow.potential
    kind = type("Mislabelled", (type(own),), {"degree": degree})
    settings = {field.name: getattr(own, field.name) for field in fields(own)}
    return replace(run, flow=replace(run.flow, potential=kind(**settings)))


@pytest.mark.parametrize("name", ["hyperbolic", "euclidean", "p3"])
def test_too_small_a_degree_of_the_potential(small_run, name):
    """Negative control: half of α breaks Assumption 4.4 and what follows from it, no identity."""
    run = small_run(name)
    found = failing(_relabelled(run, 0.5 * run.flow.potential.degree))
    assert found == {
        "Assumption 4.4", "Theorem 4.5", "Lemma D.1", "Definition I.4", "Lemma D.2",
        "Theorem 4.6", "Theorem 4.6b", "Lemma G.7", "Corollary G.8", "Assumption H.1",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["hyperbolic", "euclidean", "p3"])
def test_too_large_a_degree_of_the_potential(small_run, name):
    """Negative control: with 1.5 α the bounds are weaker, but the exponents and φ are wrong."""
    run = small_run(name)
    found = failing(_relabelled(run, 1.5 * run.flow.potential.degree))
    assert found >= {"Theorem 4.6b", "Assumption H.1"}
    assert found <= {"Theorem 4.6", "Theorem 4.6b", "Assumption H.1", "Lemma G.10"}


@pytest.mark.parametrize("name", ["hyperbolic", "euclidean", "p3"])
def test_a_wrong_degree_of_the_network(small_run, name):
    """Negative control: L = 3 for two layers breaks Euler's identity and all built on it."""
    run = small_run(name)
    kind = type("Deeper", (mo.MLP,), {"degree": 3})
    found = failing(replace(run, flow=replace(run.flow, network=kind((2, 12, 1)))))
    assert found >= {"Eq. (4)", "Theorem 4.5", "Lemma D.1", "Theorem 4.6", "Corollary G.8"}
    assert not found & {"Lemma 2.5", "Lemma 3.1", "App. G.5", "Dissipation", "Assumption 4.4"}


@pytest.mark.parametrize(("power", "broken"), [(1.05, {"Lemma D.2", "Theorem 4.6"}),
                                               (0.95, {"Theorem 4.6"})])  # fmt: skip
@pytest.mark.parametrize("name", ["hyperbolic", "euclidean", "p3"])
def test_a_rescaled_time(small_run, name, power, broken):
    """Negative control: t to another power breaks what is said of t, and nothing else."""
    run = small_run(name)
    assert failing(replace(run, log_time=power * run.log_time)) == broken


def test_another_unit_of_time_breaks_only_the_integral(small_run):
    """Negative control: Θ(·) does not see a factor of t, Lemma D.2 does."""
    run = small_run("euclidean")
    assert failing(replace(run, log_time=run.log_time + 14)) == {"Lemma D.2"}
    assert failing(replace(run, log_time=run.log_time - 7)) == set()


def test_gradient_descent_with_large_steps_breaks_the_balance(small_flow):
    """Negative control: what is conserved by the flow is not by discrete steps."""
    flow = small_flow("euclidean")
    theta = [flow.network.initial(1)]
    for _ in range(60):
        loss = flow.log_inverse_loss(theta[-1])
        theta.append(theta[-1] + 0.3 * torch.exp(-loss) * flow.vector_field(theta[-1]))
    path = torch.stack(theta)
    run = mo.solve(flow, theta[0], until=mo.Time(1e-3))
    run = replace(
        run, theta=path, dual=path, log_inverse_loss=flow.log_inverse_loss(path),
        log_time=torch.arange(61).double().log(),
    )  # fmt: skip
    assert _named(run, "Lemma 3.1").passed is False
    assert _named(run, "App. G.5").passed is False


def _sign_based(run, steps):
    """The sign-based field by the midpoint rule over the loss time of ``run``, in equal steps.

    Its dissipation is the quadrature of the same stages.
    """
    flow, h = run.flow, sum(step.h for step in run.steps) / steps

    def field(dual):
        theta = flow.potential.inverse_gradient(dual)
        force = flow.vector_field(theta)
        return force, (flow.potential.inverse_hessian(theta) * force.square()).sum()

    duals, lost = [flow.potential.gradient(run.theta[0])], [torch.zeros(()).double()]
    for _ in range(steps):
        force, speed = field(duals[-1] + 0.5 * h * field(duals[-1])[0])
        duals.append(duals[-1] + h * force)
        lost.append(lost[-1] + h * speed)
    dual = torch.stack(duals)
    theta = flow.potential.inverse_gradient(dual)
    return replace(
        run, theta=theta, dual=dual, dissipated=torch.stack(lost),
        log_time=torch.arange(steps + 1).double(), log_inverse_loss=flow.log_inverse_loss(theta),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["hyperbolic", "euclidean", "p3"])
def test_the_sign_based_field_dissipates_otherwise(small_flow, name):
    """Negative control: through kinks at the same number of evaluations the identity fails.

    So do the increments that follow from it; pointwise statements hold at any θ.
    """
    flow = small_flow(name)
    start = flow.network.initial(1)
    true = mo.solve(flow, start, until=mo.LogInverseLoss(1.9), rtol=1e-5)
    assert failing(true) == set()
    found = failing(_sign_based(true, true.stats.evaluations // 2))
    assert found >= {"Dissipation", "Theorem 4.5"}
    assert not found & {"Lemma 2.5", "Eq. (4)", "Lemma 4.3", "Assumption 4.4", "Assumption H.1"}


def test_not_applicable(small_flow):
    """Before the loss is below 1 nothing is said of late times."""
    flow = small_flow("euclidean")
    run = mo.solve(flow, flow.network.initial(0), until=mo.Time(1e-3))
    verdict = _named(run, "Theorem 4.5")
    assert verdict.outcome is mo.Outcome.NOT_APPLICABLE
    assert verdict.passed is None
    assert "never below 1" in verdict.detail
    assert mo.verify(run).passed


def test_without_a_degree(small_flow):
    """A potential without α has its identities checked, and no margin."""

    class Cosh(mo.SeparablePotential):
        def value(self, theta):
            return torch.cosh(theta)

    flow = mo.MirrorFlow(mo.MLP((2, 1)), mo.teacher_student(10, seed=3), Cosh())
    run = mo.solve(flow, torch.tensor([0.1, 0.2]), until=mo.LogInverseLoss(-2.0), rtol=1e-6)
    found = outcomes(run)
    assert found["Lemma 2.5"] is mo.Outcome.HOLDS
    assert found["Eq. (4)"] is mo.Outcome.HOLDS
    for name in ("Assumption 4.4", "Theorem 4.6", "Lemma G.7", "Thm 4.7, Cor. 4.8", "Lemma 4.10"):
        assert found[name] is mo.Outcome.NOT_APPLICABLE


def test_different_potentials_for_the_layers():
    """Definition I.4: with two degrees there is no Q-margin, but the multi-Q-margin grows."""
    potential = mo.Layerwise({"W1": mo.HyperbolicEntropy(0.1), "W2": mo.Euclidean()})
    flow = mo.MirrorFlow(mo.MLP((2, 6, 1)), mo.teacher_student(20, seed=3), potential)
    run = mo.solve(flow, flow.network.initial(1), until=mo.LogInverseLoss(100.0), rtol=1e-6)
    found = outcomes(run)
    assert found["Definition I.4"] is mo.Outcome.HOLDS
    assert found["Theorem 4.5"] is mo.Outcome.NOT_APPLICABLE
    assert "Definition I.4" in failing(_perturbed(run))


def test_prints_and_serialises(small_run):
    verdicts = mo.verify(small_run("euclidean"))
    text = str(verdicts)
    assert "Lemma 3.1" in text
    assert "holds" in text
    rows = json.loads(verdicts.to_json())
    assert [row["passed"] for row in rows].count(True) == 25
    assert {row["outcome"] for row in rows} == {"holds", "not applicable"}
    assert all(row["slack"] is None or row["slack"] >= 0 for row in rows)


def test_few_points_far_out_and_large_powers():
    """All points beyond 1e7; seven layers, alignment out of sight; α = 10 at an early end."""
    data = mo.Dataset([[2.0, 1.0], [1.0, -1.0]], [1.0, 1.0])
    flow = mo.MirrorFlow(mo.DiagonalLinear(2, 2), data, mo.Euclidean())
    saved = [mo.LogInverseLoss(level) for level in (1e8, 2e8)]
    start = torch.full((4,), 0.3, dtype=torch.float64)
    run = mo.solve(flow, start, until=mo.LogInverseLoss(4e8), saveat=saved)
    assert mo.verify(run).passed
    deep = mo.MirrorFlow(mo.DiagonalLinear(2, 7), data, mo.SmoothedHomogeneous(2.02, 2.5))
    run = mo.solve(deep, deep.network.initial(0).abs(), until=mo.LogInverseLoss(5.0), rtol=1e-5)
    assert mo.verify(run).passed
    tenth = mo.MirrorFlow(mo.DiagonalLinear(2, 2), data, mo.SmoothedHomogeneous(10, 0.1))
    run = mo.solve(tenth, start, until=mo.LogInverseLoss(2.0), rtol=1e-6)
    assert mo.verify(run).passed
