"""Potentials and networks as what JSON can hold, and back: what a file keeps of a flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from mirrorode.problem import geometries, layerwise, potentials
from mirrorode.problem.errors import InputError
from mirrorode.problem.homogeneous import HomogeneousNetwork
from mirrorode.problem.mirror import Potential
from mirrorode.problem.networks import MLP, DiagonalLinear


def describe(value: Any) -> Any:
    """A potential, or one of its fields."""
    if isinstance(value, Potential):
        own: list[str] = [it.name for it in fields(value) if it.init] if is_dataclass(value) else []
        named = {name: describe(getattr(value, name)) for name in own}
        home = type(value).__module__
        # One's own may have the name of one of the package.
        prefix = "" if home.startswith("mirrorode.") else f"{home}."
        return {"kind": prefix + type(value).__name__, **named}
    if isinstance(value, Mapping):
        return {name: describe(one) for name, one in value.items()}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, float):
        return float(value)  # of numpy, too
    return value if isinstance(value, int | str | bool | None) else repr(value)


def rebuild(description: dict[str, Any]) -> Potential:
    """The potential of a description.

    Raises:
        InputError: if it is not one of the package.
    """
    named = dict(description)
    name = named.pop("kind")
    found = (getattr(home, name, None) for home in (potentials, geometries, layerwise))
    kind = next((it for it in found if it is not None), None)
    if not (isinstance(kind, type) and issubclass(kind, Potential)):
        raise InputError("`flow` must be given to load a trajectory of a potential of one's own")
    return kind(**{it: _field(value) for it, value in named.items()})


def _field(value: Any) -> Any:
    if isinstance(value, dict):
        if "kind" in value:
            return rebuild(value)
        return {name: _field(one) for name, one in value.items()}
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value


def describe_network(network: HomogeneousNetwork) -> dict[str, Any]:
    """A network; of a module only that it is one."""
    named = asdict(network) if isinstance(network, MLP | DiagonalLinear) else {}
    return {"kind": type(network).__name__, **named}


def rebuild_network(description: dict[str, Any]) -> HomogeneousNetwork:
    """The network of a description.

    Raises:
        InputError: if it is not one of the package.
    """
    kinds = {kind.__name__: kind for kind in (MLP, DiagonalLinear)}
    kind = kinds.get(description.pop("kind", "MLP"))
    if kind is None:
        raise InputError("`flow` must be given to load a trajectory of a network made of a module")
    return kind(**description)
