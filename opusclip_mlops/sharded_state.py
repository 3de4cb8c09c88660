"""What one process holds of a model that is shared out over several, and what it reads of it.

Parameters are shared out by `torch.distributed.fsdp.fully_shard` or a tensor-parallel plan; what
each process has of them is as `torch.distributed.checkpoint` says it. The state of an optimizer is
named by its parameters, so that another number of processes, or one alone, finds it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.shards import Slice, Slices
from opusclip_mlops.tensors import check_fit, unwrapped

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer

# What wrappers around a part of a model put into the names of its parameters.
_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether parameters of a model are shared out: this process holds no whole ones."""
    from torch.nn import Module

    return isinstance(model, Module) and any(_is_shared(one) for one in model.parameters())


def check_names(model: torch.nn.Module) -> None:
    """Check that several processes can save a model together.

    Raises:
        CheckpointError: it is shared out by FullyShardedDataParallel, whose parameters have no
            names of their own.
    """
    if any(type(one).__name__ == "FullyShardedDataParallel" for one in model.modules()):
        raise CheckpointError(
            "FullyShardedDataParallel cannot be saved by its shares: use fully_shard of "
            "torch.distributed.fsdp instead"
        )


def processes_of(model: torch.nn.Module) -> int:
    """Over how many processes a model is shared out."""
    return max((one.device_mesh.size() for one in model.parameters() if _is_shared(one)), default=1)  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Share:
    """What one process writes of a model and its optimizer, copied to the CPU.

    Attributes:
        weights: Slices by the names of the tensors.
        optimizer: Slices of its state by "<parameter>/<name of the state>".
        settings: What else there is of the optimizer's state, the same in all processes; None
            without one.
        values: How many values the whole model has.
    """

    weights: dict[str, Slice]
    optimizer: dict[str, Slice]
    settings: Mapping[str, Any] | None
    values: int


def share_of(model: torch.nn.Module, optimizer: Optimizer | None, *, is_first: bool) -> Share:
    """Copy what this process is to write: its slices, and if it is the first what all have.

    Raises:
        CheckpointError: a value that is no dense tensor, or a parameter that is not the model's.
    """
    held = _weights(model)
    weights = {name: _slice(name, value, is_first) for name, value in held.items()}
    state, settings = {}, None
    if optimizer is not None:
        settings = _settings(model, optimizer)
        found = _tensors(model, optimizer)
        state = {name: _slice(name, value, is_first) for name, value in found}
    values = sum(value.numel() for value in held.values())
    return Share(_there(weights), _there(state), settings, values)


def weights_for(stored: Slices, model: torch.nn.Module) -> dict[str, Any]:
    """Read what a model holds of the stored weights; nothing is changed.

    Raises:
        CheckpointError: names or shapes differ; the message lists them.
    """
    names = {_plain_name(name): name for name in stored.shapes}
    expected = _weights(model)
    check_fit({plain: stored.shapes[name] for plain, name in names.items()}, expected,
              where=stored.where)  # fmt: skip
    return {plain: _filled(stored, names[plain], like) for plain, like in expected.items()}


def put_weights(model: torch.nn.Module, weights: dict[str, Any]) -> None:
    """Give a model what `weights_for` read."""
    from torch.distributed.checkpoint.state_dict import set_model_state_dict

    set_model_state_dict(unwrapped(model), weights)


def optimizer_for(
    stored: Slices, settings: Mapping[str, Any], model: torch.nn.Module, optimizer: Optimizer
) -> dict[str, Any]:
    """Read what an optimizer holds of the stored state, as its `load_state_dict` takes it.

    Raises:
        CheckpointError: its groups have other parameters.
    """
    groups, state, number = [], {}, 0
    names, keys = _names(model), _keys(stored)
    own_groups = [[names.get(one, "") for one in group["params"]]
                  for group in optimizer.param_groups]  # fmt: skip
    _check_groups(settings, own_groups)
    for group, own, named in zip(
        settings["param_groups"], optimizer.param_groups, own_groups, strict=True
    ):
        for name, parameter in zip(named, own["params"], strict=True):
            found = dict(settings["state"].get(name, {}))
            found |= {k: _state(stored, f"{name}/{k}", parameter) for k in keys.get(name, ())}
            state.update({number: found} if found else {})
            number += 1
        groups.append({**group, "params": list(range(number - len(named), number))})
    return {"state": state, "param_groups": groups}


