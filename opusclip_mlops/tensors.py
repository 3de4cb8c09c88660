"""What a checkpoint keeps of a model, an optimizer and the random generators, as two files.

Weights are safetensors. The training state is torch's own format with plain values only: nothing
that is read here can execute code.

torch and safetensors are imported by the functions that need them: a process that only seals and
ships checkpoints stays small.
"""

from __future__ import annotations

import json
import pickle
import random
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.redaction import one_line

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

STATE_PARTS = ("optimizer", "scheduler", "rng", "step", "epoch")
"""What a training state has; optimizer and scheduler may be None."""

_LISTED = 12
# Options of torch's optimizers that came with later versions of it: an older state lacks them.
_LATER_OPTIONS = frozenset({
    "capturable", "decoupled_weight_decay", "differentiable", "foreach", "fused", "maximize",
})  # fmt: skip
# Options that tell one kind of optimizer from another.
_OPTIONS = frozenset({
    "alpha", "amsgrad", "betas", "centered", "dampening", "etas", "lambd", "lr_decay", "momentum",
    "momentum_decay", "nesterov", "rho", "step_sizes",
})  # fmt: skip
# State that has the shape of its parameter in each of torch's optimizers.
_LIKE_PARAMETER = frozenset({
    "acc_delta", "ax", "exp_avg", "exp_avg_sq", "exp_inf", "grad_avg", "max_exp_avg_sq",
    "momentum_buffer", "prev", "square_avg", "sum",
})  # fmt: skip
_OF_TORCH = frozenset({
    "adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "rprop",
    "sgd",
})  # fmt: skip
_ALIASES = "aliases"
RUBBISH = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    TypeError, ValueError, pickle.UnpicklingError, struct.error,
)  # fmt: skip
"""What torch and pickle raise over bytes that are no training state."""


def write_weights(path: Path, model: torch.nn.Module) -> None:
    """Write a model's tensors; tied ones are written once.

    Raises:
        CheckpointError: one of them is no dense tensor.
    """
    copied_weights(model).write(path)


@dataclass(frozen=True, eq=False)
class CopiedWeights:
    """A model's tensors as they were, on the CPU; `aliases` names those that are tied to others."""

    tensors: dict[str, torch.Tensor]
    aliases: dict[str, str]

    def write(self, path: Path) -> None:
        """Write them as safetensors."""
        from safetensors.torch import save_file

        aliases = json.dumps(self.aliases, sort_keys=True)
        save_file(self.tensors, path, metadata={_ALIASES: aliases})


def copied_weights(model: torch.nn.Module) -> CopiedWeights:
    """Copy a model's tensors; tied ones once.

    Raises:
        CheckpointError: one of them is no dense tensor.
    """
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[object, str] = {}
    for name, value in unwrapped(model).state_dict().items():
        kept = names.setdefault(_identity(name, value), name)
        if kept == name:
            # An own copy, because safetensors refuses tensors that share memory.
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        else:
            aliases[name] = kept
    return CopiedWeights(tensors, aliases)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a model's tensors by name, on the CPU; tied ones share their memory.

    Raises:
        CheckpointError: the file holds no weights that were written here.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            aliases = json.loads((file.metadata() or {}).get(_ALIASES, "{}"))
        stored: dict[str, torch.Tensor] = load_file(path)
        return stored | {alias: stored[kept] for alias, kept in aliases.items()}
    except (SafetensorError, *RUBBISH) as error:
        raise CheckpointError(f"cannot read {path}: {_reason(error)}") from error


