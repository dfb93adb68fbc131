"""An integration that is interrupted, at any moment and in any way, ends with the same bits."""

import os
import random
import resource
import signal
import subprocess
import sys

import pytest
import torch

import mirrorode as mo
from mirrorode.flow import checkpoint

UNTIL = mo.LogInverseLoss(0.0)
FIRST = 6  # steps before the first checkpoint, here
SCRIPT = """
import os, sys, threading, torch
import mirrorode as mo
torch.set_num_threads(1)
delay, path, end = float(sys.argv[1]), sys.argv[2], sys.argv[3]
flow = mo.MirrorFlow(
    mo.MLP((2, 12, 1)), mo.teacher_student(30, seed=3), mo.HyperbolicEntropy(0.1)
)
if delay > 0:
    threading.Timer(delay, os.kill, (os.getpid(), 9)).start()
mo.solve(
    flow, flow.network.initial(1), until=mo.LogInverseLoss(1e4), rtol=1e-5, checkpoint=path
).save(end)
os._exit(0)
"""


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(checkpoint, "FIRST", FIRST)


def _flow():
    return mo.MirrorFlow(
        mo.MLP((2, 12, 1)), mo.teacher_student(30, seed=3), mo.HyperbolicEntropy(0.1)
    )


def _run(delay, path, end):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(delay), str(path), str(end)]
    ).returncode


def _same(one, other):
    assert one.status is other.status
    assert torch.equal(one.theta, other.theta)
    assert torch.equal(one.dual, other.dual)
    assert torch.equal(one.log_time, other.log_time)
    assert one.events == other.events
    assert all(torch.equal(a.duals, b.duals) for a, b in zip(one.steps, other.steps, strict=True))
    for name in ("steps", "rejected", "half_passes", "events", "slides"):
        assert getattr(one.stats, name) == getattr(other.stats, name)


def _killed(tmp_path, kills, seed):
    chance, path, end = random.Random(seed), tmp_path / "checkpoint", tmp_path / "end.npz"
    done = 0
    while done < kills:
        code = _run(chance.uniform(0.05, 1.5), path, end)
        assert code in (0, -signal.SIGKILL)
        done += code != 0
        if code == 0:  # it was done before: begin anew
            path.unlink()
    assert _run(0, path, end) == 0
    assert _run(0, tmp_path / "other", tmp_path / "undisturbed.npz") == 0
    _same(*(mo.Trajectory.load(tmp_path / name) for name in ("end.npz", "undisturbed.npz")))


def test_ten_kills(tmp_path):
    _killed(tmp_path, 10, seed=0)


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    _killed(tmp_path, 100, seed=1)


class Interrupted(Exception):
    """By the progress of the caller, at a step of choice."""


def _stop_at(step):
    def progress(log_time, loss, stats):
        if stats.steps == step:
            raise Interrupted

    return progress


