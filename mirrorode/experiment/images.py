"""Images to classify: CIFAR-10 from a folder, or the digits that come with scikit-learn."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mirrorode.problem.arrays import DAMAGE
from mirrorode.problem.errors import InputError, require

SHARE = 0.8  # of the digits that are trained on
BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
"""The files of CIFAR-10 to train on; "test_batch" is the one to test on."""


@dataclass(frozen=True, eq=False)
class Images:
    """Square images with labels, standardized by the mean and deviation of those to train on.

    Attributes:
        name: of the data, for titles.
        x, y: to train on, (K, channels, side, side) float32 and (K,) integers.
        test_x, test_y: to test on.
    """

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(torch.cat([self.y, self.test_y]).max()) + 1

    @cached_property
    def digest(self) -> str:
        """Of every pixel and label."""
        parts = (self.x, self.y, self.test_x, self.test_y)
        return hashlib.sha256(b"".join(it.numpy().tobytes() for it in parts)).hexdigest()


def digits(seed: int = 0) -> Images:
    """1797 handwritten digits of 8 × 8 pixels, four fifths of them, drawn by ``seed``, to train on.

    Raises:
        InputError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sentence = "`data` must be a folder with CIFAR-10 where scikit-learn is not installed"
        raise InputError(f"{sentence}: pip install 'mirrorode[vision]'") from None
    found = load_digits()
    x, y = torch.from_numpy(found.images)[:, None].float(), torch.from_numpy(found.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    count = round(SHARE * len(x))
    train, test = order[:count], order[count:]
    return _standardized("digits", x[train], y[train], x[test], y[test])


def cifar10(folder: Path) -> Images:
    """CIFAR-10 from its "python version" of batches; a file's code is never executed.

    Raises:
        InputError: if a batch is missing or is something else.
    """
    parts = [_batch(folder / name) for name in BATCHES]
    x, y = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
    return _standardized("CIFAR-10", x, y, *_batch(folder / "test_batch"))


def _standardized(name: str, x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> Images:
    mean, deviation = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    x, test_x = ((it - mean) / deviation for it in (x, test_x))
    return Images(name, x.contiguous(), y, test_x.contiguous(), test_y)


def _batch(path: Path) -> tuple[Tensor, Tensor]:
    must = "be a folder with data_batch_1 to data_batch_5 and test_batch"
    require(path.is_file(), "data", must, repr(str(path.parent)))
    try:
        with path.open("rb") as file:
            found = _plain(file)
        pixels, labels = found[b"data"].bytes(3072), found[b"labels"]
        fine = len(pixels) == len(labels) and all(type(it) is int and 0 <= it < 10 for it in labels)
    except (*DAMAGE, pickle.UnpicklingError):
        fine = False
    if not fine:
        raise InputError(f"`data` must be a folder with CIFAR-10, but {path} is no batch of it")
    x = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()).float() / 255
    return x, torch.tensor(labels)


def _plain(file: BinaryIO) -> Any:
    """What a pickle of plain data and arrays holds: no function or type but the four below is met.

    Types of numpy are not among them: a pickle may change one after its array was made.
    """

    class Kind:
        def __init__(self, name: str, *_: object) -> None:
            self.name = name

        def __setstate__(self, state: object) -> None:
            pass

    class Array:
        def __setstate__(self, state: Any) -> None:
            _, self.shape, self.kind, self.by_columns, self.content = state

        def bytes(self, width: int) -> np.ndarray:
            """Rows of so many bytes, if that is what is held."""
            fine = type(self.kind) is Kind and self.kind.name in ("u1", b"u1")
            if not fine or self.by_columns or self.shape[1:] != (width,):
                raise ValueError
            return np.frombuffer(self.content, np.uint8).reshape(self.shape)

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            known = {
                ("numpy", "_reconstruct"): lambda *_: Array(),
                ("numpy", "ndarray"): Array,
                ("numpy", "dtype"): Kind,
                ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
            }
            key = (module.split(".")[0], name)
            if key not in known:
                raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
            return known[key]

    return Reader(file, encoding="bytes").load()
