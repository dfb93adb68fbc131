"""Statements about limits, and when those that are not there yet are expected."""

import pytest
import torch

import mirrorode as mo
from mirrorode.theory.approximate import approximate
from mirrorode.theory.limit import features


def named(run, start):
    (found,) = [verdict for verdict in mo.verify(run) if verdict.statement.startswith(start)]
    return found


def expected_at(verdict):
    return float(verdict.detail.split("≈ ")[1].split(" ")[0])


@pytest.mark.parametrize(
    ("width", "samples", "lam", "early"),
    [(30, 30, 1.0, 16.0), pytest.param(100, 100, 0.1, 4.0, marks=pytest.mark.slow)],
)
def test_lemma_e_2_is_yet_to_come_and_comes(width, samples, lam, early):
    """Three layers, hyperbolic: violated early, and holding at twice the loss that was said.

    What is said is for the direction of that time, which the flow goes on to sharpen.
    """
    flow = mo.MirrorFlow(
        mo.MLP((2, width, width, 1)),
        mo.teacher_student(samples, seed=42),
        mo.HyperbolicEntropy(lam),
    )
    start = flow.network.initial(0)
    before = mo.solve(flow, start, until=mo.LogInverseLoss(early), rtol=1e-5)
    verdict = named(before, "Lemma E.2")
    assert verdict.outcome is mo.Outcome.NOT_YET
    at = expected_at(verdict)
    assert early < at < 10 * early
    later = mo.solve(flow, start, until=mo.LogInverseLoss(2 * at), rtol=1e-5)
    assert named(later, "Lemma E.2").outcome is mo.Outcome.HOLDS


def test_alignment_is_yet_to_come_and_comes():
    """Lemma 4.10 under a large λ, at the log(1/loss) that the verdict gives."""
    data = mo.teacher_student(20, seed=3)
    flow = mo.MirrorFlow(mo.MLP((2, 6, 1)), data, mo.SmoothedHomogeneous(3, 30.0))
    start = flow.network.initial(1)
    early = mo.solve(flow, start, until=mo.LogInverseLoss(3.0), rtol=1e-5)
    verdict = named(early, "Lemma 4.10")
    assert verdict.outcome is mo.Outcome.NOT_YET
    at = expected_at(verdict)
    later = mo.solve(flow, start, until=mo.LogInverseLoss(2 * at), rtol=1e-5)
    assert named(later, "Lemma 4.10").outcome is mo.Outcome.HOLDS
    before = mo.solve(flow, start, until=mo.LogInverseLoss(at / 4), rtol=1e-5)
    assert named(before, "Lemma 4.10").outcome is mo.Outcome.NOT_YET


def test_the_open_question_of_corollary_4_8(small_run):
    """|g_k| ≤ c where θ vanishes, found numerically with room."""
    verdict = named(small_run("hyperbolic"), "Cor. 4.8, open")
    assert verdict.outcome is mo.Outcome.HOLDS
    assert verdict.slack > 0.05


def test_theorem_4_9(small_run):
    """From sparse to dense: the number of active neurons rises with α; all are balanced."""
    found = {name: small_run(name) for name in ("hyperbolic", "euclidean", "p3")}
    counts = {name: features(run.flow, run.theta[-1]) for name, run in found.items()}
    active = [it.active for it in counts.values()]
    assert active == sorted(active)
    for it in counts.values():
        assert it.objective == pytest.approx(1, abs=1e-2)
    # Negative control: at the start nothing is balanced.
    run = found["euclidean"]
    assert features(run.flow, run.theta[0]).unbalanced > 0.1
    with pytest.raises(mo.InputError, match="one hidden layer"):
        features(mo.MirrorFlow(mo.MLP((2, 1)), run.flow.dataset, mo.Euclidean()), run.theta[0])


@pytest.mark.parametrize("name", ["euclidean", "p3"])
def test_the_multipliers_of_the_paper(small_run, name):
    """Lemma G.6: (ε, δ) within their bounds, and the best certificate at least as good."""
    run = small_run(name)
    theta = run.theta[-1]
    found = mo.kkt(run.flow, theta)
    assert found.paper is not None
    assert float(found.paper.epsilon) <= float(found.paper.epsilon_bound)
    assert float(found.paper.delta) <= float(found.paper.delta_bound)
    assert found.stationarity <= float(found.paper.distance / found.paper.size) + 1e-6
    assert "β" in repr(found.paper)
    off = approximate(run.flow, theta[None] * (1 + 0.05 * torch.sin(torch.arange(len(theta)))))
    assert float(off.epsilon / off.size) > 3 * float(found.paper.epsilon / found.paper.size)
    hyperbolic = small_run("hyperbolic")
    assert mo.kkt(hyperbolic.flow, hyperbolic.theta[-1]).paper is None
