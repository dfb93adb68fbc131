"""Nested records of an integration as bytes, and back: arrays and JSON, no code.

Records are dataclasses of `mirrorode.flow`, of which only the names are written; what the caller
holds anyway, such as the flow, is written as a name and comes back as the very object.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mirrorode.flow
from mirrorode.problem.arrays import read_arrays


@cache
def _records() -> dict[str, type]:
    """The dataclasses of `mirrorode.flow`, by name."""
    found = {}
    for module in pkgutil.iter_modules(mirrorode.flow.__path__, "mirrorode.flow."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and is_dataclass(value):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


def pack(value: object, known: Mapping[str, object]) -> bytes:
    """``value`` as bytes; objects in ``known`` by their names.

    Raises:
        TypeError: if there is something in it that is neither a record, nor plain data, nor known.
    """
    arrays: dict[str, np.ndarray] = {}
    names = {id(one): name for name, one in known.items()}
    tree = json.dumps(_tree(value, names, arrays))
    buffer = io.BytesIO()
    np.savez(buffer, tree=np.array(tree), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpack(data: bytes, known: Mapping[str, object], device: torch.device) -> Any:
    """What `pack` was given, its tensors contiguous and on ``device``.

    Raises:
        ValueError, LookupError, TypeError: if ``data`` is something else.
    """
    arrays = read_arrays(io.BytesIO(data))
    return _value(json.loads(str(arrays["tree"])), known, arrays, device)


def _tree(value: Any, names: Mapping[int, str], arrays: dict[str, np.ndarray]) -> Any:
    if id(value) in names:
        return {"known": names[id(value)]}
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    if isinstance(value, (Tensor, np.ndarray)):
        kind, name = "tensor" if isinstance(value, Tensor) else "array", f"a{len(arrays)}"
        arrays[name] = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return {kind: name}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_tree(one, names, arrays) for one in value]}
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if kind not in _records():
        raise TypeError(f"no record: {value!r}")
    parts = {one.name: getattr(value, one.name) for one in fields(value)}
    return {"record": kind, "of": {name: _tree(it, names, arrays) for name, it in parts.items()}}


def _value(
    tree: Any, known: Mapping[str, object], arrays: Mapping[str, np.ndarray], device: torch.device
) -> Any:
    if isinstance(tree, float) and math.isnan(tree):
        return math.nan  # the one with which a record compares equal
    if not isinstance(tree, dict):
        return tree
    if "known" in tree:
        return known[tree["known"]]
    if "tensor" in tree:
        return torch.from_numpy(np.ascontiguousarray(arrays[tree["tensor"]])).to(device)
    if "array" in tree:
        return arrays[tree["array"]]
    if "record" in tree:
        parts = {name: _value(one, known, arrays, device) for name, one in tree["of"].items()}
        return _records()[tree["record"]](**parts)
    kind = list if "list" in tree else tuple
    return kind(_value(one, known, arrays, device) for one in tree[kind.__name__])
