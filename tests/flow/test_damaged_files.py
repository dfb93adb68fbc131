"""Stored trajectories and checkpoints that are damaged: refused, set aside, never trusted."""

import io
import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mirrorode as mo
from mirrorode.flow.checkpoint import Checkpoint

JUNK = st.sampled_from([None, True, -1, 1e400, "x", [], {}, [[]], {"kind": "Euclidean"}, "../../x"])
ARRAYS = st.sampled_from(
    [np.zeros(0), np.zeros(3), np.zeros((2, 2)), np.array("x"), np.full(5, np.nan), np.arange(4)]
)


def flow():
    return mo.MirrorFlow(mo.MLP((2, 3, 1)), mo.teacher_student(8, seed=3), mo.Euclidean())


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of a stored trajectory."""
    path = tmp_path_factory.mktemp("stored") / "trajectory.npz"
    here = flow()
    mo.solve(here, here.network.initial(0), until=mo.LogInverseLoss(0.0)).save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def is_refused(path):
    """Whether a file is no trajectory, and is told so in a sentence."""
    try:
        mo.Trajectory.load(path)
    except mo.InputError as error:
        return "\n" not in str(error)
    return False


def is_same_or_refused(content, changed, folder):
    for name, written in (("whole.npz", content), ("changed.npz", changed)):
        (folder / name).write_bytes(written)
    if is_refused(folder / "changed.npz"):
        return True
    whole, found = (mo.Trajectory.load(folder / it) for it in ("whole.npz", "changed.npz"))
    tensors = ("theta", "dual", "log_time", "log_inverse_loss", "dissipated")
    return whole.message == found.message and all(
        torch.equal(getattr(whole, it), getattr(found, it)) for it in tensors
    )


@given(place=st.integers(0), byte=st.integers(1, 255))
def test_a_changed_byte(content, folder, place, byte):
    changed = bytearray(content)
    changed[place % len(content)] ^= byte
    assert is_same_or_refused(content, changed, folder)


@given(start=st.integers(0), length=st.integers(0, 400), put=st.binary(max_size=400))
def test_a_changed_piece(content, folder, start, length, put):
    start %= len(content)
    changed = content[:start] + put + content[start + length :]
    assert is_same_or_refused(content, changed, folder)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whole_files_of_something_else(content, folder, data):
    """An archive in order, but for one entry."""
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    head = json.loads(str(arrays["head"]))
    name = data.draw(st.sampled_from([*arrays, *head]))
    if name in head:
        if data.draw(st.booleans()):
            head[name] = data.draw(JUNK)
        else:
            del head[name]
        arrays["head"] = np.array(json.dumps(head))
    elif data.draw(st.booleans()):
        arrays[name] = data.draw(ARRAYS)
    else:
        del arrays[name]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path = folder / "other.npz"
    path.write_bytes(buffer.getvalue())
    if not is_refused(path):
        found = mo.Trajectory.load(path)
        assert found.theta.shape == found.dual.shape == (len(found.log_time), 9)


def test_those_are_read(content, folder):
    """Control: the file as it was."""
    (folder / "whole.npz").write_bytes(content)
    assert not is_refused(folder / "whole.npz")


@given(place=st.integers(0), byte=st.integers(1, 255), cut=st.booleans())
def test_checkpoints(tmp_path_factory, place, byte, cut):
    """A digest of all of it: any change is seen, and the file is kept under another name."""
    folder = tmp_path_factory.mktemp("checkpoint")
    here = flow()
    theta = here.network.initial(0)
    file = Checkpoint.at(folder / "checkpoint", here, theta)
    assert file.keep(3, (theta, [1, "two"]))[1] == [1, "two"]
    whole = file.path.read_bytes()
    changed = bytearray(whole)
    changed[place % len(whole)] ^= byte
    if cut:
        changed = changed[: place % len(whole)]
    file.path.write_bytes(changed)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert file.read() is None
    assert "is no complete checkpoint" in str(told[0].message)
    assert (folder / "checkpoint.damaged1").read_bytes() == changed
    file.path.write_bytes(whole)
    assert torch.equal(file.read()[0], theta)
