"""Run folders: named after all that decides a run, one process at a time, nothing lost."""

import ast
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mirrorode as mo
from mirrorode.experiment import keys, store
from mirrorode.experiment.integration import Integration
from mirrorode.experiment.work import Task, work
from tests.experiment.commands import until_a_run_is_stored


@pytest.fixture(scope="module")
def job():
    network = mo.MLP((2, 3, 1))
    flow = mo.MirrorFlow(network, mo.teacher_student(8, seed=3), mo.Euclidean())
    return Integration("one", flow, network.initial(0), mo.LogInverseLoss(0.0), [], 1e-3)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def arrays(folder):
    """Of the trajectory; its head has the time it took."""
    with np.load(folder / "trajectory.npz") as file:
        return {name: file[name].tobytes() for name in file.files if name != "head"}


def test_what_decides_a_run_is_in_its_name(job, tmp_path):
    flow = job.flow
    scaled = [torch.ones(9).double(), torch.ones(9).double()]
    scaled[1][4] += 1e-12
    changes = [
        {}, {"rtol": 1e-4}, {"theta0": job.theta0 + 1e-15}, {"until": mo.LogInverseLoss(0.1)},
        {"saveat": None}, {"flow": replace(flow, potential=mo.HyperbolicEntropy(0.1))},
        {"flow": replace(flow, network=mo.MLP((2, 3, 1), output_scale=0.5))},
        {"flow": replace(flow, dataset=mo.teacher_student(8, seed=4))},
        *({"flow": replace(flow, potential=mo.Scaled(mo.Euclidean(), it))} for it in scaled),
    ]  # fmt: skip
    places = {keys.place(tmp_path, "any", replace(job, **change)) for change in changes}
    assert len(places) == len(changes)
    assert keys.place(tmp_path, "any", replace(job, name="one")) in places


def test_constants_of_a_module_are_in_its_name(job, tmp_path):
    def made(value):
        first, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
        first.weight.requires_grad_(False)
        with torch.no_grad():
            first.weight.copy_(torch.tensor([[1.0, value], [0.0, 1.0]]))
        network = mo.Network(nn.Sequential(first, nn.ReLU(), last))
        flow = mo.MirrorFlow(network, job.flow.dataset, mo.Euclidean())
        return keys.place(tmp_path, "any", replace(job, flow=flow, theta0=torch.ones(2).double()))

    assert made(1.0) == made(1.0)
    assert made(1.0) != made(2.0)


def test_comments_and_docstrings_decide_nothing(tmp_path):
    path = tmp_path / "code.py"

    def digest(text):
        path.write_text(text)
        keys._digest.cache_clear()
        return keys._digest((path,))

    first = digest(
        '"""Text."""\nX = 1\n"""What X is."""\n\ndef f():\n    """Text."""\n    return X\n'
    )
    assert digest("# Other.\nX = 1\n\n\ndef f():\n    # None.\n    return X\n") == first
    assert digest("X = 2\n\n\ndef f():\n    return X\n") != first
    assert digest("X = 1\n\n\ndef f():\n    return 'text'\n") != first
    assert len(keys.code()) == 16
    assert ast.parse(Path(keys.__file__).read_text())


def test_a_run_of_other_code_is_read_where_there_is_no_other(job, tmp_path, monkeypatch):
    task = Task("any", {}, job)
    monkeypatch.setattr(keys, "code", lambda: "older")
    old = work(task, tmp_path, lambda *_: None)
    monkeypatch.undo()
    assert store.find(tmp_path, "any", job) == old
    assert store.of_other_code(tmp_path, "any", [job]) == ["one"]
    new = work(task, tmp_path, lambda *_: None)
    assert new != old
    assert store.find(tmp_path, "any", job) == new
    assert store.of_other_code(tmp_path, "any", [job]) == []
    assert store.is_done(old, job)


@pytest.mark.parametrize("name", ["run.json", "trajectory.npz"])
def test_a_damaged_run_is_set_aside(job, tmp_path, name):
    folder = work(Task("any", {}, job), tmp_path, lambda *_: None)
    whole = arrays(folder)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    damaged, told = files(folder), []
    assert work(Task("any", {}, job), tmp_path, lambda _, state: told.append(state)) == folder
    assert any("a damaged run is kept as" in state for state in told)
    assert arrays(folder) == whole
    assert files(folder.with_name(folder.name + ".damaged1")) == damaged