def fitting(path: Path, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Read the weights that fit a model; nothing is changed.

    Raises:
        CheckpointError: they cannot be read, or names or shapes differ; the message lists them.
    """
    stored = read_weights(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    check_fit(shapes, unwrapped(model).state_dict(), where=path)
    return stored


def check_fit(
    stored: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, torch.Tensor],
    *,
    where: Path | str,
) -> None:
    """Check that stored weights of these shapes are those of a model.

    Raises:
        CheckpointError: names or shapes differ; the message lists them.
    """
    if differences := _differences(stored, expected):
        raise CheckpointError(f"{where} does not fit the model: {_listed(differences)}")


def write_state(
    file: Path | BinaryIO,
    optimizer: Optimizer | Mapping[str, Any] | None,
    scheduler: LRScheduler | None,
    *,
    step: int,
    epoch: int,
) -> None:
    """Write the training state, with the random generators as they are now.

    Of the optimizer it or the state that is to be written is given.

    Raises:
        CheckpointError: a value is neither a tensor nor plain; the message says where it is.
    """
    import torch

    if optimizer is not None and not isinstance(optimizer, Mapping):
        optimizer = optimizer.state_dict()
    state = {
        "optimizer": optimizer,
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "rng": rng_state(),
        "step": step,
        "epoch": epoch,
    }
    torch.save({key: plain(value, key) for key, value in state.items()}, file)


def read_state(path: Path) -> dict[str, Any]:
    """Read a training state; tensors are on the CPU, and no code is executed.

    Raises:
        CheckpointError: the file holds no training state, or more than tensors and plain values.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except RUBBISH as error:
        raise CheckpointError(f"cannot read {path}: {_reason(error)}") from error
    if not isinstance(state, dict) or (absent := [p for p in STATE_PARTS if p not in state]):
        what = f"no {', '.join(absent)}" if isinstance(state, dict) else "no training state"
        raise CheckpointError(f"cannot read {path}: it holds {what}")
    return state


def check_state(target: Optimizer | LRScheduler, stored: Any, *, what: str) -> None:
    """Check that a stored state is one for an optimizer or a scheduler; nothing is changed.

    Of an optimizer its groups are compared, and of torch's own ones the shapes of the state.

    Raises:
        CheckpointError: there is none, or it is that of another one; the message says of `what`.
    """
    from torch.optim import Optimizer

    if stored is None:
        raise CheckpointError(f"the checkpoint was saved without {what}: it has none to give back")
    if not isinstance(target, Optimizer):
        return
    try:
        differences = [*_group_differences(stored, target), *_state_differences(stored, target)]
    except RUBBISH as error:
        raise CheckpointError(f"the {what} does not fit: {_reason(error)}") from error
    if differences:
        raise CheckpointError(f"the {what} does not fit: {_listed(differences)}")


def put_back(target: Optimizer | LRScheduler, stored: Any, *, what: str) -> None:
    """Give an optimizer or a scheduler its stored state.

    Raises:
        CheckpointError: there is none, or it is that of another one; the message says of `what`.
    """
    check_state(target, stored, what=what)
    try:
        target.load_state_dict(stored)
    except RUBBISH as error:
        raise CheckpointError(f"the {what} does not fit: {_reason(error)}") from error


def restore_rng(rng: Mapping[str, Any]) -> None:
    """Set the generators of torch, Python and NumPy to where the checkpoint left them.

    CUDA generators are set where the number of devices is the same, else left alone.

    Raises:
        CheckpointError: these are no states of generators.
    """
    import numpy as np
    import torch

    try:
        version, internal, gauss_next = rng["python"]
        name, keys, *rest = rng["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        random.setstate((version, tuple(internal), gauss_next))
        torch.set_rng_state(rng["torch"])
        if rng["cuda"] and len(rng["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(rng["cuda"])
    except RUBBISH as error:
        reason = _reason(error)
        raise CheckpointError(f"the random generators cannot be put back: {reason}") from error


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model without DistributedDataParallel, DataParallel and torch.compile around it."""
    from torch.nn import DataParallel
    from torch.nn.parallel import DistributedDataParallel

    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, DataParallel | DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def class_of(model: torch.nn.Module) -> str:
    """The name of a model's class, without what is around it and what `fully_shard` makes of it."""
    kinds = [kind.__name__ for kind in type(unwrapped(model)).__mro__]
    return kinds[2] if kinds[1:2] == ["FSDPModule"] else kinds[0]


def _identity(name: str, value: object) -> object:
    """Return a key that only tied tensors share: the same memory seen in the same way."""
    import torch

    if not isinstance(value, torch.Tensor) or value.is_meta or value.layout != torch.strided:
        raise CheckpointError(f"{name} of the model is no dense tensor: it cannot be stored")
    if value.numel() == 0:
        return name
    return value.device, value.data_ptr(), value.dtype, value.shape, value.stride()


def rng_state() -> dict[str, Any]:
    """Where the generators of torch, Python and NumPy are now, as `restore_rng` takes it."""
    import numpy as np
    import torch

    name, keys, *rest = np.random.get_state(legacy=True)
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if on_cuda else [],
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
    }


def plain(value: Any, where: str) -> Any:
    """Return `value` built of what `torch.load(weights_only=True)` takes.

    Raises:
        CheckpointError: it holds something else; the message says where.
    """
    import numpy as np
    import torch

    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(plain(item, f"{where}[]") for item in value)
    allowed = (bool, int, float, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
    if type(value) in allowed or isinstance(value, torch.Tensor):
        return value
    raise CheckpointError(f"{where} is a {type(value).__name__}: only tensors and plain values")


def _differences(
    stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, torch.Tensor]
) -> list[str]:
    missing = [f"{name} is missing" for name in expected if name not in stored]
    unknown = [f"{name} is not in the model" for name in stored if name not in expected]
    shapes = [
        f"{name} is {stored[name]}, the model's is {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in stored and stored[name] != tuple(tensor.shape)
    ]
    return missing + unknown + shapes


def _group_differences(stored: Mapping[str, Any], target: Optimizer) -> Iterator[str]:
    """What groups of parameters lack or have too much; what a scheduler adds is no difference."""
    groups = list(zip(stored["param_groups"], target.param_groups, strict=True))
    for number, (group, own) in enumerate(groups):
        lacking = target.defaults.keys() - _LATER_OPTIONS - group.keys()
        foreign = (group.keys() - own.keys()) & _OPTIONS
        yield from (f"group {number} has no {key}" for key in sorted(lacking))
        yield from (f"group {number} has {key}, the optimizer's has not" for key in sorted(foreign))
        if len(group["params"]) != (count := len(own["params"])):
            have = f"{len(group['params'])} parameters, the optimizer's {count}"
            yield f"group {number} has {have}"


def _state_differences(stored: Mapping[str, Any], target: Optimizer) -> Iterator[str]:
    """The state of a parameter that has another shape."""
    own_modules = {f"torch.optim.{name}" for name in _OF_TORCH}
    if not own_modules & {kind.__module__ for kind in type(target).__mro__}:
        return
    for group, own in zip(stored["param_groups"], target.param_groups, strict=True):
        for number, parameter in zip(group["params"], own["params"], strict=False):
            for key, value in stored["state"].get(number, {}).items():
                shape = getattr(value, "shape", parameter.shape)
                if key in _LIKE_PARAMETER and shape != parameter.shape:
                    shapes = f"{tuple(shape)}, the parameter is {tuple(parameter.shape)}"
                    yield f"{key} of parameter {number} is {shapes}"


def _listed(items: list[str]) -> str:
    more = len(items) - _LISTED
    return "; ".join(items[:_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _reason(error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0]
    return one_line(first, at_most=200) or type(error).__name__
