"""Every statement holds along a flow, and fails along something that is not one."""

import json
from dataclasses import replace

import pytest
import torch

import mirrorode as mo


@pytest.mark.parametrize("name", ["hyperbolic", "euclidean", "p3"])
def test_all_hold(small_run, name):
    verdicts = mo.verify(small_run(name))
    assert len(verdicts) == 8
    for verdict in verdicts:
        assert verdict.passed is True, str(verdict)
    assert verdicts.passed


def _named(run, start):
    (found,) = [verdict for verdict in mo.verify(run) if verdict.statement.startswith(start)]
    return found


def _perturbed(run, size=0.03):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(run.theta.shape, generator=generator, dtype=run.theta.dtype)
    return replace(run, theta=run.theta * (1 + size * noise))


@pytest.mark.parametrize(
    "statement", ["Lemma 2.5", "Lemma 3.1", "App. G.5", "Eq. (4)", "Lemma 4.3", "Theorem 4.5"]
)
def test_a_perturbed_trajectory_fails(small_run, statement):
    """Negative control: 3 % of noise on the parameters."""
    run = _perturbed(small_run("p3"))
    verdict = _named(run, statement)
    assert verdict.passed is False, str(verdict)
    assert verdict.slack < 0


def test_a_wrong_degree_breaks_assumption_4_4(small_run):
    """Negative control: p = 3 sold as α = 2."""

    class Mislabelled(mo.SmoothedHomogeneous):
        degree = 1.5

    run = small_run("p3")
    flow = replace(run.flow, potential=Mislabelled(3, 1.0))
    assert _named(replace(run, flow=flow), "Assumption 4.4").passed is False


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
    """Negative control: through kinks at the same number of evaluations the identity fails."""
    flow = small_flow(name)
    start = flow.network.initial(1)
    true = mo.solve(flow, start, until=mo.LogInverseLoss(1.9), rtol=1e-5)
    assert _named(true, "Dissipation").passed is True
    wrong = _sign_based(true, true.stats.evaluations // 2)
    verdict = _named(wrong, "Dissipation")
    assert verdict.passed is False, str(verdict)


def test_not_applicable(small_flow):
    flow = small_flow("euclidean")
    run = mo.solve(flow, flow.network.initial(0), until=mo.Time(1e-3))
    verdict = _named(run, "Theorem 4.5")
    assert verdict.passed is None
    assert "never below 1" in verdict.detail


def test_prints_and_serialises(small_run):
    verdicts = mo.verify(small_run("euclidean"))
    text = str(verdicts)
    assert "Lemma 3.1" in text
    assert "holds" in text
    rows = json.loads(verdicts.to_json())
    assert [row["passed"] for row in rows] == [True] * 8
