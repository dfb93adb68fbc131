"""Appendix G.3 end to end: the flows agree to their tolerance, the paper's formula does not."""

import csv
import math

import pytest
import torch

from mirrorode.experiment import store
from mirrorode.problem.reparameterized import difference
from tests.experiment.commands import call, stored

PROBLEMS = ("linear", "ReLU")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the quick figure has been drawn once, not far."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ("--quick", "--limit", "20", "--rtol", "1e-6")
        assert call("run", "reparameterization", *options) == 0
    return folder


def read(home, name):
    with open(home / "figures" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_table(home):
    """θ and time agree, the better the finer the tolerance; with the paper's λ they do not."""
    rows = {(row["problem"], row["entropy"]): row for row in read(home, "reparameterization_table")}
    assert len(rows) == 6
    for problem in PROBLEMS:
        fine, coarse, paper = (
            [float(rows[problem, kind][name]) for name in ("θ", "t_hyp/t_uv − 2")]
            for kind in ("rtol 1e-06", "rtol 1e-04", "paper's λ")
        )
        assert fine[0] < 5e-6
        assert abs(fine[1]) < 1e-4
        assert fine[0] < coarse[0] / 5 < paper[0] / 100
        assert paper[0] > 0.05
        assert abs(paper[1]) > 0.1


def test_time_is_doubled(home):
    """log t_hyp − log t_uv is log 2 at every loss but the first, where both are −∞."""
    rows = [row for row in read(home, "reparameterization") if row["entropy"] == "fine"]
    times = [(float(row["log_time_uv"]), float(row["log_time_entropy"])) for row in rows]
    later = [(a, b) for a, b in times if math.isfinite(a)]
    assert len(later) == len(times) - len(PROBLEMS)
    for ours, theirs in later:
        assert theirs - ours == pytest.approx(math.log(2), abs=1e-4)


def test_the_difference_is_conserved(home):
    run = store.load_run(stored(home, "relu-uv-fine"))
    delta = difference(run.theta)
    torch.testing.assert_close(delta, delta[:1].expand_as(delta), rtol=1e-5, atol=0)
    assert float(run.theta.std(0).min()) > 1e-6  # while every weight moves
    # Negative control: u and v of other weights.
    assert float(difference(run.theta.roll(1, 1)).std()) > 0.1


def test_figures_from_stored_runs(home, monkeypatch, capsys):
    """Runs of a module are drawn and checked again from what is stored."""
    monkeypatch.chdir(home)
    before = (home / "figures/reparameterization.csv").read_bytes()
    assert call("figures", "reparameterization") == 0
    assert (home / "figures/reparameterization.csv").read_bytes() == before
    capsys.readouterr()
    assert call("check", str(stored(home, "relu-uv-fine"))) == 0
    assert "Lemma 3.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--lam", "0", "`lam` must be positive, but is 0.0"),
        ("--neurons", "0", "`neurons` must be an integer from 1 to 1000000000, but is 0"),
        ("--limit", "1", "`limit` must be at least 2, but is 1.0"),
        ("--rtol", "0", "`rtol` must be from 1e-12 to below 1, but is 0.0"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, capsys, option, value, sentence):
    monkeypatch.chdir(tmp_path)
    assert call("run", "reparameterization", option, value) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
