"""What a model is made of and how data flow through it, as nodes of a graph.

By torch's exporter each operation is a node. Where that fails the model is run once on its example,
and its modules, with what is done between them, are the nodes. Either way it is seen as in
evaluation, and left as it was: modes, buffers, gradients and the random generators.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opusclip_mlops.errors import RecordError, RecordTypeError
from opusclip_mlops.faults import attempted
from opusclip_mlops.redaction import one_line
from opusclip_mlops.untouched import as_in_evaluation

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

MOST_NODES = 20_000
"""How many nodes are kept; a last one, `left_out`, says how many more there were."""

WAYS = ("export", "modules")
Node = dict[str, Any]
Call = Callable[..., object]

_MOST_SHAPES = 16
_MOST_CHARACTERS = 200
_EXPORTERS_LOGGERS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
_LIBRARIES = (
    str(Path(__file__).parent),
    *(sysconfig.get_path(one) for one in ("stdlib", "purelib", "platlib")),
)
_CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")


class Nodes:
    """The nodes of a graph, the first `MOST_NODES` of them; each has a name of its own."""

    def __init__(self) -> None:
        self._kept: list[Node] = []
        self._names: set[str] = set()
        self._last_numbers: dict[str, int] = {}
        self._count = 0

    def add(
        self,
        name: str,
        op: str,
        inputs: Iterable[str] = (),
        given: Any = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """Add a node; the name it has got. `given` holds the tensors that it gives."""
        self._count += 1
        if len(self._kept) >= MOST_NODES:
            return name
        own = self._free(name)
        self._names.add(own)
        self._kept.append(_node(own, op, inputs, given, attributes or {}))
        return own

    def all(self) -> list[Node]:
        """The nodes in the order they were added; what is more than is kept is told on stderr."""
        left_out = self._count - len(self._kept)
        if not left_out:
            return self._kept
        print(f"opusclip: graph: {left_out:,} nodes are left out", file=sys.stderr, flush=True)
        return [*self._kept, _node("left_out", "left_out", (), None, {"nodes": left_out})]

    def _free(self, name: str) -> str:
        number = self._last_numbers.get(name, 0)
        own = f"{name}_{number}" if number else name
        while own in self._names:
            number += 1
            own = f"{name}_{number}"
        self._last_numbers[name] = number
        return own


def graph_of(
    model: Module, example_input: Any, *, call: Call | None = None, by: str | None = None
) -> dict[str, Any]:
    """The content of a graph: its nodes, the model's class, the way it was found, its parameters.

    Args:
        model: A module without what wraps it.
        example_input: A tensor, a tuple of arguments or a dict of keyword arguments.
        call: What is called in place of the model; then there is no export.
        by: One of `WAYS`; by default the first that works.

    Raises:
        RecordTypeError: `call` is no function.
        RecordError: an unknown way, or the model can't be run on the input.
    """
    if call is not None and not callable(call):
        raise RecordTypeError(f"call must be a function, such as model.loss, not {call!r:.60}")
    if by not in (None, *WAYS) or (call is not None and by == "export"):
        raise RecordError(f"by is {by!r}: a graph is made by modules, or without call= by export")
    _check(model)
    arguments = _arguments(example_input)
    ways: dict[str, Callable[[], Nodes]] = {
        "export": lambda: _exported(model, *arguments),
        "modules": lambda: _run(model, call or model, *arguments),
    }
    chosen = [by] if by else ["modules"] if call else list(WAYS)
    fault: Exception | None = None
    for way in chosen:
        made: list[Nodes] = []
        with as_in_evaluation(model):
            fault = attempted(partial(_keep, made, ways[way]))
        if made:
            return _content(model, made[0].all(), way)
    kind = type(model).__name__
    raise RecordError(f"{kind} cannot be run on example_input: {_told(fault)}") from None


def _told(fault: Exception | None) -> str:
    """What went wrong, and in which line of the caller's own code, on one line."""
    why = one_line(f"{type(fault).__name__}: {fault}")
    frames = traceback.extract_tb(fault.__traceback__) if fault else []
    own = [one for one in frames if not one.filename.startswith(_LIBRARIES)]
    return f"{why} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else why


def _check(model: Module) -> None:
    import torch

    kind = type(model).__name__
    if any(map(_is_lazy, model.parameters())):
        raise RecordError(f"{kind} has weights that are not made yet: run it once, then log it")
    if any(isinstance(one, torch.jit.ScriptModule) for one in model.modules()):
        raise RecordError(f"{kind} is TorchScript: log the graph of the module it was made from")


