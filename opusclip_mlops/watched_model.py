"""A model that is looked into while it is trained: its gradients, weights and dead units.

An optimizer's step is the moment: its gradients are whole then, and not yet set to zero. One hook
that all optimizers of the process share counts the steps of those that train the model; between two
looks nothing else is done, and no device is waited for.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

from opusclip_mlops.dead_units import DeadUnits, Units, is_activation, is_captured
from opusclip_mlops.errors import RecordError, RecordTypeError
from opusclip_mlops.faults import attempted
from opusclip_mlops.histograms import Measured, Summary, measured, norm_of, summaries, whole_norm
from opusclip_mlops.redaction import one_line
from opusclip_mlops.tensors import unwrapped
from opusclip_mlops.values import MAX_KEY_CHARACTERS, check_key

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer

MOST_LAYERS = 64
"""How many layers have metrics of their own; of a model with more, the blocks they are in have."""

Log = Callable[[dict[str, dict[str, Summary]], dict[str, float]], None]
"""Takes a look: histograms by key and parameter, and metrics by key."""

_WRAPPERS = re.compile(r"\b(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(?:\.|$)")
_ILLEGAL = re.compile(r"[^\w.\- ]")
_REASON_CHARACTERS = 200
_DIGEST_CHARACTERS = 16
_LISTED = 5
_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Looking:
    """What is looked at, and how often, in steps of an optimizer; `name` begins all keys.

    Raises:
        RecordError: no whole number of steps above 0, or a name that is no legal key.
    """

    every: int = 500
    gradients: bool = True
    weights: bool = True
    activations: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        is_whole = isinstance(self.every, Integral) and not isinstance(self.every, bool)
        if not is_whole or self.every < 1:
            raise RecordError(f"every must be a whole number of steps from 1, not {self.every!r}")
        if self.name:
            check_key(self.key("gradients"))

    def key(self, key: str) -> str:
        """The key under which something of this model is logged.

        One that is too long ends with a digest of the whole.
        """
        whole = f"{self.name}/{key}" if self.name else key
        if len(whole) <= MAX_KEY_CHARACTERS:
            return whole
        digest = hashlib.sha256(whole.encode()).hexdigest()[:_DIGEST_CHARACTERS]
        return f"{whole[: MAX_KEY_CHARACTERS - _DIGEST_CHARACTERS - 1]}-{digest}"


@dataclass
class Look:
    """What was seen of a model at one step of each of its optimizers.

    Attributes:
        layers: The layer that each parameter, and each activation module, is told under.
        seen: Of "gradients" and "weights": by a parameter's name, how its elements are distributed.
        units: Of the activation modules that were listened to: their units.
    """

    layers: Mapping[str, str]
    seen: dict[str, dict[str, Summary]] = field(default_factory=dict)
    units: dict[str, Units] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Norms, counts of what is not finite, and dead shares: of all, and by layer."""
        found: dict[str, float] = {}
        for part, by_name in ((part, one) for part, one in self.seen.items() if one):
            norms = {name: norm_of(one) for name, one in by_name.items()}
            found[f"{part}/norm"] = whole_norm(norms.values())
            strange = sum(one["nans"] + one["infs"] for one in by_name.values())
            found[f"{part}/nonfinite"] = float(strange)
            for layer, members in self._by_layer(norms):
                found[f"{part}/norms/{layer}"] = whole_norm(members)
        return found | self._dead_shares()

    def _dead_shares(self) -> dict[str, float]:
        if not self.units:
            return {}
        found = {"activations/dead_share": _dead_share(self.units.values())}
        for layer, members in self._by_layer(self.units):
            found[f"activations/dead_shares/{layer}"] = _dead_share(members)
        return found

    def _by_layer(self, found: Mapping[str, Any]) -> Iterable[tuple[str, list[Any]]]:
        grouped: dict[str, list[Any]] = {}
        for name, value in found.items():
            if name in self.layers:
                grouped.setdefault(self.layers[name], []).append(value)
        return grouped.items()


