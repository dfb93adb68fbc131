"""Follows how the values in a module scale when its hidden units are rescaled.

One evaluation is watched. Every value carries, element by element, a *scale*: the unit whose factor
e^s it is multiplied with, and to which power. A weight that multiplies a value makes a new unit of
the result; what is added or compared has to scale alike, which makes one unit of several. The scale
of the input, of constants and of the output is the ground, which does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mirrorode.problem.rewrites import name_of

if TYPE_CHECKING:
    from mirrorode.problem.modules import Network

GROUND = 0  # the unit that input and output are
_POWERS = 1 << 10  # a scale is one integer: the unit times this, plus the power

_VIEWS = """view reshape flatten unflatten ravel squeeze unsqueeze permute transpose swapaxes
swapdims movedim moveaxis t T mT expand broadcast_to clone contiguous select narrow getitem flip
roll unbind split chunk repeat tile index_select to double identity"""
_SAME = """relu leaky_relu abs absolute clamp clip clamp_min clamp_max threshold neg negative
positive dropout div truediv"""
_ALIKE = "add iadd radd sub isub rsub maximum minimum"
_OVER = "sum mean amax amin max min"
_LOOKS = "shape size dim ndim dtype device numel requires_grad is_leaf stride layout len"


class Untraceable(Exception):
    """The module does something through which scales are not followed."""


@dataclass(frozen=True)
class Edges:
    """Every parameter as an edge between units.

    Attributes:
        source, target: units, (n,); degree: power of the source's factor, (n,).
        names, layers: of each unit; layers count the calls that make units, from 1.
    """

    source: Tensor
    target: Tensor
    degree: Tensor
    names: dict[int, str]
    layers: dict[int, int]


def edges_of(network: Network) -> Edges:
    """Watch one evaluation of a module.

    Raises:
        Untraceable: if a value goes where its scale is not followed.
    """
    theta = network.initial(0)
    parameters = {name: value.clone() for name, value in network.unflatten(theta).items()}
    watch = _Watch(parameters)
    with watch:
        output = network.evaluate(parameters, theta.new_ones(1, network.input_dim))
    return watch.edges(output)


class _Watch(TorchFunctionMode):
    """Carries scales through an evaluation.

    Args:
        parameters: by name, in the order of θ.
    """

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        count = sum(value.numel() for value in parameters.values())
        self.source, self.target = (torch.full((count,), -1) for _ in range(2))
        self.parent = [GROUND]
        self.names: dict[int, str] = {}
        self.layers: dict[int, int] = {}
        self._calls = 0
        # By id of a value: its scales, or the places in θ that it is a view of.
        self._scales: dict[int, Tensor] = {}
        self._places: dict[int, Tensor] = {}
        self._alive: list[Any] = []
        self._names: list[str] = []  # of the parameter that each entry of θ belongs to
        for name, value in parameters.items():
            places = len(self._names) + torch.arange(value.numel()).reshape(value.shape)
            self._places[id(value)] = places
            self._names += [name] * value.numel()

    def edges(self, output: Tensor) -> Edges:
        """All that was seen; the ``output`` is not to change."""
        self._alike(self._scale(output), torch.zeros_like(output).long())
        idle = self.target < 0  # parameters that nothing used
        source = self.source.masked_fill(idle, GROUND)
        degree = torch.where(source // _POWERS == GROUND, 1, source % _POWERS)
        target = self.target.masked_fill(idle, GROUND)
        units = (self._roots(source // _POWERS), self._roots(target))
        return Edges(*units, degree.double(), self.names, self.layers)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        value = func(*args, **kwargs)
        name = name_of(func)
        self._alive += [args, kwargs, value]
        given = [*args, *kwargs.values()]
        flat = [part for one in given for part in (one if isinstance(one, list | tuple) else [one])]
        known = [part for part in flat if id(part) in self._scales or id(part) in self._places]
        if known and name not in _LOOKS.split():
            self._carry(func, name, args, kwargs, value)
        return value

    def _carry(self, func: Any, name: str, args: Any, kwargs: Any, value: Any) -> None:
        """The scales of the ``value`` of a call."""
        rule = _RULES.get(name)
        if rule is not None:
            scales = rule(self, *args, **kwargs)
        elif name in _VIEWS.split():
            self._view(func, args, kwargs, value)
            return
        elif name in _SAME.split():
            if len(args) > 1 and self._is_known(args[1]):
                raise Untraceable(f"it calls {name} with two values that depend on its weights")
            scales = self._scale(args[0])
        elif name in _OVER.split() and not (len(args) > 1 and isinstance(args[1], Tensor)):
            scales = self._over(name, func, args, kwargs)
        elif name in (_ALIKE + _OVER).split():
            scales = self._alike(self._scale(args[0]), self._scale(args[1]))
        else:
            raise Untraceable(f"it calls {name}, through which rescalings are not followed")
        result = value if isinstance(value, Tensor) else value[0]
        self._scales[id(result)] = torch.broadcast_to(scales, result.shape)

    # What is known of a value.

    def _is_known(self, value: Any) -> bool:
        return id(value) in self._scales or id(value) in self._places

    def _scale(self, value: Any) -> Tensor:
        """Scales of a value; a parameter by itself is a weight on the constant 1."""
        if id(value) not in self._scales:
            if id(value) in self._places:
                ground = torch.zeros_like(self._places[id(value)])
                self._scales[id(value)] = self._weigh(self._places[id(value)], ground)
            else:
                return torch.zeros(getattr(value, "shape", ())).long()
        return self._roots_of(self._scales[id(value)])

    def _view(self, func: Any, args: Any, kwargs: Any, value: Any) -> None:
        values = [value] if isinstance(value, Tensor) else list(value)
        for book in (self._scales, self._places):
            if id(args[0]) in book:
                seen = func(book[id(args[0])], *args[1:], **kwargs)
                seen = [seen] if isinstance(seen, Tensor) else list(seen)
                book.update({id(one): part for one, part in zip(values, seen, strict=True)})

    # Units: a forest, whose roots they are.

    def _root(self, unit: int) -> int:
        while self.parent[unit] != unit:
            self.parent[unit] = self.parent[self.parent[unit]]
            unit = self.parent[unit]
        return unit

    def _roots(self, units: Tensor) -> Tensor:
        table = torch.tensor([self._root(unit) for unit in range(len(self.parent))])
        return table[units]

    def _roots_of(self, scales: Tensor) -> Tensor:
        roots = self._roots(scales // _POWERS)
        return torch.where(roots == GROUND, 0, roots * _POWERS + scales % _POWERS)

    def _alike(self, a: Tensor, b: Tensor) -> Tensor:
        """Make two values scale alike; the scale."""
        a, b = torch.broadcast_tensors(a, b)
        for one, other in torch.stack([a, b], -1).reshape(-1, 2).unique(dim=0).tolist():
            (unit, power), (second, same) = divmod(one, _POWERS), divmod(other, _POWERS)
            first, second = sorted((self._root(unit), self._root(second)))
            self.parent[second] = first
            if power != same and first != GROUND:  # e^{ks} = e^{ms} for s = 0 alone
                self.parent[first] = GROUND
        return self._roots_of(a)

    def _new(self, count: int, places: Tensor) -> Tensor:
        """Units that the parameters at ``places`` lead to."""
        self._calls += 1
        name = self._names[int(places.reshape(-1)[0])]
        units = torch.arange(len(self.parent), len(self.parent) + count)
        self.parent += units.tolist()
        for number, unit in enumerate(units.tolist()):
            self.names[unit] = f"{name}, unit {number}"
            self.layers[unit] = self._calls
        return units

    # What calls do.

    def _connect(self, places: Tensor, source: Tensor, target: Tensor) -> None:
        """Parameters at ``places`` lead from the scales ``source`` to units ``target``."""
        source, target = (part.expand(places.shape).reshape(-1) for part in (source, target))
        places = places.reshape(-1)
        tied = self.target[places] >= 0
        self._alike(self.source[places[tied]].clamp(min=0), source[tied])
        self._alike(self.target[places[tied]] * _POWERS + 1, target[tied] * _POWERS + 1)
        self.source[places], self.target[places] = source, target

    def _weigh(self, places: Tensor, scales: Tensor) -> Tensor:
        """Parameters times values, element by element; each parameter makes a unit."""
        places, scales = torch.broadcast_tensors(places, scales)
        own, index = places.reshape(-1).unique(return_inverse=True)
        source = torch.zeros(len(own)).long()
        source[index] = scales.reshape(-1)
        self._alike(source[index], scales.reshape(-1))
        units = self._new(len(own), own)
        self._connect(own, self._roots_of(source), units)
        return (units * _POWERS + 1)[index].reshape(places.shape)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        places = self._places.get(id(weight))
        return self._mapped(self._scale(input), places, self._weight_bias(bias), weight.shape)

    def _weight_bias(self, bias: Tensor | None) -> Tensor | None:
        if bias is None:
            return None
        return self._places.get(id(bias), torch.full_like(bias, -1).long())

    def _mapped(
        self, scales: Tensor, places: Tensor | None, bias: Tensor | None, shape: torch.Size
    ) -> Tensor:
        """W z + b for scales of z (…, in), places of W (out, in) and of b (out,)."""
        rows = scales.reshape(-1, scales.shape[-1])
        entering = self._windows(rows, lambda codes: codes.amax(0))
        if places is None:  # constants: all that is added has to scale alike
            total = self._windows(entering, lambda codes: codes.amax(0))
            result = total.expand(shape[0])
        else:
            units = self._new(shape[0], places)
            self._connect(places, entering, units[:, None])
            result = units * _POWERS + 1
        return self._biased(result, bias).expand(*scales.shape[:-1], shape[0])

    def _biased(self, result: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return result
        if bool((bias < 0).any()):
            return self._alike(result, torch.zeros_like(result))
        units = result // _POWERS
        self._connect(bias, torch.zeros_like(bias), units)
        return result

    def _conv(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        scales, places = self._scale(input), self._places.get(id(weight))
        groups = kwargs.get("groups", args[3] if len(args) > 3 else 1)
        space = scales.ndim - (weight.ndim - 2)  # where the axes of space begin
        channels = self._windows(scales.movedim(space - 1, 0).flatten(1), lambda c: c.amax(1))
        bias_places = self._weight_bias(bias)
        if places is None:
            result = self._windows(channels, lambda codes: codes.amax(0)).expand(weight.shape[0])
        else:
            units = self._new(weight.shape[0], places)
            own = channels.reshape(groups, -1).repeat_interleave(len(units) // groups, 0)
            kernel = [1] * (weight.ndim - 2)
            self._connect(places, own.reshape(*own.shape, *kernel), units.reshape(-1, 1, *kernel))
            result = units * _POWERS + 1
        return self._biased(result, bias_places).reshape(-1, *[1] * (weight.ndim - 2))

    def _matmul(self, input: Tensor, other: Tensor) -> Tensor:
        """One of the two is a matrix of weights, or constant; or the second a vector."""
        if other.ndim == 1 and id(input) not in self._places:
            return self._windows(self._mul(input, other), lambda codes: codes.amax(-1))
        for weight in (other, input):
            known, places = id(weight) in self._scales, self._places.get(id(weight))
            if weight.ndim != 2 or known or (places is None and weight is input):
                continue
            if weight is other:
                places = None if places is None else places.mT
                return self._mapped(self._scale(input), places, None, weight.mT.shape)
            scales = self._scale(other)
            flat = scales if other.ndim == 1 else scales.mT
            result = self._mapped(flat, places, None, weight.shape)
            return result if other.ndim == 1 else result.mT
        raise Untraceable("it multiplies matrices of which neither is a parameter or constant")

    def _mul(self, input: Any, other: Any) -> Tensor:
        for weight, value in ((other, input), (input, other)):
            if id(weight) in self._places and id(weight) not in self._scales:
                return self._weigh(self._places[id(weight)], self._scale(value))
        a, b = torch.broadcast_tensors(self._scale(input), self._scale(other))
        alike, free = a // _POWERS == b // _POWERS, (a == 0) | (b == 0)
        if not bool((alike | free).all()):  # of two units: the ground, which is always safe
            clash = ~(alike | free)
            self._alike(a[clash], torch.zeros_like(a[clash]))
            self._alike(b[clash], torch.zeros_like(b[clash]))
            return self._mul(input, other)
        powers = a % _POWERS + b % _POWERS
        return torch.where(free, a + b, a // _POWERS * _POWERS + powers)

    def _pow(self, input: Any, exponent: Any) -> Tensor:
        if not isinstance(exponent, int) or exponent < 1:
            raise Untraceable(f"it raises to the power {exponent}")
        scales = self._scale(input)
        return scales // _POWERS * _POWERS + scales % _POWERS * exponent

    def _windows(self, scales: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
        """Make those elements scale alike that ``pool`` takes the largest of."""
        while True:
            codes = self._roots_of(scales).double()
            high, low = pool(codes).long(), -pool(-codes).long()
            if torch.equal(high, low):
                return high
            self._alike(high, low)

    def _over(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        """Reductions over dimensions."""
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        dims = tuple(range(args[0].ndim)) if dim is None else dim
        return self._windows(self._scale(args[0]), lambda codes: codes.amax(dims, keep))

    def _cat(self, tensors: Any, dim: int = 0) -> Tensor:
        return torch.cat([self._scale(one) for one in tensors], dim)

    def _stack(self, tensors: Any, dim: int = 0) -> Tensor:
        return torch.stack([self._scale(one) for one in tensors], dim)


def _pooled(largest: Callable[..., Tensor], average: bool) -> Callable[..., Tensor]:
    def pool(watch: _Watch, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        settings: dict[str, Any] = dict(kwargs)
        names: tuple[str, ...] = ("kernel_size", "stride", "padding")
        names += ("ceil_mode",) if average else ("dilation", "ceil_mode")
        if largest.__name__.startswith("adaptive"):
            names = ("output_size",)
        settings.update(zip(names, args, strict=False))
        used = {name: settings[name] for name in (*names, "dilation") if name in settings}
        return watch._windows(watch._scale(input), lambda codes: largest(codes, **used))

    return pool


_RULES: dict[str, Callable[..., Tensor]] = {
    "linear": _Watch._linear,
    "matmul": _Watch._matmul,
    "mm": _Watch._matmul,
    "mv": _Watch._matmul,
    "mul": _Watch._mul,
    "multiply": _Watch._mul,
    "imul": _Watch._mul,
    "rmul": _Watch._mul,
    "pow": _Watch._pow,
    "square": lambda watch, input: watch._pow(input, 2),
    "cat": _Watch._cat,
    "concat": _Watch._cat,
    "stack": _Watch._stack,
    **{f"conv{axes}d": _Watch._conv for axes in (1, 2, 3)},
    **{
        f"{kind}{name}_pool{axes}d": _pooled(
            getattr(functional, f"{kind}max_pool{axes}d"), name == "avg"
        )
        for kind in ("", "adaptive_")
        for name in ("avg", "max")
        for axes in (1, 2, 3)
    },
}