def _keep(made: list[Nodes], make: Callable[[], Nodes]) -> None:
    made.append(make())


def _content(model: Module, nodes: list[Node], way: str) -> dict[str, Any]:
    count = sum(one.numel() for one in model.parameters())
    return {"nodes": nodes, "of": type(model).__name__, "by": way, "parameters": count}


def _is_lazy(parameter: Tensor) -> bool:
    from torch.nn.parameter import is_lazy

    return bool(is_lazy(parameter))


def _arguments(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_input, Mapping):
        return (), {str(name): value for name, value in example_input.items()}
    return (example_input if isinstance(example_input, tuple) else (example_input,)), {}


def _node(
    name: str, op: str, inputs: Iterable[str], given: Any, attributes: Mapping[str, Any]
) -> Node:
    tensors = list(_tensors(given))[:_MOST_SHAPES]
    said = {"dtype": str(tensors[0].dtype).removeprefix("torch.")} if tensors else {}
    said |= {key: str(value) for key, value in attributes.items() if str(value)}
    return {
        "name": name,
        "op": op,
        "inputs": list(dict.fromkeys(inputs)),
        "shapes": [[_size(size) for size in one.shape] for one in tensors],
        "attributes": {key: one_line(one, at_most=_MOST_CHARACTERS) for key, one in said.items()},
    }


def _size(size: Any) -> int:
    """A dimension; -1 where it is not fixed."""
    return size if isinstance(size, int) else -1


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, whatever tuples, lists and mappings they are in."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple | set | frozenset):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(one)