class WatchedModel:
    """Looks into a model at the first step of each of its optimizers, and then at every so many.

    Nothing here keeps the model alive. What goes wrong in a look is told on stderr, once and at the
    end, and ends the watching of that layer, or of the model; training never meets it.

    Args:
        model: A module; what wraps it for several devices, or compiles it, is looked through.
        looking: What is looked at, and how often.
        log: Takes a look at the first step behind it, so that what it belongs to was logged.
        reached: Says which step was logged last: a look ends when that changes, or when the
            next look at what an optimizer trains is due.

    Raises:
        RecordTypeError: the model is no module.
    """

    def __init__(
        self, model: Module, looking: Looking, log: Log, reached: Callable[[], int]
    ) -> None:
        import torch
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        inner = inner_of(model)
        self.looking = looking if _is_eager(model) else replace(looking, activations=False)
        self._model, self._kind = weakref.ref(inner), type(inner).__name__
        self._log, self._reached = log, reached
        # The number of each optimizer's next step; below 0 for those of other models.
        self._steps: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._look: Look | None = None
        self._looked: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._begun_at = 0
        self._is_over = False
        self._left_out: set[str] = set()
        self._dead_units = DeadUnits(self._leave_out)
        self._is_compiling = torch.compiler.is_compiling
        self._handle = register_optimizer_step_pre_hook(self._on_step)
        self._listen(inner)

    @property
    def model(self) -> Module | None:
        """What is watched, without what wraps it; None when nobody has it any more."""
        return self._model()

    def stop(self) -> None:
        """Log what was seen last, take every hook away, and tell again what was left out."""
        self._handle.remove()
        self._give_up()
        if fault := attempted(self._tell):
            self._leave_out("", fault)
        if names := sorted(filter(None, self._left_out)):
            more = ", …" if len(names) > _LISTED else ""
            told = ", ".join(names[:_LISTED]) + more
            _say(f"of {self._kind}, not looked at to the end: {told}")

    def _give_up(self) -> None:
        """Look no more; the hook of optimizers stays until `stop`, for torch goes through them."""
        self._is_over = True
        self._dead_units.stop()

    def _on_step(self, optimizer: Optimizer, _: Any, __: Any) -> None:
        # Such a step can't be looked into; a compiled one would hold for ever what is called here.
        if self._is_over or self._is_compiling() or is_captured():
            return
        if fault := attempted(partial(self._take_step, optimizer)):
            self._leave_out("", fault)
            self._give_up()

    def _take_step(self, optimizer: Optimizer) -> None:
        step = self._next_step_of(optimizer)
        if step < 0:
            return
        self._steps[optimizer] = step + 1
        is_due = step % self.looking.every == 0
        is_over = is_due and optimizer in self._looked
        if self._look and (is_over or self._reached() != self._begun_at):
            self._tell()
        if is_due:
            self._look_at(optimizer, step)
        if (step + 1) % self.looking.every == 0:
            self._listen(self._model())

    def _next_step_of(self, optimizer: Optimizer) -> int:
        """How many steps an optimizer has done; below 0 where it trains another model."""
        step = self._steps.get(optimizer)
        # It may be given parameters of this model later.
        stranger = -1 - len(optimizer.param_groups)
        if step is None or (step < 0 and step != stranger):
            step = self._steps[optimizer] = 0 if self._trains(optimizer) else stranger
        return step

    def _trains(self, optimizer: Optimizer) -> bool:
        model = self._model()
        if model is None:
            self._give_up()
            return False
        own = {id(one) for one in model.parameters()}
        return not own.isdisjoint(_parameters_of(optimizer))

    def _listen(self, model: Module | None) -> None:
        if model is not None and self.looking.activations:
            modules = ((_plain(name), one) for name, one in _eager_modules(model))
            self._dead_units.listen((name, one) for name, one in modules if self._is_in(name))

    def _is_in(self, name: str) -> bool:
        return name not in self._left_out

    def _look_at(self, optimizer: Optimizer, step: int) -> None:
        model = self._model()
        if model is None:
            self._give_up()
            return
        if self._look is None:
            self._look, self._begun_at = Look(_layers_of(model)), self._reached()
        look = self._look
        self._looked.add(optimizer)
        mine = self._trained_by(optimizer, model)
        factor = _factor_of(optimizer) if self.looking.gradients else 0.0
        if factor:
            there = {name: one.grad for name, one in mine.items() if one.grad is not None}
            look.seen.setdefault("gradients", {}).update(self._seen(there, step, factor))
        if self.looking.weights:
            look.seen.setdefault("weights", {}).update(self._seen(mine, step))
        look.units = look.units or self._dead_units.heard()

    def _trained_by(self, optimizer: Optimizer, model: Module) -> dict[str, Tensor]:
        trained = _parameters_of(optimizer)
        named = ((_plain(name), one) for name, one in model.named_parameters())
        return {name: one for name, one in named if id(one) in trained and self._is_in(name)}

    def _seen(
        self, tensors: Mapping[str, Tensor], step: int, factor: float = 1.0
    ) -> dict[str, Summary]:
        found: dict[str, Summary] = {}
        names = list(tensors)
        # A few at a time: of each, a sample is held.
        for start in range(0, len(names), _AT_ONCE):
            few = {name: tensors[name] for name in names[start : start + _AT_ONCE]}
            found |= summaries(self._measured(few, step), factor=factor)
        return found

    def _measured(self, tensors: Mapping[str, Tensor], step: int) -> dict[str, Measured]:
        found: dict[str, Measured] = {}

        def measure(name: str, tensor: Tensor) -> None:
            if (one := measured(tensor, seed=step)) is not None:
                found[name] = one

        for name, tensor in tensors.items():
            if fault := attempted(partial(measure, name, tensor)):
                self._leave_out(name, fault)
        return found

    def _tell(self) -> None:
        """Log the look that is held, if there is one."""
        look, self._look = self._look, None
        self._looked.clear()
        if look is not None:
            key = self.looking.key
            seen = {key(part): found for part, found in look.seen.items() if found}
            self._log(seen, {key(name): value for name, value in look.metrics().items()})

    def _leave_out(self, name: str, fault: Exception) -> None:
        if name in self._left_out:
            return
        why = one_line(f"{type(fault).__name__}: {fault}", at_most=_REASON_CHARACTERS)
        self._left_out.add(name)
        _say(f"{name or self._kind} is looked at no more: {why}")


