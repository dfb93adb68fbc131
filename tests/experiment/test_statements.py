"""The statements of the paper end to end: a table of verdicts, and three limits approached."""

import csv

import pytest

from tests.conftest import POTENTIALS
from tests.experiment.commands import call


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("run", "statements", "--quick") == 0
    return folder


def read(home, name):
    with open(home / "figures" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_statement_is_decided(home):
    """None fails; what is not applicable is so for the reason that theory gives."""
    table = read(home, "statements_table")
    assert len(table) == 26
    columns = list(table[0])[1:]
    assert columns == ["hyperbolic, λ = 0.1", "Euclidean", "p = 3, λ = 1"]
    for row in table:
        for column in columns:
            assert row[column].split(",")[0] in ("holds", "not yet", "not applicable"), row
    without = {
        column: {row["statement"].split(":")[0] for row in table if row[column] == "not applicable"}
        for column in columns
    }
    assert without[columns[0]] == {"Lemma G.6", "Lemma G.10"}
    assert without[columns[1]] == without[columns[2]] == {"Cor. 4.8, open"}
    yet = {row["statement"] for row in table if any("not yet" in row[it] for it in columns)}
    assert all(name.startswith(("Thm 4.7", "Cor. I.1")) for name in yet)


@pytest.mark.parametrize("kind", ["exponent", "residual", "misaligned"])
def test_limits_are_approached(home, kind):
    """What is left falls by ten or more from log(1/𝓛) = 10 to 1e6; a third for the slowest."""
    rows = [row for row in read(home, "statements") if row["kind"] == kind]
    seen = {row["run"] for row in rows}
    assert seen == set(POTENTIALS)
    for name in seen:
        points = [
            (float(r["log_inverse_loss"]), float(r["value"])) for r in rows if r["run"] == name
        ]
        if kind == "misaligned" and name == "euclidean":
            assert all(value != value for _, value in points)  # zero, which a log axis cannot show
            continue
        early = max(value for loss, value in points if 3 < loss < 30)
        assert points[-1][1] < early / 3


def test_measured_values_are_told(home):
    rows = read(home, "statements_table_2")
    exponents = [row["measured"] for row in rows if row["statement"] == "Theorem 4.6"]
    assert len(exponents) == 6
    for text in exponents:
        found, theory = float(text.split()[4]), float(text.split(", ")[1].split()[0])
        assert found == pytest.approx(theory, abs=0.02)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--neurons", "0", "`neurons` must be an integer from 1 to 1000000000, but is 0"),
        ("--limit", "100", "`limit` must be at least 115.13, where the paper stops, but is 100.0"),
        ("--rtol", "0", "`rtol` must be from 1e-12 to below 1, but is 0.0"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, capsys, option, value, sentence):
    monkeypatch.chdir(tmp_path)
    assert call("run", "statements", option, value) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
