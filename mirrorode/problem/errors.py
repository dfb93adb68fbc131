"""The one exception of the package and the checks that raise it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line imports this module, and must not wait for torch
    from torch import Tensor


class InputError(ValueError):
    """Bad input, said in one sentence: the argument, what it must be, what it is."""


def require(condition: bool, argument: str, must: str, actual: Any) -> None:
    """Raise :class:`InputError` "`argument` must …, but is …" unless ``condition`` holds."""
    if not condition:
        raise InputError(f"`{argument}` must {must}, but is {actual}")


def require_number(value: Any, argument: str, must: str, low: float, *, strict: bool) -> None:
    """Require a finite real number above ``low`` (strictly, or not)."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    inside = is_number and math.isfinite(value) and (value > low if strict else value >= low)
    require(inside, argument, must, value)


def require_finite(tensor: Tensor, argument: str) -> None:
    """Require every entry to be finite, and say how many are not."""
    bad = int((~tensor.isfinite()).sum())
    require(bad == 0, argument, "be finite", f"NaN or infinite in {bad} of {tensor.numel()} places")
