"""Images to classify: the digits, CIFAR-10 in small, and files that are neither."""

import pickle
import sys

import numpy as np
import pytest
import torch

from mirrorode.experiment import images
from tests.experiment.commands import call


def test_digits():
    found = images.digits()
    assert found.x.shape == (1438, 1, 8, 8)
    assert found.test_x.shape == (359, 1, 8, 8)
    assert found.classes == 10
    assert float(found.x.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(found.x.std()) == pytest.approx(1.0, abs=1e-5)
    train = {it.numpy().tobytes() for it in found.x}
    assert sum(it.numpy().tobytes() in train for it in found.test_x) < 5  # but for equal digits


def batches(folder, count=20):
    """CIFAR-10 in small: batches as they are distributed, of random pixels."""
    chance = np.random.default_rng(0)
    for name in (*images.BATCHES, "test_batch"):
        content = {
            b"batch_label": b"a batch",
            b"labels": chance.integers(0, 10, count).tolist(),
            b"data": chance.integers(0, 256, (count, 3072)).astype(np.uint8),
            b"filenames": [b"a.png"] * count,
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def test_cifar(tmp_path):
    batches(tmp_path)
    found = images.cifar10(tmp_path)
    assert found.x.shape == (100, 3, 32, 32)
    assert found.test_x.shape == (20, 3, 32, 32)
    assert found.name == "CIFAR-10"
    with (tmp_path / "data_batch_1").open("rb") as file:
        first = pickle.load(file, encoding="bytes")
    red = torch.from_numpy(first[b"data"][0, :1024].reshape(32, 32)).float() / 255
    shift = found.x[0, 0] - red / float(red.std()) * float(found.x[0, 0].std())
    assert float(shift.std()) < 1e-5
    assert found.y[:20].tolist() == first[b"labels"]


class Dangerous:
    def __reduce__(self):
        return (print, ("executed",))


BAD = {
    "code": pickle.dumps({b"data": Dangerous(), b"labels": [1]}, protocol=2),
    "pickle": pickle.dumps([1, 2], protocol=2),
    "no labels": pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}, protocol=2),
    "shape": pickle.dumps({b"data": np.zeros((2, 30), np.uint8), b"labels": [1, 2]}, protocol=2),
    "floats": pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [1]}, protocol=2),
    "label": pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, protocol=2),
    "objects": pickle.dumps({b"data": np.array([Dangerous()]), b"labels": [1]}, protocol=2),
    "bytes": b"\x80\x02garbage", "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("content", BAD.values(), ids=list(BAD))
def test_what_is_no_batch(tmp_path, monkeypatch, capsys, content):
    batches(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert call("run", "fig4", "--data", ".") == 2
    said = capsys.readouterr()
    assert "`data` must be a folder with CIFAR-10, but data_batch_3 is no batch of it" in said.err
    assert "executed" not in said.out
    assert sorted(tmp_path.iterdir()) == before


def test_without_scikit_learn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert call("run", "fig4") == 2
    assert "`data` must be a folder with CIFAR-10 where scikit" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_cifar(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("run", "table9", "--data", "nowhere") == 2
    said = capsys.readouterr().err
    assert "`data` must be a folder with data_batch_1 to data_batch_5 and test_batch, but" in said
