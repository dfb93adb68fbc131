"""Every scenario about students runs with `--quick`, and those that share students share them."""

import csv
import json

import pytest

from mirrorode.experiment import scenario
from mirrorode.experiment.students import Students
from tests.experiment.commands import call

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
    monkeypatch.setattr("mirrorode.experiment.run.solve", None)
    (home / "figures/table4.png").unlink()
    assert call("figures", "table4", "fig8") == 0
    assert (home / "figures/table4.png").is_file()


def test_shared_students_are_integrated_once(home, monkeypatch):
    """Figure 5 draws what Table 3 has integrated; a setting of its own is a run of its own."""
    monkeypatch.chdir(home)
    monkeypatch.setattr("mirrorode.experiment.run.solve", None)
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