def inner_of(model: object) -> Module:
    """The module, without what wraps it.

    Raises:
        RecordTypeError: it is none.
    """
    from torch.nn import Module

    if not isinstance(model, Module):
        raise RecordTypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    return unwrapped(model)


def _is_eager(model: object) -> bool:
    """Whether a module runs as it is written: neither it nor what it wraps was compiled."""
    while model is not None:
        if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
            return False
        model = getattr(model, "module", None)
    return True


def _eager_modules(model: Module, name: str = "") -> Iterator[tuple[str, Module]]:
    """The modules of a model by name, without those that were compiled and what is in them.

    A hook on what was compiled would not be called, or have it compiled again.
    """
    if _is_eager(model):
        yield name, model
        for child, module in model.named_children():
            yield from _eager_modules(module, f"{name}.{child}" if name else child)


def _say(line: str) -> None:
    print(f"opusclip: watch: {one_line(line)}", file=sys.stderr, flush=True)


def _parameters_of(optimizer: Optimizer) -> set[int]:
    """Which parameters an optimizer trains, by their identity."""
    return {id(one) for group in optimizer.param_groups for one in group["params"]}


def _factor_of(optimizer: Optimizer) -> float:
    """What undoes a gradient scaler that leaves this to a fused step; 0 where nothing can."""
    scale = getattr(optimizer, "grad_scale", None)
    known = 1.0 if scale is None else float(scale)
    return 1 / known if 0 < known < math.inf else 0.0


def _plain(name: str) -> str:
    """A parameter's or module's name without those of the modules that only wrap others."""
    return _WRAPPERS.sub("", name).rstrip(".")


def _layers_of(model: Module) -> dict[str, str]:
    """The layer that each parameter and each activation module is told under."""
    owners = {_plain(name): _plain(name).split(".")[:-1] for name, _ in model.named_parameters()}
    heard = {
        _plain(name): _plain(name).split(".")
        for name, one in model.named_modules()
        if is_activation(one)
    }
    return layers(owners) | layers(heard)


def layers(paths: Mapping[str, list[str]]) -> dict[str, str]:
    """The layer of each name: its path, or as much of its begin as leaves few enough layers.

    Empty where already the first parts of the paths are too many, or there is only one layer.
    """
    for depth in range(max(map(len, paths.values()), default=0), 0, -1):
        begins = {name: ".".join(path[:depth]) for name, path in paths.items()}
        if 1 < len(set(begins.values())) <= MOST_LAYERS:
            return {name: _ILLEGAL.sub("_", begin) or "model" for name, begin in begins.items()}
    return {}


def _dead_share(units: Iterable[Units]) -> float:
    members = list(units)
    return sum(one.dead for one in members) / sum(one.count for one in members)