def _exported(model: Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Nodes:
    """Every operation of a model, by torch's exporter."""
    import torch

    if sys.stderr.isatty():
        print(f"opusclip: graph: exporting {type(model).__name__} …", file=sys.stderr, flush=True)
    with warnings.catch_warnings(), _exporter_kept_quiet():
        # About attributes that are put back, and about the exporter's own parts.
        warnings.simplefilter("ignore")
        program = torch.export.export(model, arguments, named, strict=False)
    signature, nodes, names = program.graph_signature, Nodes(), dict[Any, str]()
    for one in program.graph.nodes:
        inputs = [names[given] for given in one.all_input_nodes]
        name, kind = _placeholder(one, signature) if one.op == "placeholder" else _operation(one)
        given = one.meta.get("val", [source.meta.get("val") for source in one.all_input_nodes])
        names[one] = nodes.add(name, kind, inputs, given, _constants(one))
    return nodes


@contextlib.contextmanager
def _exporter_kept_quiet() -> Iterator[None]:
    """Without the tracebacks that the exporter logs in this thread: what it raises says it all."""
    thread = threading.get_ident()
    loggers = [logging.getLogger(name) for name in _EXPORTERS_LOGGERS]

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    for one in loggers:
        one.addFilter(is_of_others)
    try:
        yield
    finally:
        for one in loggers:
            one.removeFilter(is_of_others)


def _placeholder(node: Any, signature: Any) -> tuple[str, str]:
    """Name and kind of what an exported graph is given: the model's own tensors, or an input."""
    for paths, kind in (
        (signature.inputs_to_parameters, "parameter"),
        (signature.inputs_to_buffers, "buffer"),
    ):
        if node.name in paths:
            return paths[node.name].replace(".", "/"), kind
    return f"inputs/{node.name}", "input"


def _operation(node: Any) -> tuple[str, str]:
    return f"{_module_path(node)}{node.name}", str(node.target)


def _module_path(node: Any) -> str:
    """The module that an exported operation is done in, as the begin of a name."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.replace(".", "/") + "/" if path else ""


def _constants(node: Any) -> dict[str, Any]:
    """What an exported operation is given beside tensors, by the names of its schema."""
    from torch.fx import Node as ExportedNode

    schema = getattr(node.target, "_schema", None)
    given = zip(schema.arguments, node.args, strict=False) if schema else ()
    named = {one.name: value for one, value in given} | dict(node.kwargs)
    return {name: value for name, value in named.items() if not isinstance(value, ExportedNode)}


def _run(model: Module, call: Call, arguments: tuple[Any, ...], named: dict[str, Any]) -> Nodes:
    """The modules of a model, and what is done between them, by running it."""
    import torch
    from torch.overrides import TorchFunctionMode

    trace = _Trace(model)

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, _: Any, args: Any = (), kwargs: Any = None
        ) -> object:
            return trace.did(func, args, kwargs or {}, func(*args, **(kwargs or {})))

    trace.take_inputs(arguments, named)
    is_compiled = "torch._dynamo" in sys.modules
    with contextlib.ExitStack() as stack:
        if is_compiled:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(trace.let_go)
        trace.listen()
        with Mode():
            given = call(*arguments, **named)
    trace.nodes.add("output", "output", trace.sources(given), given)
    return trace.nodes


class _Trace:
    """Follows tensors from module to module while a model runs."""

    def __init__(self, model: Module) -> None:
        from torch.utils.weak import WeakIdKeyDictionary

        self.nodes = Nodes()
        self._model = model
        self._from: Any = WeakIdKeyDictionary()
        self._held = dict(_held(model))
        self._handles: list[Any] = []
        self._path: list[str] = []
        self._inside_layer = 0

    def take_inputs(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Make nodes of the tensors that the model is given."""
        for name, value in (*enumerate(arguments), *named.items()):
            for one in _tensors(value):
                self._from[one] = self.nodes.add(f"inputs/{name}", "input", (), one)

    def listen(self) -> None:
        """Hear of each call of a module, until `let_go`."""
        for name, module in self._model.named_modules():
            path = name.replace(".", "/")
            begin, end = partial(self._begin, path), partial(self._end, path)
            self._handles.append(module.register_forward_pre_hook(begin))
            self._handles.append(module.register_forward_hook(end, with_kwargs=True))

    def let_go(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def sources(self, *values: object) -> list[str]:
        """The nodes that the tensors in some values come from."""
        return [self._source(one) for one in _tensors(values) if self._is_known(one)]

    def did(self, func: Any, args: Any, kwargs: Any, given: Any) -> Any:
        """Take note of a function that gave something."""
        if self._inside_layer or not any(True for _ in _tensors(given)):
            return given
        op = getattr(func, "__name__", "function").strip("_")
        if op != "get":
            self._add(op, op, self.sources(args, kwargs), given, {})
        elif sources := self.sources(args):
            # A property of a tensor, such as its transpose.
            self._note(given, sources[0])
        return given

    def _begin(self, path: str, module: Module, _: Any) -> None:
        if _is_layer(module):
            self._inside_layer += 1
        else:
            self._path.append(path)

    def _end(self, path: str, module: Module, args: Any, kwargs: Any, given: Any) -> None:
        if not _is_layer(module):
            self._path.pop()
            return
        self._inside_layer -= 1
        if not self._inside_layer:
            count = sum(one.numel() for one in module.parameters())
            said = {"parameters": count or "", "settings": module.extra_repr()}
            self._add("", type(module).__name__, self.sources(args, kwargs), given, said, path)

    def _add(
        self,
        name: str,
        op: str,
        inputs: list[str],
        given: Any,
        said: Mapping[str, Any],
        path: str | None = None,
    ) -> None:
        place = path if path is not None else "/".join(filter(None, [*self._path[-1:], name]))
        self._note(given, self.nodes.add(place or op, op, inputs, given, said))

    def _note(self, given: Any, name: str) -> None:
        for one in _tensors(given):
            self._from[one] = name

    def _is_known(self, tensor: Tensor) -> bool:
        return tensor in self._from or id(tensor) in self._held

    def _source(self, tensor: Tensor) -> str:
        """The node a tensor comes from; one of the model's own is a node once it is used."""
        if tensor not in self._from:
            path, kind = self._held[id(tensor)]
            self._from[tensor] = self.nodes.add(path, kind, (), tensor)
        return str(self._from[tensor])


def _is_layer(module: Module) -> bool:
    """Whether a module is one of torch's own, whose inside is nobody's interest."""
    kind = type(module)
    return kind.__module__.startswith("torch.nn.") and kind.__name__ not in _CONTAINERS


def _held(model: Module) -> Iterator[tuple[int, tuple[str, str]]]:
    """A model's own tensors: their name and kind, by their identity."""
    for name, one in model.named_buffers():
        yield id(one), (name.replace(".", "/"), "buffer")
    for name, one in model.named_parameters():
        yield id(one), (name.replace(".", "/"), "parameter")
