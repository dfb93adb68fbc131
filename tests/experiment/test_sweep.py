"""Sweeps in processes of this machine and on a cluster: complete, and bit for bit the same."""

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import mirrorode as mo
from mirrorode.experiment import store, sweep, workers
from mirrorode.experiment.cluster import connect, on_cluster, remotely
from mirrorode.experiment.display import Display
from mirrorode.experiment.integration import Integration
from mirrorode.experiment.keys import place, version
from mirrorode.experiment.work import Task
from tests.experiment.commands import call, stored, until_a_run_is_stored
from tests.experiment.deadly import Deadly

SMALL = ["--quick", "--neurons", "4", "--samples", "10", "--limit", "200"]
GRID = ["--grid", "lam=1e-2,1", "--grid", "seed=0:3"]


def rows(home):
    with (home / "runs/student/summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def bits(folder):
    """Every array of a run, and what is told of it but the time it took."""
    with np.load(folder / "trajectory.npz") as file:
        arrays = {name: file[name].tobytes() for name in file.files if name != "head"}
    told = store.record(folder)
    told["statistics"].pop("wall_seconds")
    return arrays, told["statistics"], told["verdicts"], told["configuration"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which a sweep of six runs was made."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("sweep", "student", *GRID, *SMALL, "--workers", "2") == 0
    return folder


def test_every_point_is_there_and_in_the_summary(home):
    found = rows(home)
    assert [(row["lam"], row["seed"]) for row in found] == [
        (lam, str(seed)) for lam in ("0.01", "1") for seed in range(3)
    ]
    for row in found:
        told = store.record(home / row["folder"])
        assert row["state"] == "complete"
        assert told["configuration"]["lam"] == float(row["lam"])
        assert told["configuration"]["seed"] == int(row["seed"])
        run = mo.Trajectory.load(home / row["folder"] / "trajectory.npz")
        assert run.flow.potential == mo.HyperbolicEntropy(float(row["lam"]))
        for k, name in ((1, "L1"), (2, "L2"), (np.inf, "Linf")):
            margin = float(mo.norm_margin(run.flow, run.theta[-1], k))
            assert float(row[name]) == pytest.approx(margin, rel=1e-9)
        assert float(row["log_inverse_loss"]) == pytest.approx(float(run.log_inverse_loss[-1]))
        assert row["status"] == run.status.name
        assert int(row["steps"]) == run.stats.steps
        assert row["fails"] == "0"


def test_what_is_stored_is_left_out(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setattr(
        "mirrorode.experiment.sweep.locally", lambda tasks, *_: (it for it in tasks)
    )
    assert call("sweep", "student", *GRID, *SMALL) == 0
    assert "6 of 6 runs, 6 stored before" in capsys.readouterr().out
    (gone,) = home.glob("runs/students-*/hyperbolic-1-seed2-*")
    gone.rename(home / "aside")
    asked = []
    monkeypatch.setattr(
        "mirrorode.experiment.sweep.locally", lambda tasks, *_: (asked.append(it) for it in tasks)
    )
    try:
        with pytest.raises(TypeError):  # of what was asked nothing is told
            call("sweep", "student", *GRID, *SMALL)
    finally:
        (home / "aside").rename(gone)
    assert [task.job.name for task in asked] == ["hyperbolic-1-seed2"]
    assert call("sweep", "student", *GRID, *SMALL) == 0


def test_a_run_and_a_sweep_give_the_same_bits(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("run", "student", *SMALL, "--lam", "0.01", "--seed", "2") == 0
    one = stored(tmp_path, "hyperbolic-0.01-seed2")
    assert bits(one) == bits(stored(home, one.name[:-9]))
    assert bits(one) != bits(stored(home, "hyperbolic-0.01-seed1"))


def deadly(path, deaths, name):
    """A task whose first workers die, and one that is like any other."""
    left = path / name
    left.write_bytes(b"x" * deaths)
    data = mo.teacher_student(samples=8, seed=1)
    network = mo.MLP((2, 3, 1))
    flow = mo.MirrorFlow(network, data, Deadly(left=str(left)))
    job = Integration(name, flow, network.initial(0), mo.LogInverseLoss(10.0), [], 1e-5)
    return Task("student", {}, job)


def test_a_task_that_kills_its_workers(tmp_path):
    """Twice: it is tried again. Always: it is given up. The others do not notice."""
    tasks = [deadly(tmp_path, deaths, f"dies{deaths}") for deaths in (100, 2, 0)]
    told = []
    out = tmp_path / "runs"
    ended = dict(workers.locally(tasks, out, 2, lambda *line: told.append(line)))
    assert ended == {0: "3 workers died of it, the last by SIGKILL", 1: "", 2: ""}
    again = [number for number, _, line in told if "died by SIGKILL: tried again" in line]
    assert sorted(again) == [0, 0, 1, 1]
    done = [store.is_done(place(out, "student", task.job), task.job) for task in tasks]
    assert done == [False, True, True]


def test_a_task_that_raises_is_told(tmp_path):
    """An error is no death: nothing is tried again."""
    task = deadly(tmp_path, 0, "raises")
    (tmp_path / "runs").write_text("not a folder")
    ended = dict(workers.locally([task], tmp_path / "runs", 1, lambda *_: None))
    assert list(ended) == [0]
    assert "Error" in ended[0]


def test_one_that_failed_is_in_the_summary(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    failing = lambda tasks, *_: ((number, "no reason") for number in range(len(tasks)))  # noqa: E731
    monkeypatch.setattr("mirrorode.experiment.sweep.locally", failing)
    grid = ["--grid", "lam=1e-2,1", "--grid", "seed=2:4"]
    assert call("sweep", "student", *grid, *SMALL) == 1
    assert "lam=1 seed=3 hyperbolic-1-seed3 failed: no reason" in capsys.readouterr().out
    states = [row["state"] for row in rows(home)]
    assert states == ["complete", "failed: no reason"] * 2
    monkeypatch.undo()
    monkeypatch.chdir(home)
    assert call("sweep", "student", *GRID, *SMALL) == 0


@pytest.fixture
def cluster():
    """A Dask cluster of two worker processes on the loopback interface."""
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1",
    ) as found:  # fmt: skip
        yield found


@pytest.mark.filterwarnings("default")
def test_a_cluster_whose_worker_is_killed_twice(cluster, tmp_path, monkeypatch):
    """24 runs, none lost, none wrong: each as `run` in this process gives it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    killed = []

    def kill():
        for _ in range(2):
            before = len(list(tmp_path.glob("runs/students-*/*/run.json")))
            while len(list(tmp_path.glob("runs/students-*/*/run.json"))) < before + 4:
                time.sleep(0.05)
            process = next(iter(cluster.workers.values())).process
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    grid = ["--grid", "lam=1e-4,1e-2,1,10", "--grid", "seed=0:6"]
    code = call("sweep", "student", *grid, *SMALL, "--cluster", cluster.scheduler_address)
    killer.join()
    assert code == 0
    assert len(set(killed)) == 2
    found = rows(tmp_path)
    assert len({row["folder"] for row in found}) == 24
    assert {row["state"] for row in found} == {"complete"}
    for row in found[::5]:
        alone = tmp_path / "alone"
        options = ["--lam", row["lam"], "--seed", row["seed"], "--out", str(alone)]
        assert call("run", "student", *SMALL, *options) == 0
        folder = tmp_path / row["folder"]
        assert bits(folder) == bits(alone / folder.parent.name / folder.name)


@pytest.mark.filterwarnings("default")
def test_a_task_that_kills_the_workers_of_a_cluster(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tasks = [deadly(tmp_path, deaths, f"dies{deaths}") for deaths in (100, 1, 0)]
    client = connect(cluster.scheduler_address)
    try:
        ended = dict(on_cluster(tasks, tmp_path / "runs", client, lambda *_: None))
    finally:
        client.close()
    assert ended == {0: "4 workers died of it", 1: "", 2: ""}


def test_a_worker_with_other_code(tmp_path):
    """Also where only a job's own modules differ; with the right version it is begun."""
    pytest.importorskip("distributed")
    task = deadly(tmp_path, 0, "any")
    right, own = version(task.job), version(task.job).split("-")[0] + "-other"
    for wrong in ("older", own):
        with pytest.raises(ValueError, match="another version of mirrorode"):
            remotely(workers.packed(task), wrong, "topic", 0)
    with pytest.raises(ValueError, match="No worker"):
        remotely(workers.packed(task), right, "topic", 0)


def test_no_cluster(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mirrorode.experiment.cluster.PATIENCE", 1)
    arguments = ["sweep", "student", *GRID, "--cluster", "tcp://127.0.0.1:1"]
    assert call(*arguments) == 2
    sentence = capsys.readouterr().err
    assert "`cluster` must be the address of a running Dask scheduler, but is 'tcp" in sentence
    assert list(tmp_path.iterdir()) == []


def test_without_dask(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert call("sweep", "student", *GRID, "--cluster", "tcp://127.0.0.1:8786") == 2
    assert "`cluster` needs Dask, which is not installed: pip" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def is_gone(group):
    """Whether no process of the group is left, after ten seconds at most."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_interrupted_and_gone_on_with(tmp_path):
    """ctrl-C leaves no process behind, and the same command ends as if nothing had been."""
    program = Path(sys.executable).with_name("mirrorode")
    command = [str(program), "sweep", "student", *GRID, *SMALL]
    with subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL,
        # A process in the background of a shell ignores ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        until_a_run_is_stored(process, tmp_path)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "mirrorode: interrupted; finished runs are kept, the same command goes on\n"
    assert is_gone(process.pid)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {row["state"] for row in rows(tmp_path)} == {"complete"}


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, unique=True),
    st.integers(-50, 50), st.integers(1, 60), st.integers(1, 7),
)  # fmt: skip
def test_grid_expressions(values, start, length, step):
    text = ",".join(map(repr, values))
    name, found = sweep.axis(f"data-seed={text}")
    assert name == "data_seed"
    assert [float(it) for it in found] == values
    _, found = sweep.axis(f"seed={start}:{start + length}:{step}")
    assert [int(it) for it in found] == list(range(start, start + length, step))


@given(st.text(max_size=30))
def test_any_expression_is_read_or_refused(text):
    try:
        name, values = sweep.axis(text)
    except mo.InputError:
        return
    assert name.isidentifier()
    assert len(values) == len(set(values)) > 0


def test_rows_of_runs_come_and_go_and_the_line_that_counts_stays():
    console = Console(width=100, quiet=True)
    with Display("student", ["a", "b"], 1, console) as display:
        display.tell(0, 0.5, "half of a")
        display.tell(1, 0.1, "b begins")
        display.end(0, "")
        display.tell(0, 0.9, "too late")
        count, under_way = display._progress.tasks
    assert (count.description, count.completed, count.total) == ("student", 2, 3)
    assert under_way.description == "b"
