"""Facts about `opusclip_mlops.model_hooks`: what hangs on a model does not leave with it."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from opusclip_mlops.model_hooks import Hook


def hooked(heard: list[Any]) -> torch.nn.Module:
    """A model with hooks before and after its pass."""
    model = torch.nn.Linear(2, 2)
    model.register_forward_pre_hook(Hook(lambda *_: heard.append("before")))
    model.register_forward_hook(Hook(lambda *_: heard.append("after")), always_call=True)
    return model


def test_a_saved_model_needs_nothing_of_this_package(tmp_path: Path) -> None:
    """Saved whole, or as a copy, it is loaded and computes where the package is missing."""
    model = hooked([])
    for number, one in enumerate((model, copy.deepcopy(model))):
        file = io.BytesIO()
        torch.save(one, file)
        assert b"opusclip_mlops" not in file.getvalue()
        assert b"opusclip_mlops" not in pickle.dumps(one)
        (tmp_path / f"{number}.pt").write_bytes(file.getvalue())
    code = (
        "import sys; sys.modules['opusclip_mlops'] = None; import torch\n"
        "for path in sys.argv[1:]:\n"
        "    model = torch.load(path, weights_only=False)\n"
        "    print(model(torch.ones(1, 2)).tolist())"
    )
    paths = [str(tmp_path / f"{number}.pt") for number in range(2)]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(model(torch.ones(1, 2)).tolist())] * 2


def test_a_copy_is_not_heard() -> None:
    """Nor a copy of a copy; the model itself still is."""
    heard: list[Any] = []
    model = hooked(heard)
    first = copy.deepcopy(model)
    for one in (first, copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert torch.equal(one(torch.ones(1, 2)), first(torch.ones(1, 2)))
    assert heard == []
    model(torch.ones(1, 2))
    assert heard == ["before", "after"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_model_with_hooks_is_no_script() -> None:
    """As with any hook of Python; the error says when the model can be scripted."""
    with pytest.raises(AttributeError, match=r"script it before time_model or watch, or after"):
        torch.jit.script(hooked([]))
