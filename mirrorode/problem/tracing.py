"""Finds the kinks of a module by watching one evaluation of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mirrorode.problem.gates import Call, Layer, Plan, first
from mirrorode.problem.rewrites import (
    COMPARES,
    COMPARISONS,
    POLYNOMIAL,
    POOLS,
    REFUSED,
    Slopes,
    name_of,
    refuse,
    rewrite_of,
)

_LOOKS = {"shape", "size", "dim", "ndim", "dtype", "device", "numel", "requires_grad"}
_KEEP_SIGN = {"flatten", "unflatten", "reshape", "view", "getitem", "squeeze", "unsqueeze"}
_KEEP_SIGN |= {f"{kind}avg_pool{axes}d" for kind in ("", "adaptive_") for axes in (1, 2, 3)}


def trace(
    module: nn.Module, parameters: dict[str, Tensor], constants: dict[str, Tensor], x: Tensor
) -> Plan:
    """The kinks met by ``module`` at one input ``x`` (1, d).

    Raises:
        InputError: if it calls something that cannot be followed, by its name.
    """
    with torch.enable_grad():
        moving = {
            name: value.detach().clone().requires_grad_() for name, value in parameters.items()
        }
        # Twice: whether a gate may change places with a maximum above it is known at the end only.
        swaps: dict[int, tuple[int, Slopes]] = {}
        for _ in range(2):
            tracer = _Tracer({id(value): name for name, value in moving.items()}, swaps)
            with _places(module, tracer.place), tracer:
                torch.func.functional_call(module, {**moving, **constants}, (x,))
            swaps = swaps or tracer.swaps()
    return tracer.plan()


class _Tracer(TorchFunctionMode):
    """Watches an evaluation at parameters that require a gradient; all values are true ones.

    Args:
        names: of the parameters, by id.
        swaps: from calls of maxima to the call below whose gate is to follow them instead, and
            its slopes.
    """

    def __init__(self, names: dict[int, str], swaps: dict[int, tuple[int, Slopes]]) -> None:
        super().__init__()
        self.names, self.swapped = names, swaps
        self.place: list[str] = []
        self.calls: list[Call] = []
        self.layers: list[Layer] = []
        self.others: dict[str, None] = {}
        # Tensors by id; all that were seen are kept alive, so that ids are not used again.
        self._alive: list[Any] = []
        self._uses: dict[int, list[tuple[str, int]]] = {}  # names and calls that took it
        self._gated: dict[int, tuple[int, Slopes]] = {}  # the call whose one gate gave it
        self._positive: set[int] = set()
        self._linear: dict[int, tuple[int, list[int]]] = {}  # call of linear that gave it, weights
        self._linears = 0
        self._fed: dict[int, int] = {}  # kink layer → pre-activation

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, name_of(func)
        tensors = list(_tensors((args, kwargs)))
        moving = any(tensor.requires_grad for tensor in tensors)
        for tensor in tensors if name not in _LOOKS else ():
            self._uses.setdefault(id(tensor), []).append((name, len(self.calls)))
        rewrite = rewrite_of(func)
        if rewrite is not None and moving:
            value = self._kink(rewrite, name, args, kwargs)
        else:
            if rewrite is not None:
                self.calls.append(Call("constant"))
            elif moving:
                self._judge(name, args, kwargs)
            elif name in REFUSED and not torch.is_grad_enabled():
                self.others[name] = None
            value = func(*args, **kwargs)
            self._carry(name, tensors, value)
        self._alive += [*tensors, value]
        if func is nn.functional.linear:
            self._linear[id(value)] = (self._linears, _own_weights(*args, **kwargs))
            self._linears += 1
        return value

    def unit(self, u: Tensor, slopes: Slopes) -> Tensor:
        """Count one kink layer, unless u cannot be negative; its true value."""
        # Such a kink is touched, never crossed, at the moment when all gates below switch off.
        if id(u) in self._positive and slopes[1] == 1:
            return u
        if id(u) in self._linear:
            self._fed[len(self.layers)] = id(u)
        self.layers.append(Layer(u.numel(), slopes))
        value = torch.where(u > 0, slopes[1] * u, slopes[0] * u)
        self._gated[id(value)] = (len(self.calls), slopes)
        if slopes[0] <= 0 <= slopes[1]:
            self._positive.add(id(value))
        self._alive += [u, value]
        return value

    def choose(self, a: Tensor, b: Tensor) -> Tensor:
        """Count one kink layer; the maximum."""
        self.layers.append(Layer((a - b).numel(), (0.0, 1.0)))
        return torch.where(a - b > 0, a, b)

    def swaps(self) -> dict[int, tuple[int, Slopes]]:
        """Maxima of nothing but the output of one rising gate that nothing else uses.

        Where σ(a) and σ(b) are both off, the kink of max(σ(a), σ(b)) is touched everywhere;
        that of σ(max(a, b)), the same function, is not.
        """
        found = {}
        for output, (call, slopes) in self._gated.items():
            uses = self._uses.get(output, [])
            if len(uses) == 1 and uses[0][0] in POOLS and slopes[1] > 0 <= slopes[0]:
                found[uses[0][1]] = (call, slopes)
        return found

    def plan(self) -> Plan:
        """What was seen."""
        layers, feeds = list(self.layers), {}
        for layer, u in self._fed.items():
            number, weights = self._linear[u]
            once = all(len(self._uses[value]) == 1 for value in (u, *weights))
            if once and weights and all(value in self.names for value in weights):
                sources = tuple(self.names[value] for value in weights)
                layers[layer] = replace(layers[layer], sources=sources)
                feeds[number] = layer
        return Plan(tuple(self.calls), tuple(layers), feeds, tuple(self.others))

    def _kink(self, rewrite: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        number, input = len(self.calls), first(args, kwargs)
        if any(number == below for below, _ in self.swapped.values()):
            self.calls.append(Call("skip"))
            return input
        _, then = self.swapped.get(number, (None, None))
        value = rewrite(self, *args, **kwargs)
        value = value if then is None else self.unit(value, then)
        self.calls.append(Call("skip" if value is input else "gate", then))
        if name in POOLS and id(input) in self._positive:
            self._positive.add(id(value))
        return value

    def _carry(self, name: str, tensors: list[Tensor], value: Any) -> None:
        """What is known of the first argument holds for views of it, and not after a change."""
        source = id(tensors[0]) if tensors else 0
        if tensors and (value is tensors[0] or name == "setitem"):
            self._positive.discard(source)
            self._gated.pop(source, None)
            self._linear.pop(source, None)
        elif name in _KEEP_SIGN and source in self._positive:
            self._positive.add(id(value))

    def _judge(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        place = f" in its submodule {self.place[-1]}" if self.place else ""
        if "dropout" in name:
            if kwargs.get("training", args[2] if len(args) > 2 else True):
                refuse(f"calls {name}{place}, which draws at random: call `module.eval()` first")
        elif name in REFUSED:
            refuse(f"calls {name}{place}" + COMPARES * (name in COMPARISONS))
        elif name not in POLYNOMIAL:
            self.others[name] = None


def _own_weights(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[int]:
    """The ids of weight and bias of a ``linear`` on one vector, which each unit has its row of."""
    own = [weight] if bias is None else [weight, bias]
    return [id(value) for value in own] if tuple(input.shape[:-1]) == (1,) else []


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple | dict):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(branch)


@contextmanager
def _places(module: nn.Module, place: list[str]) -> Iterator[None]:
    """Keep the name of the submodule that is being evaluated on top of ``place``."""

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: place.append(name)

    hooks = []
    for name, part in module.named_modules():
        if name:
            described = f"`{name}` ({type(part).__name__})"
            hooks.append(part.register_forward_pre_hook(enter(described)))
            hooks.append(part.register_forward_hook(lambda *_: place.pop() and None))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