def test_what_comes_from_elsewhere_replaces_nothing(job, tmp_path):
    """A damaged run here is set aside; a whole one stays; a checkpoint has served."""
    there = work(Task("any", {}, job), tmp_path / "there", lambda *_: None)
    sent = {name: (there / name).read_bytes() for name in ("trajectory.npz", "run.json")}
    here = keys.place(tmp_path / "here", "any", job)
    here.mkdir(parents=True)
    (here / "checkpoint").write_bytes(b"anything")
    store.receive(here, job, sent)
    assert files(here) == sent
    (here / "trajectory.npz").write_bytes(b"damaged")
    store.receive(here, job, sent)
    assert files(here) == sent
    assert files(here.with_name(here.name + ".damaged1"))["trajectory.npz"] == b"damaged"
    store.receive(here, job, {"run.json": b"worse"})
    assert files(here) == sent


def test_a_folder_of_a_run_that_was_killed(job, tmp_path):
    """Between its two files it is no damage, and partial files of the dead are removed."""
    folder = keys.place(tmp_path, "any", job)
    folder.mkdir(parents=True)
    (folder / "trajectory.npz").write_bytes(b"first of two")
    (folder / "checkpoint").write_bytes(b"not read here")
    (folder / "run.json.0a1b2c3d.partial").write_bytes(b"{")
    assert store.begin(folder) == ""
    assert sorted(files(folder)) == ["checkpoint", "trajectory.npz"]
    (folder / "checkpoint").unlink()
    assert store.begin(folder) == f"{folder.name}.damaged1"
    assert files(folder) == {}


def test_one_process_at_a_time(job, tmp_path):
    """The second one waits, says so, and finds it stored."""
    folder, told = keys.place(tmp_path, "any", job), []
    waiting = threading.Event()

    def second():
        def show(_, state):
            told.append(state)
            waiting.set()

        work(Task("any", {}, job), tmp_path, show)

    thread = threading.Thread(target=second)
    with store.claim(folder):
        thread.start()
        assert waiting.wait(20)
        folder.mkdir(parents=True)
        result = job.compute(folder / "checkpoint", lambda *_: None)
        store.save(folder, "any", {}, job, result)
    thread.join(20)
    assert set(told[:-1]) == {"another process computes it"}
    assert told[-1] == "stored before"


def _writable(folder, barrier, failures):
    for number in range(40):
        barrier.wait()
        try:
            store.writable(folder / str(number) / "runs" / "a", folder / str(number) / "figures")
        except Exception:
            failures.value += 1


def test_two_that_make_the_same_folders(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, failures = context.Barrier(2), context.Value("i", 0)
    both = [context.Process(target=_writable, args=(tmp_path, barrier, failures)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert failures.value == 0


def test_no_worker_outlives_its_sweep(tmp_path):
    """SIGKILL of the one that started them, while they wait for a run that another has."""
    program = Path(sys.executable).with_name("mirrorode")
    small = ["--quick", "--neurons", "4", "--samples", "10", "--limit", "200"]
    command = [str(program), "sweep", "student", "--grid", "seed=0:2", *small]
    done = subprocess.run([*command, "--workers", "1"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0
    (folder,) = tmp_path.glob("runs/students-*/hyperbolic-seed0-*")
    (folder / "run.json").unlink()
    with (
        store.claim(folder),
        subprocess.Popen(
            command, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL
        ) as process,
    ):
        time.sleep(5.0)
        process.kill()
        process.wait()
        for _ in range(100):
            if not _alive(process.pid):
                break
            time.sleep(0.1)
        assert not _alive(process.pid)


def _alive(group):
    """Whether a process of the group is there that is no zombie."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            return True
    return False


def test_sigterm_ends_as_ctrl_c(tmp_path):
    program = Path(sys.executable).with_name("mirrorode")
    command = [str(program), "sweep", "student", "--grid", "seed=0:40", "--quick"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
    ) as process:
        until_a_run_is_stored(process, tmp_path)
        os.kill(process.pid, signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.startswith("mirrorode: interrupted")
    assert (tmp_path / "runs/student/summary.csv").read_text().count("\n") == 41


def test_a_record_that_was_changed_is_none(job, tmp_path):
    folder = work(Task("any", {"a": 1.5}, job), tmp_path, lambda *_: None)
    told = store.record(folder)
    assert told["configuration"] == {"a": 1.5}
    changed = json.loads((folder / "run.json").read_text())
    changed["measured"]["log_inverse_loss"] += 1e-9
    (folder / "run.json").write_text(json.dumps(changed))
    assert store.record(folder) == {}
    assert not store.is_done(folder, job)
