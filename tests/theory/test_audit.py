"""The audit finds what a potential has and has not, and says where."""

import pytest
import torch

import mirrorode as mo
from tests.problem.own import From, LogCosh, OwnCosh, PerWeight, Quartic

NAMES = ("(1)", "(2)", "(3)", "(4)", "4.1", "4.4", "G.1", "H.1")
H, F, N = mo.Outcome.HOLDS, mo.Outcome.FAILS, mo.Outcome.NOT_APPLICABLE


def shifted(theta):
    return (
        theta**2 / 2
        + torch.nn.functional.softplus(2 * theta)
        - theta
        - torch.log(torch.tensor(2.0, dtype=torch.float64))
    )


@pytest.mark.parametrize(
    ("potential", "outcomes"),
    [
        (mo.Euclidean(), (H, H, H, H, H, H, H, H)),
        (mo.HyperbolicEntropy(0.1), (H, H, H, H, H, H, N, H)),
        (mo.SmoothedHomogeneous(3, 1.0), (H, H, H, H, H, H, H, H)),
        (mo.SmoothedHomogeneous(2.5, 0.1), (H, H, H, F, H, H, H, H)),
        (mo.Power(1.5), (H, F, H, F, H, H, N, H)),
        (Quartic(), (H, H, H, H, H, H, H, H)),
        (From(shifted), (H, H, H, H, H, H, H, H)),
        (mo.Cosh(), (H, H, H, H, N, N, N, N)),
        (OwnCosh(), (H, H, H, H, N, N, N, N)),
        (PerWeight(torch.tensor([0.1, 1.0]).double()), (H, H, H, H, H, H, N, H)),
    ],
    ids=lambda it: type(it).__name__,
)
def test_findings(potential, outcomes):
    found = mo.audit(potential)
    assert all(name in it.statement for name, it in zip(NAMES, found, strict=True))
    assert tuple(it.outcome for it in found) == outcomes, str(found)


def test_a_jump_of_the_curvature_is_located():
    """r'' = 1 inside (−0.7, 0.7), 2 outside."""
    edge = 0.7

    def value(theta):
        outer = theta**2 - edge * theta.abs() + 0.5 * edge**2
        return torch.where(theta.abs() < edge, theta**2 / 2, outer)

    found = mo.audit(From(value))
    assert found[1].outcome is F
    assert abs(float(found[1].detail.split("θ_k = ")[1].split(";")[0])) == pytest.approx(edge, 1e-4)
    assert found[3].outcome is F
    # Negative control: the same potential without the jump.
    assert mo.audit(mo.Euclidean())[1].outcome is H


def test_a_constant_is_named():
    """r(0) > 0 lowers Q, and with it Assumption 4.4."""
    found = mo.audit(LogCosh())
    assert found[5].outcome is F
    assert "r(0) = 0.693" in found[5].detail


def test_constants_of_assumption_h_1():
    """a = √λ for the hyperbolic entropy, c = 1; for 2 < p < 3 c = 1 will not do."""
    assert "c = 1, a = 0.316 " in mo.audit(mo.HyperbolicEntropy(0.1))[7].detail
    assert "c = 1.1" in mo.audit(mo.SmoothedHomogeneous(2.5, 0.1))[7].detail


def test_a_wrong_degree_fails():
    class Wrong(Quartic):
        @property
        def degree(self):
            return 3.0

    found = mo.audit(Wrong())
    assert found[4].outcome is F
    assert "4 found" in found[4].detail


def test_prints_itself_and_refuses():
    assert "What the theorems ask" in str(mo.audit(mo.Euclidean()))
    with pytest.raises(mo.InputError, match="`potential` must be a separable potential"):
        mo.audit(3)  # type: ignore[arg-type]
    with pytest.raises(mo.InputError, match="unbounded derivative"):
        mo.audit(From(lambda it: torch.sqrt(1 + it**2)))