CASES = {
    "two layers": (mo.MLP((2, 12, 1)), mo.SmoothedHomogeneous(3, 1.0), mo.LogInverseLoss(-1.0)),
    "three layers": (mo.MLP((2, 8, 6, 1)), mo.Euclidean(), mo.LogInverseLoss(-1.0)),
    "coupled": (
        mo.MLP((2, 4, 1)),
        mo.Layerwise({name: mo.Radial(mo.SmoothedHomogeneous(4, 1.0)) for name in ("W1", "W2")}),
        mo.LogTime(2.0),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_integrator(case, tmp_path, soon):
    """Stopped after steps with and without a checkpoint between, with functions observed."""
    network, potential, until = CASES[case]
    flow = mo.MirrorFlow(network, mo.teacher_student(30, seed=3), potential)
    start, path = network.initial(1), tmp_path / "checkpoint"
    more = {
        "until": until, "rtol": 1e-3,
        "saveat": [mo.LogTime(-2.0), mo.Observable(lambda _, theta: theta.sum(), name="sum")],
    }  # fmt: skip
    whole = mo.solve(flow, start, **more, checkpoint=tmp_path / "other")
    assert whole.success
    assert whole.stats.steps > 2 * FIRST
    for step in (FIRST - 1, FIRST + 1, FIRST + 4):
        with pytest.raises(Interrupted):
            mo.solve(flow, start, **more, checkpoint=path, progress=_stop_at(step))
    seen = []
    resumed = mo.solve(
        flow, start, **more, checkpoint=path, progress=lambda *it: seen.append(it[2].steps)
    )
    assert seen[0] == FIRST + 1
    _same(resumed, whole)
    assert torch.equal(resumed.observed["sum"].values, whole.observed["sum"].values)


@pytest.fixture
def stopped(tmp_path, soon):
    """A checkpoint of `_flow` after its first steps."""
    flow, path = _flow(), tmp_path / "checkpoint"
    with pytest.raises(Interrupted):
        mo.solve(
            flow, flow.network.initial(1), until=UNTIL, rtol=1e-3, checkpoint=path,
            progress=_stop_at(FIRST + 1),
        )  # fmt: skip
    return flow, path


def _go_on(flow, path, **more):
    return mo.solve(
        flow, flow.network.initial(1), until=UNTIL, checkpoint=path, **({"rtol": 1e-3} | more)
    )


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_file_is_set_aside(damage, stopped):
    """With a warning; it is kept, and the integration begins anew."""
    flow, path = stopped
    whole = path.read_bytes()
    half = len(whole) // 2
    content = {
        "cut": whole[:half],
        "flipped": whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :],
        "empty": b"",
        "other": b"not a checkpoint\n",
    }[damage]
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"is no complete checkpoint: it is kept as .*damaged1"):
        assert _go_on(flow, path).success
    assert path.with_name("checkpoint.damaged1").read_bytes() == content


def test_another_integration_is_refused(stopped):
    """And its checkpoint stays."""
    flow, path = stopped
    before = path.read_bytes()
    for more in ({"rtol": 1e-4}, {"saveat": []}):
        with pytest.raises(mo.InputError, match="`checkpoint` must be of this flow, start and"):
            _go_on(flow, path, **more)
    with pytest.raises(mo.InputError, match="`checkpoint` must be of this flow, start and"):
        _go_on(mo.MirrorFlow(flow.network, flow.dataset, mo.Euclidean()), path)
    assert path.read_bytes() == before


def test_a_full_disk(stopped):
    """The last checkpoint is intact, the run goes on and says so, and a later one is written."""
    flow, path = stopped
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), hard))
        run = _go_on(flow, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert run.success
    assert "was not written (File too large)" in run.message
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    again = _go_on(flow, path)
    _same(again, run)
    assert path.read_bytes() != before


def test_a_batch_has_a_file_for_each_row(tmp_path, soon):
    flow = _flow()
    starts = torch.stack([flow.network.initial(seed) for seed in (0, 1)])
    more = {"until": mo.LogInverseLoss(-1.0), "rtol": 1e-3}
    whole = mo.solve(flow, starts, **more, checkpoint=tmp_path / "other")
    with pytest.raises(Interrupted):
        mo.solve(flow, starts, **more, checkpoint=tmp_path / "c", progress=_stop_at(9))
    assert {"c.0", "c.1"} <= set(os.listdir(tmp_path))
    for run, exact in zip(
        mo.solve(flow, starts, **more, checkpoint=tmp_path / "c"), whole, strict=True
    ):
        _same(run, exact)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"method": "dopri5"}, "`method` must be 'auto' with a checkpoint, but is 'dopri5'"),
        ({"checkpoint": "nowhere/at/all"}, "`checkpoint` must be a file in a folder that is there"),
    ],
)
def test_refused(more, sentence, tmp_path):
    flow = _flow()
    arguments = {"until": UNTIL, "checkpoint": tmp_path / "checkpoint"} | more
    with pytest.raises(mo.InputError, match=sentence):
        mo.solve(flow, flow.network.initial(0), **arguments)
