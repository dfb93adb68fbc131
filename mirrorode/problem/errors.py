"""The one exception of the package and the checks that raise it."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line imports this module, and must not wait for torch
    from torch import Tensor


LARGEST = 1_000_000_000
"""The largest size of anything."""
SEEDS = 2**63 - 1
"""The largest seed of a generator of torch."""
SMALLEST_RTOL = 1e-12
"""The smallest relative tolerance: below it round-off is larger."""
_CAN_TELL = "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ())  # not so on Windows


class InputError(ValueError):
    """Bad input, said in one sentence: the argument, what it must be, what it is."""


def require(condition: bool, argument: str, must: str, actual: Any) -> None:
    """Raise :class:`InputError` "`argument` must …, but is …" unless ``condition`` holds."""
    if not condition:
        raise InputError(f"`{argument}` must {must}, but is {actual}")


def require_number(value: Any, argument: str, must: str, low: float, *, strict: bool) -> None:
    """Require a finite real number above ``low`` (strictly, or not)."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isinf(value):
        must = "be finite"
    inside = is_number and math.isfinite(value) and (value > low if strict else value >= low)
    require(inside, argument, must, value)


def require_integer(value: Any, argument: str, low: int, high: int) -> None:
    """Require an integer from ``low`` to ``high``."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    inside = is_integer and low <= value <= high
    require(inside, argument, f"be an integer from {low} to {high}", repr(value))


def require_rtol(value: Any) -> None:
    """Require a relative tolerance that round-off allows."""
    fine = isinstance(value, float) and SMALLEST_RTOL <= value < 1.0
    require(fine, "rtol", f"be from {SMALLEST_RTOL:g} to below 1", value)


def require_memory(size: int, argument: str) -> None:
    """Require that ``size`` bytes are not more than this machine's memory, before they are used."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if _CAN_TELL else math.inf
    must = f"fit into the memory of this machine, {there / 1e9:.3g} GB"
    require(size <= there, argument, must, f"in need of {size / 1e9:.3g} GB")


def require_finite(tensor: Tensor, argument: str) -> None:
    """Require every entry to be finite, and say how many are not."""
    bad = int((~tensor.isfinite()).sum())
    require(bad == 0, argument, "be finite", f"NaN or infinite in {bad} of {tensor.numel()} places")
