"""Table 10 end to end: expectations, measured first steps and the times of Lemma 4.10."""

import csv
import math

import pytest
import torch

from mirrorode.experiment.scenario import load
from tests.experiment.commands import call


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("run", "table10", "--quick") == 0
    return folder


@pytest.fixture(scope="module")
def table10():
    """The module of the scenario."""
    import sys

    return sys.modules[load("table10").__module__]


def rows(home, name):
    with open(home / "figures" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return {row["(η, λ)"]: row for row in csv.DictReader(file)}


def test_mirror_mup(home):
    """Every entry of the paper holds; and (σ², σ²) fails for p = 3 but not for p = 5."""
    found = rows(home, "table10_table")
    assert len(found) == 11
    for name, row in found.items():
        flat = name != "p = 3 (σ², σ²)"
        assert row["found"].startswith("yes" if flat else "no"), name
        assert abs(float(row["slope"])) < 0.02 if flat else float(row["slope"]) < -0.4
        step = float(row["step"].split(" ± ")[0])
        assert abs(step) < 0.06 if flat else step < -0.2
        # The norm of a step is a root mean square.
        assert step == pytest.approx(float(row["rms"]), abs=0.04)
        if row["paper"] == "yes":
            assert row["found"] == "yes"


def test_margin_reachable(home):
    """With n the width as in the table; with n the number of parameters, none in three layers."""
    found = rows(home, "table10_table_2")
    assert found["p = 5 (σ³, σ³)"]["found"] == "yes ≠"
    for name, row in found.items():
        if "≠" not in row["found"]:
            assert row["found"] == row["paper"], name
        alone = row["n width"] == "none"
        assert alone == (name in ("GD (1, –)", "hyperbolic (σ⁻¹, 0)"))
        if not alone:
            assert float(row["n all, L = 3"]) > 0


def test_expectations_against_samples(table10):
    """The quadrature, for a recipe of each potential, to the error of a million samples."""
    sample = torch.randn(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for recipe in table10.RECIPES:
        rate = recipe.rate(sample / 100, 1e4)
        error = 5 * float(rate.std()) / 1e3
        assert table10.expected(recipe, 1e4) == pytest.approx(float(rate.mean()), abs=error + 1e-12)


def test_closed_forms(table10):
    """Of |θ|/σ: the mean is √(2/π) and the root mean square is one."""
    recipe = table10.Recipe(1, -1)
    assert table10.expected(recipe, 1e6) == pytest.approx(math.sqrt(2 / math.pi), rel=1e-10)
    assert table10.expected(recipe, 1e6, 2) == pytest.approx(1, rel=1e-10)


def test_a_wrong_exponent_has_a_slope(table10):
    """Negative control: η = 1 instead of 1/σ for λ = 0, η = σ² instead of σ for p = 3."""
    for recipe, power in ((table10.Recipe(1, 0), -0.5), (table10.Recipe(3, 2, 1), -0.5)):
        values = [table10.expected(recipe, width) for width in table10.WIDTHS]
        assert table10.slope(table10.WIDTHS, values)[0] == pytest.approx(power, abs=0.01)
        (found,) = table10.measure((recipe,), 3, 10_000, 50, 42).values()
        steepness, error = found.slope()
        assert steepness == pytest.approx(power, abs=0.05)
        assert error < 0.02


def test_figures_without_trajectories(home, monkeypatch, capsys):
    """Drawn again as it was configured, and there is nothing to check."""
    monkeypatch.chdir(home)
    before = (home / "figures/table10.csv").read_bytes()
    assert call("figures", "table10") == 0
    assert (home / "figures/table10.csv").read_bytes() == before
    capsys.readouterr()
    assert call("check", "table10") == 0
    assert "No trajectories" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--seeds", "0", "`seeds` must be an integer from 1 to 1000, but is 0"),
        ("--largest", "100", "`largest` must be an integer from 1000 to 10000000, but is 100"),
        ("--samples", "0", "must be"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, capsys, option, value, sentence):
    monkeypatch.chdir(tmp_path)
    assert call("run", "table10", option, value) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
