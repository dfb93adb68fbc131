"""Figure 1 end to end: flows stay on their balance manifold, level sets approach the ℓ₁ ball."""

import csv
import math

import pytest
import torch

import mirrorode as mo
from mirrorode.theory.balance import unit_laws
from tests.conftest import POTENTIALS
from tests.experiment.commands import call, stored

NAMES = [f"{name}-start{number}" for name in POTENTIALS for number in (0, 1)]
LAMBDAS = (0.2, 0.1, 0.03, 0.01, 0.001)
COARSE = 5e-3
"""What dense output may be off the manifold at rtol 1e-6, where a panel is crossed in 13 steps."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the quick figure has been drawn once, from coarse runs."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("run", "fig1", "--quick", "--limit", "8", "--rtol", "1e-6") == 0
    return folder


@pytest.fixture(scope="module")
def curves(home):
    """What was plotted: the points (T, 2) of each curve by (kind, name)."""
    found = {}
    with open(home / "figures/fig1.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            point = (float(row["first"]), float(row["second"]))
            found.setdefault((row["kind"], row["curve"]), []).append(point)
    return {key: torch.tensor(points, dtype=torch.float64) for key, points in found.items()}


def trajectory(home, name: str) -> mo.Trajectory:
    return mo.Trajectory.load(stored(home, name) / "trajectory.npz")


def drift(run: mo.Trajectory, theta: torch.Tensor) -> float:
    """Of the balance along ``theta`` from that at the start of the run."""
    return float(unit_laws(run.flow, torch.cat([run.theta[:1], theta])).drift())


def conjugate(potential: mo.SeparablePotential, theta: torch.Tensor) -> torch.Tensor:
    """Q(∇R(θ)), (T,)."""
    return potential.conjugate(potential.gradient(theta)).sum(-1)


def test_everything_is_written(home):
    names = {path.name for path in (home / "figures").iterdir()}
    tables = {f"fig1_table{s}.{e}" for s in ("", "_2") for e in ("csv", "md")}
    assert names == {"fig1.pdf", "fig1.png", "fig1.csv"} | tables
    assert sorted(path.name[:-9] for path in (home / "runs/fig1").glob("*-*")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_flows_stay_on_their_manifold(home, curves, name):
    """Lemma 3.1: to the tolerance at steps, less well on the curve drawn, which is dense output.

    Neither is put back on the manifold; what is stored is, to round-off.
    """
    run = trajectory(home, name)
    assert float(run.log_inverse_loss[-1]) == pytest.approx(8.0)
    assert float(run.drift.amax()) < 1e-8
    assert drift(run, run.theta) < 1e-14
    assert 1e-12 < drift(run, curves["trajectory", name]) < COARSE
    perturbed = run.theta * torch.tensor([1.01, 1.0])
    assert drift(run, perturbed) > 3e-3


@pytest.mark.parametrize("name", NAMES)
def test_manifolds_solve_the_balance_equation(home, curves, name):
    """Both branches drawn, through the start; not those of another potential."""
    run = trajectory(home, name)
    branches = [
        points
        for (kind, curve), points in curves.items()
        if kind == "manifold" and curve.startswith(f"{name} ")
    ]
    assert len(branches) == 2
    for points in branches:
        assert drift(run, points) < 1e-14
    assert torch.equal(branches[0].abs(), branches[1].abs())
    other = next(it for it in NAMES if it[-1] == name[-1] and it[:2] != name[:2])
    side = "w > 0" if name.endswith("0") else "a > 0"
    assert drift(run, curves["manifold", f"{other} {side}"]) > 10 * COARSE


@pytest.mark.parametrize("share", LAMBDAS)
def test_level_sets(curves, share):
    """Q(∇R(θ)) is constant on a level set; of twice the λ it is not."""
    points = curves["level set", f"{share:g}"]
    of_own = conjugate(mo.HyperbolicEntropy(lam=share), points)
    torch.testing.assert_close(of_own, torch.ones_like(of_own), rtol=0, atol=1e-10)
    of_other = conjugate(mo.HyperbolicEntropy(lam=2 * share), points)
    assert float(of_other.max() - of_other.min()) > 1e-3


def test_level_sets_approach_the_horizon(curves):
    """The ℓ₁ ball from inside, nowhere further than Lemma 4.10 allows, and in its order √λ/c."""
    assert torch.equal(curves["horizon", "‖θ‖₁"].abs().sum(1), torch.ones(5).double())
    gaps = [float(1 - curves["level set", f"{it:g}"].abs().sum(1).min()) for it in LAMBDAS]
    assert gaps == sorted(gaps, reverse=True)
    for gap, share in zip(gaps, LAMBDAS, strict=True):
        assert 0 < gap < 2 * math.sqrt(share)
        assert gap == pytest.approx(1 - math.sqrt(1 - 2 * math.sqrt(share)), abs=1e-12)
    # Negative control: at the lowest level the set is nowhere near the ball.
    assert gaps[-1] < 0.04 < 0.6 < gaps[0]


def test_table_tells_the_deviation(home):
    with open(home / "figures/fig1_table.csv", encoding="utf-8", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert list(rows) == NAMES
    for name, row in rows.items():
        run = trajectory(home, name)
        assert row["integrated"] == f"{float(run.drift.amax()):.1e}"
        assert float(row["corrected"]) < 1e-14 < float(row["integrated"]) < 1e-8
        assert float(row["corrected"]) < float(row["as drawn"]) < COARSE


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--starts", "0", "`starts` must be an integer from 1 to 4, but is 0"),
        ("--starts", "5", "`starts` must be an integer from 1 to 4, but is 5"),
        ("--limit", "6", "`limit` must be at least 6.25, where the panel ends, but is 6.0"),
        ("--rtol", "0", "`rtol` must be from 1e-12 to below 1, but is 0.0"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, capsys, option, value, sentence):
    monkeypatch.chdir(tmp_path)
    assert call("run", "fig1", option, value) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