def shared_out(stored: Any, optimizer: Optimizer) -> Any:
    """The state that one process has saved of an optimizer, for one whose model is shared out."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    if not isinstance(stored, Mapping) or not isinstance(stored.get("state"), Mapping):
        return stored
    state = {
        number: {key: _own_part(value, parameters[number]) for key, value in values.items()}
        if isinstance(number, int) and number < len(parameters) and isinstance(values, Mapping)
        else values
        for number, values in stored["state"].items()
    }
    return {**stored, "state": state}


def _is_shared(value: object) -> bool:
    return hasattr(value, "placements") and hasattr(value, "device_mesh")


def _weights(model: torch.nn.Module) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return dict(get_model_state_dict(unwrapped(model)))


def _plain_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _names(model: torch.nn.Module) -> dict[torch.Tensor, str]:
    named = unwrapped(model).named_parameters()
    return {parameter: _plain_name(name) for name, parameter in named}


def _keys(stored: Slices) -> dict[str, list[str]]:
    """What is stored of each parameter's state."""
    keys: dict[str, list[str]] = {}
    for name in stored.shapes:
        parameter, _, key = name.rpartition("/")
        keys.setdefault(parameter, []).append(key)
    return keys


def _there(slices: Mapping[str, Slice | None]) -> dict[str, Slice]:
    return {name: one for name, one in slices.items() if one is not None}


def _slice(name: str, value: Any, is_first: bool) -> Slice | None:
    """What this process writes of a tensor; None where another one does."""
    import torch

    if not isinstance(value, torch.Tensor) or value.is_meta or value.layout != torch.strided:
        raise CheckpointError(f"{name} is no dense tensor: it cannot be stored")
    if not _is_shared(value):
        return Slice(tuple(value.shape), (0,) * value.ndim, _copied(value)) if is_first else None
    if (place := _place(name, value)) is None:
        return None
    local = _copied(value.to_local())  # type: ignore[attr-defined]
    # What is empty as a whole has no other part.
    is_written = local.numel() > 0 or (value.numel() == 0 and is_first)
    return Slice(tuple(value.shape), place[0], local) if is_written else None


def _place(name: str, value: Any) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Offsets and sizes of what is this process's to write; None where another has the same."""
    coordinate = value.device_mesh.get_coordinate()
    if coordinate is None:
        return None
    for placement, at in zip(value.placements, coordinate, strict=True):
        if placement.is_partial():
            raise CheckpointError(f"{name} is not summed up yet: it cannot be stored")
        if placement.is_replicate() and at != 0:
            return None
    return _chunk(value)


def _chunk(value: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and sizes of what this process holds."""
    [chunk] = value.__create_chunk_list__()
    return tuple(chunk.offsets), tuple(chunk.sizes)


def _copied(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _settings(model: torch.nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Groups and plain values of an optimizer's state, by the names of the parameters."""
    import torch

    names, groups = _names(model), []
    for number, group in enumerate(optimizer.param_groups):
        named = [names.get(one) for one in group["params"]]
        if None in named:
            raise CheckpointError(f"group {number} of the optimizer has a parameter of no model")
        groups.append({**group, "params": named})
    plain = {
        names[parameter]: {k: v for k, v in values.items() if not isinstance(v, torch.Tensor)}
        for parameter, values in optimizer.state.items()
    }
    return {"state": plain, "param_groups": groups}


def _tensors(model: torch.nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    import torch

    names = _names(model)
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                yield f"{names[parameter]}/{key}", value


def _filled(stored: Slices, name: str, like: Any) -> Any:
    """What a tensor holds of a stored one, as it is: shared out or whole."""
    if not _is_shared(like):
        return stored.whole(name).to(like.dtype)
    return _as_share(stored.read(name, *_chunk(like)), like)


def _as_share(local: torch.Tensor, like: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local.to(like.device, like.dtype), like.device_mesh, like.placements,
        run_check=False, shape=like.shape, stride=like.stride(),
    )  # fmt: skip


def _state(stored: Slices, name: str, parameter: torch.Tensor) -> Any:
    if _is_shared(parameter) and stored.shapes[name] == tuple(parameter.shape):
        return _filled(stored, name, parameter)
    return stored.whole(name)


def _own_part(value: Any, parameter: torch.Tensor) -> Any:
    import torch

    is_like = isinstance(value, torch.Tensor) and value.shape == parameter.shape
    if not is_like or not _is_shared(parameter):
        return value
    offsets, sizes = _chunk(parameter)
    box = tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))
    return _as_share(value[box].clone(), parameter)


def _check_groups(settings: Mapping[str, Any], own: list[list[str]]) -> None:
    stored = [list(group["params"]) for group in settings["param_groups"]]
    if len(stored) != len(own):
        raise CheckpointError(
            f"the optimizer does not fit: it has {len(own)} groups, the stored one {len(stored)}"
        )
    for number, (theirs, ours) in enumerate(zip(stored, own, strict=True)):
        if sorted(theirs) != sorted(ours):
            other = sorted({*theirs} ^ {*ours})[:3]
            raise CheckpointError(
                f"the optimizer does not fit: group {number} has other parameters: "
                f"{', '.join(other)}"
            )
