"""Samples from files: what was written comes back, and whatever else is refused in a sentence."""

import io
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mirrorode as mo
from mirrorode.problem import arrays

FINITE = st.floats(-1e300, 1e300)
SAMPLES = st.integers(1, 6).flatmap(
    lambda count: st.tuples(
        hnp.arrays(np.float64, st.tuples(st.just(count), st.integers(1, 4)), elements=FINITE),
        hnp.arrays(np.float64, count, elements=st.sampled_from([-1.0, 1.0])),
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("samples")


@given(samples=SAMPLES, headed=st.booleans(), label=st.sampled_from(["y", "Label", "z"]))
def test_csv_comes_back(folder, samples, headed, label):
    """To the bit; the label where the header says, else last."""
    x, y = samples
    first = headed and label != "z"
    columns = [y, *x.T] if first else [*x.T, y]
    names = [label, *(f"x{it}" for it in range(x.shape[1]))]
    lines = [",".join(map(repr, map(float, row))) for row in zip(*columns, strict=True)]
    head = [",".join(names if first else [*names[1:], "z"])] * headed
    path = folder / "samples.csv"
    path.write_text("\n".join([*head, *lines]) + "\n")
    data = mo.Dataset.load(path)
    assert torch.equal(data.x, torch.from_numpy(x))
    assert torch.equal(data.y, torch.from_numpy(y))


@given(samples=SAMPLES, pressed=st.booleans(), kind=st.sampled_from(["f8", "f4", ">f8"]))
def test_npz_comes_back(folder, samples, pressed, kind):
    x, y = samples[0].clip(-1e30, 1e30).astype(kind), samples[1].astype(np.int8)
    path = folder / "samples.npz"
    (np.savez_compressed if pressed else np.savez)(path, x=x, y=y, other=np.arange(3))
    data = mo.Dataset.load(path, dtype=torch.float32)
    assert torch.equal(data.x, torch.from_numpy(x.astype("f4")))
    assert torch.equal(data.y, torch.from_numpy(y).float())


@given(content=st.binary(max_size=200) | st.text("0123456789,.-e\n\"'#xy ", max_size=60))
def test_anything_else_is_refused(folder, content):
    """Or read, where it happens to be a table of samples."""
    content = content if isinstance(content, bytes) else content.encode()
    for name in ("any.csv", "any.npz"):
        (folder / name).write_bytes(content)
        try:
            data = mo.Dataset.load(folder / name)
        except mo.InputError as error:
            told = str(error)
        else:
            told = "`path` must" * (data.x.isfinite().all() and set(data.y.tolist()) <= {-1.0, 1.0})
        assert told.startswith("`")
        assert "must" in told
        assert "\n" not in told


@given(place=st.integers(0, 700), byte=st.integers(0, 255))
def test_a_changed_byte_never_gives_other_samples(folder, place, byte):
    buffer = io.BytesIO()
    x, y = np.arange(6.0).reshape(3, 2), np.array([1.0, -1.0, 1.0])
    np.savez(buffer, x=x, y=y)
    content = bytearray(buffer.getvalue())
    content[place % len(content)] = byte
    path = folder / "changed.npz"
    path.write_bytes(content)
    try:
        data = mo.Dataset.load(path)
    except mo.InputError:
        return
    assert torch.equal(data.x, torch.from_numpy(x))
    assert torch.equal(data.y, torch.from_numpy(y))


def test_a_bomb_is_not_unpacked(folder, monkeypatch):
    """An archive that is small as a file and large in memory: refused by its table of contents."""
    path = folder / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", b"\0" * 50_000_000)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr("os.sysconf", lambda name: 1000)  # a machine of a megabyte
    monkeypatch.setattr(arrays, "_require_honest", None)
    with pytest.raises(mo.InputError, match=r"fit into the memory of this machine, 0.001 GB, but"):
        mo.Dataset.load(path)
