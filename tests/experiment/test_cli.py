"""The commands, end to end on a small table 2, and what they refuse."""

import json
import subprocess
import sys

import pytest

from tests.experiment.commands import call, stored

SMALL = ["--neurons", "10", "--samples", "24", "--seeds", "1", "--limit", "200"]


def study(folder):
    """Where the students' runs are."""
    return next(folder.glob("runs/students-*"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the small figure has been run once."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("run", "table2", *SMALL) == 0
    return folder


def test_run_writes_everything(home):
    names = {path.name for path in (home / "figures").iterdir()}
    tables = {f"table2_table{s}.{e}" for s in ("", "_2", "_3") for e in ("csv", "md")}
    assert names == {"table2.pdf", "table2.png", "table2.csv"} | tables
    runs = sorted(study(home).iterdir())
    assert [run.name[:-9] for run in runs] == ["euclidean-seed0", "hyperbolic-seed0", "p3-seed0"]
    for run in runs:
        assert {path.name for path in run.iterdir()} == {"run.json", "trajectory.npz"}
        record = json.loads((run / "run.json").read_text())
        assert record["status"] == "REACHED"
        assert record["configuration"]["neurons"] == 10
        assert record["versions"]["torch"].startswith("2.")
        assert len(record["verdicts"]) == 26
        assert not any(verdict["outcome"] == "fails" for verdict in record["verdicts"])
        assert record["statistics"]["evaluations"] > 0


def test_stored_runs_are_not_integrated_again(home, monkeypatch):
    monkeypatch.chdir(home)
    before = (stored(home, "p3-seed0") / "run.json").stat().st_mtime_ns
    monkeypatch.setattr("mirrorode.experiment.integration.solve", None)
    assert call("run", "table2", *SMALL) == 0
    assert (stored(home, "p3-seed0") / "run.json").stat().st_mtime_ns == before


def test_check_and_figures_integrate_nothing(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setattr("mirrorode.experiment.integration.solve", None)
    assert call("check", "table2") == 0
    assert "Lemma 3.1" in capsys.readouterr().out
    assert call("check", str(stored(home, "p3-seed0"))) == 0
    capsys.readouterr()
    assert call("check", "table2", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert set(rows) == {"euclidean-seed0", "hyperbolic-seed0", "p3-seed0"}
    assert {row["outcome"] for row in rows["p3-seed0"]} <= {"holds", "not yet", "not applicable"}
    (home / "figures/table2.png").unlink()
    assert call("figures") == 0
    assert (home / "figures/table2.png").is_file()


def test_check_fails_on_a_tampered_run(home, monkeypatch, tmp_path):
    """Negative control: a stored trajectory that is not a mirror flow, exit code 1."""
    from dataclasses import replace

    import mirrorode as mo

    run = mo.Trajectory.load(stored(home, "p3-seed0") / "trajectory.npz")
    replace(run, theta=run.theta * 1.01).save(tmp_path / "trajectory.npz")
    assert call("check", str(tmp_path)) == 1
    assert call("check", str(tmp_path), "--json") == 1


def test_interrupt_keeps_finished_runs(tmp_path, monkeypatch, capsys):
    from mirrorode.experiment import integration

    monkeypatch.chdir(tmp_path)
    real, calls = integration.solve, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(integration, "solve", interrupted)
    assert call("run", "table2", *SMALL) == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(list(tmp_path.glob("runs/*/*/run.json"))) == 1


def test_list(capsys):
    assert call("list", "--json") == 0
    titles = {row["name"]: row["title"] for row in json.loads(capsys.readouterr().out)}
    assert list(titles) == sorted(titles)
    assert "Figure 1" in titles["fig1"]
    assert "Table 2" in titles["table2"]
    assert call("list") == 0


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["list"]])
def test_quick_answers_do_not_import_torch(arguments):
    code = (
        "import sys; from mirrorode.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_scenario(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("run", "fig99") == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith("mirrorode: `NAME` must be one of fig1, fig10")
    assert sentence.endswith(", but is 'fig99'\n")
    assert list(tmp_path.iterdir()) == []


def test_bad_field(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("run", "table2", "--samples", "1") == 2
    assert "`samples` must be an integer from 2 to 1000000000, but is 1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    assert call("run", "table2", "--out", "file") == 2
    assert (
        "`out` must be a folder that can be written, but is 'file/table2' (Not a directory)"
        in capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_stored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("check", "table2") == 2
    assert "must have stored runs" in capsys.readouterr().err
    assert call("figures") == 2


def test_more_seeds_keep_the_stored_ones(home, monkeypatch, tmp_path):
    import shutil

    shutil.copytree(home / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    before = (stored(tmp_path, "p3-seed0") / "run.json").stat().st_mtime_ns
    arguments = [*SMALL]
    arguments[arguments.index("--seeds") + 1] = "2"
    assert call("run", "table2", *arguments) == 0
    assert (stored(tmp_path, "p3-seed0") / "run.json").stat().st_mtime_ns == before
    assert (stored(tmp_path, "p3-seed1") / "run.json").is_file()
    assert call("check", "table2") == 0


@pytest.mark.parametrize("damaged", ["run.json", "trajectory.npz"])
def test_a_damaged_run_is_refused_then_repaired(home, monkeypatch, tmp_path, capsys, damaged):
    import shutil

    shutil.copytree(home / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (stored(tmp_path, "hyperbolic-seed0") / damaged).write_bytes(b"\xff{")
    assert call("check", "table2") == 2
    assert "hyperbolic-seed0 must be run (again)" in capsys.readouterr().err
    assert call("run", "table2", *SMALL) == 0
    assert call("check", "table2") == 0


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--seeds", "0", "`seeds` must be an integer from 1 to 1000, but is 0"),
        ("--neurons", "0", "`neurons` must be an integer from 1 to 1000000000, but is 0"),
        ("--rtol", "0", "`rtol` must be from 1e-12 to below 1, but is 0.0"),
        ("--limit", "5", "`limit` must be at least 115.13, where the paper stops, but is 5.0"),
        ("--device", "cuda", "`device` must be cpu where there is no usable CUDA device"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, capsys, option, value, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert call("run", "table2", option, value) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_goes_on(home, tmp_path, monkeypatch, capsys):
    """From its checkpoint, to the same bits; `list --runs` says what is stored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mirrorode.flow.checkpoint.FIRST", 5)
    with monkeypatch.context() as patch:
        patch.setattr("mirrorode.experiment.store.save", _interrupted)
        assert call("run", "table2", *SMALL) == 130
    (interrupted,) = study(tmp_path).iterdir()
    assert [path.name for path in interrupted.iterdir()] == ["checkpoint"]
    capsys.readouterr()
    assert call("list", "--runs", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["run"], row["state"]) == (
        f"{interrupted.parent.name}/{interrupted.name}",
        "interrupted",
    )
    assert call("run", "table2", *SMALL) == 0
    steps = json.loads((interrupted / "run.json").read_text())["statistics"]["steps"]
    assert {path.name for path in interrupted.iterdir()} == {"run.json", "trajectory.npz"}
    (interrupted / "run.json").write_text("{")
    capsys.readouterr()
    assert call("list", "--runs", "--json") == 0
    rows = {row["run"].split("/")[1]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.pop(interrupted.name)["state"] == "damaged"
    assert {row["state"] for row in rows.values()} == {"complete"}
    assert steps > 5
    assert call("list", "--runs") == 0
    assert "damaged" in capsys.readouterr().out


def _interrupted(*_):
    raise KeyboardInterrupt
