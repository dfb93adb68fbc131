"""Arrays and samples read from files that anyone may have made: sizes first, and never code."""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np

from mirrorode.problem.errors import InputError, require, require_memory

DAMAGE = (
    ValueError, LookupError, TypeError, AttributeError, EOFError, OSError, ArithmeticError,
    RuntimeError, MemoryError, BadZipFile, zlib.error, struct.error,
)  # fmt: skip
"""What reading a damaged file may raise."""
KINDS = "biufU"  # of numpy: truth values, integers, floats, and text
LABELS = ("y", "label")


def read_arrays(file: str | Path | io.BytesIO) -> dict[str, np.ndarray]:
    """All arrays of a ``.npz`` file, by name, in this machine's byte order.

    Raises:
        ValueError, LookupError, OSError, BadZipFile: if it is no such file, is damaged, holds
            objects, or claims more than it has.
        InputError: if it does not fit into memory.
    """
    with ZipFile(file) as archive:
        entries = archive.infolist()
        require_memory(sum(it.file_size for it in entries), "path")
        for entry in entries:
            _require_honest(archive, entry)
    if isinstance(file, io.BytesIO):
        file.seek(0)
    with np.load(file, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    return {
        it: array.astype(array.dtype.newbyteorder("="), copy=False) for it, array in arrays.items()
    }


def _require_honest(archive: ZipFile, entry: ZipInfo) -> None:
    """Raise ValueError unless an entry is an array of numbers, as many as its header says."""
    if not entry.filename.endswith(".npy"):
        raise ValueError(f"{entry.filename} is no array")
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0
        shape, _, kind = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(
            stream
        )
        size = entry.file_size - stream.tell()
    if kind.kind not in KINDS or math.prod(shape) * kind.itemsize != size:
        raise ValueError(f"{entry.filename} is no plain array")


def read_samples(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (K, d) and labels (K,) of a ``.npz`` or ``.csv`` file, as `Dataset.load` says.

    Raises:
        InputError: if it is no such file.
    """
    try:
        usable = path.is_file() and path.suffix in (".npz", ".csv")
    except (OSError, ValueError):  # a name that no file can have
        usable = False
    require(usable, "path", "be a .npz or .csv file", repr(str(path)))
    try:
        return _csv(path) if path.suffix == ".csv" else _npz(path)
    except InputError:
        raise
    except DAMAGE as error:
        text = f": {' '.join(str(error).split())}" if path.suffix == ".csv" else ""
        raise InputError(f"`path` must be a file of samples, but {path} is not{text}") from None


def _npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    arrays = read_arrays(path)
    for name in ("x", "y"):
        held = ", ".join(arrays) or "none"
        require(name in arrays, "path", f"hold an array {name}", f"{path}, which holds {held}")
        numbers = arrays[name].dtype.kind in "biuf"
        require(numbers, "path", f"hold numbers in {name}", f"{path} with {arrays[name].dtype}")
    # They are converted, and looked through for what is not finite.
    require_memory(3 * 8 * (arrays["x"].size + arrays["y"].size), "path")
    return arrays["x"], arrays["y"]


def _csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    require_memory(8 * path.stat().st_size, "path")  # a number is at least two characters
    text = path.read_text(encoding="utf-8-sig")
    names = [it.strip().strip('"').lower() for it in text.partition("\n")[0].split(",")]
    headed = not any(map(_is_number, names))
    body = text.partition("\n")[2] if headed else text
    require(bool(body.strip()), "path", "hold samples", f"{path}, which has none")
    table = np.loadtxt(io.StringIO(body), delimiter=",", ndmin=2, comments=None)
    fine = table.shape[1] > 1 and not (headed and len(names) != table.shape[1])
    must = "have a column for each input and one for the label"
    require(fine, "path", must, f"{path} with {len(names)} names and {table.shape[1]} columns")
    places = [place for place, it in enumerate(names) if headed and it in LABELS]
    require(len(places) < 2, "path", "have one column of labels", f"{path} with {len(places)}")
    label = places[0] if places else len(names) - 1
    return np.delete(table, label, axis=1), table[:, label]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
