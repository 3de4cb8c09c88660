"""Facts about `opusclip_mlops.packing`: what a model of the user's own is registered with."""

import json
from pathlib import Path

import pytest

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.packing import Packing, clip_generator, packing

MODEL = Path("serve.py")


def packed(tmp_path: Path, example: str, requirements: str = "torch\n") -> Packing:
    """A packing of two files that hold these texts."""
    (tmp_path / "example.json").write_text(example)
    (tmp_path / "requirements.txt").write_text(requirements)
    return packing(
        MODEL,
        input_example=tmp_path / "example.json",
        requirements=tmp_path / "requirements.txt",
    )


def test_a_request_says_what_the_model_takes(tmp_path: Path) -> None:
    """Rows of a request give the signature's columns; one object is one row."""
    rows = [{"prompt": "a kite", "seed": 3}, {"prompt": "a boat", "seed": 4}]
    several = packed(tmp_path, json.dumps(rows))
    assert several.signature.inputs.input_names() == ["prompt", "seed"]
    assert several.input_example.to_dict("records") == rows
    one = packed(tmp_path, json.dumps(rows[0]))
    assert one.input_example.to_dict("records") == rows[:1]


def test_requirements_are_lines_without_their_comments(tmp_path: Path) -> None:
    """As pip reads them; a # inside a word is no comment."""
    text = "# what serves\ntorch==2.13.0  # CPU\n\nclips @ file:///wheels/clips.whl#sha256=aa\n"
    made = packed(tmp_path, '{"x": 1.5}', text)
    assert made.pip_requirements == [
        "torch==2.13.0",
        "clips @ file:///wheels/clips.whl#sha256=aa",
    ]


@pytest.mark.parametrize(
    ("example", "why"),
    [
        ("{", "example.json is no JSON"),
        ("[" * 100_000, "example.json is no JSON"),
        ("[]", "holds no request"),
        ("{}", "holds no request"),
        ('{"dataframe_records": [{"x": 1}]}', "rows alone, such as"),
        ('"a kite"', "holds no request"),
        ('["a kite"]', "each row of a request is an object"),
    ],
)
def test_what_is_no_request_is_refused_by_name(tmp_path: Path, example: str, why: str) -> None:
    """One line that names the file; nothing is registered."""
    with pytest.raises(RegistryError, match=why) as refused:
        packed(tmp_path, example)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """One that is missing, and one that is no text."""
    with pytest.raises(RegistryError, match=r"cannot read .*lost\.json: No such file"):
        packing(MODEL, input_example=tmp_path / "lost.json", requirements=tmp_path)
    (tmp_path / "example.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RegistryError, match=r"cannot read .*example\.json"):
        packing(MODEL, input_example=tmp_path / "example.json", requirements=tmp_path)


def test_the_packages_own_models_need_no_files() -> None:
    """What serves a clip generator is part of the package."""
    made = clip_generator()
    assert made.python_model.is_file()
    assert made.signature.inputs.input_names() == ["prompt", "seed", "frames"]
