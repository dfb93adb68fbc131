"""Every scenario about students runs with `--quick`, and those that share students share them."""

import csv
import json
import math

import pytest

import mirrorode as mo
from mirrorode.experiment import paper, scenario
from mirrorode.experiment.long import aligned_by_theory, aligned_since
from mirrorode.experiment.students import Students, theta_at
from mirrorode.theory.alignment import misaligned
from tests.experiment.commands import call, stored

NAMES = [it.name for it in scenario.entries() if issubclass(scenario.load(it.name), Students)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One folder for all, so that each student is integrated once."""
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("name", NAMES)
def test_quick(home, monkeypatch, name):
    """It integrates what is not there yet, and writes a figure and tables that say something."""
    monkeypatch.chdir(home)
    assert call("run", name, "--quick") in (0, 1)
    for suffix in ("pdf", "png", "csv"):
        assert (home / f"figures/{name}.{suffix}").stat().st_size > 0
    with open(home / f"figures/{name}_table.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(any(cell for cell in row.values()) for row in rows)


def test_no_quick_run_fails(home):
    """All end where they were to, and no statement fails along them."""
    records = [json.loads(path.read_text()) for path in home.glob("runs/students-*/*/run.json")]
    assert records
    assert {record["status"] for record in records} == {"REACHED"}
    failed = [
        (record["run"], verdict["statement"])
        for record in records
        for verdict in record["verdicts"]
        if verdict["outcome"] == "fails"
    ]
    assert failed == []


def test_figures_are_redrawn_without_integration(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr("mirrorode.experiment.integration.solve", None)
    (home / "figures/table4.png").unlink()
    assert call("figures", "table4", "fig8") == 0
    assert (home / "figures/table4.png").is_file()


def test_shared_students_are_integrated_once(home, monkeypatch):
    """Figure 5 draws what Table 3 has integrated; a setting of its own is a run of its own."""
    monkeypatch.chdir(home)
    monkeypatch.setattr("mirrorode.experiment.integration.solve", None)
    assert call("run", "table3", "--quick") == 0
    assert call("run", "fig5", "--quick") == 0
    with pytest.raises(TypeError):
        call("run", "fig5", "--quick", "--data-seed", "7")


@pytest.mark.parametrize("name", ["table2", "table6"])
def test_each_potential_wins_its_own_column(home, name):
    for suffix in ("", "_2"):
        with open(home / f"figures/{name}_table{suffix}.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row, column in zip(rows, ("L_1", "L_2", "L_3"), strict=True):
            assert row[column].endswith("★ 1/1")


def test_alignment_is_timed_by_dense_output(home):
    """At the log t that is told 1 − φ/Q̂^{1/α} is ε; earlier more, and it never comes back."""
    run = mo.Trajectory.load(stored(home, "p3-10-seed0") / "trajectory.npz")
    since = aligned_since(run, 0.03)
    gap = [float(misaligned(run.flow, run.at(log_time=time))) for time in (since - 1, since)]
    assert gap[1] == pytest.approx(0.03, rel=1e-6)
    assert gap[0] > 0.03
    assert aligned_since(run, 1e-9) == math.inf
    assert aligned_since(run, 1.0) == -math.inf
    # Three times nearer takes nine times as long: the exponent L/(p − 2) is two.
    assert aligned_by_theory(run, 0.01) == pytest.approx(9 * aligned_by_theory(run, 0.03))


def test_deep_students_are_stored_without_dense_output(home):
    """Only the points that figures and tables are about, with those of the paper among them."""
    path = stored(home, "deep-p3-seed0") / "trajectory.npz"
    run = mo.Trajectory.load(path)
    assert run.steps == ()
    assert len(run.log_time) < 40
    theta = theta_at(run, mo.LogInverseLoss(paper.LOSS))
    assert float(run.flow.log_inverse_loss(theta)) == pytest.approx(paper.LOSS, rel=1e-9)
    assert theta_at(run, mo.LogInverseLoss(20.0)) is None
