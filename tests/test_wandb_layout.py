"""How a run is laid out in W&B."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import msgspec
import pytest

from opusclip_mlops import wandb_layout
from opusclip_mlops.records import Files
from opusclip_mlops.words import words_of
from tests.insight_records import hparams, layout

_PARTS = ["global_step", "_step", "opusclip", "_wandb", "loss", "metrics", "params"]
_NAMES = st.lists(st.sampled_from(_PARTS), min_size=1, max_size=5).map("/".join)


@hypothesis.given(_NAMES)
def test_a_key_is_found_again_from_its_column(key: str) -> None:
    """No two keys share a column, and none of a metric is one that W&B keeps for itself."""
    column = wandb_layout.column(key)
    assert wandb_layout.key_of(column) == key
    assert wandb_layout.key_of(key) is None or column.startswith("metrics/") or column == key


@hypothesis.given(st.dictionaries(_NAMES, st.text()))
def test_params_are_found_again_in_the_config(params: dict[str, str]) -> None:
    """Params may be called anything, also what stands beside them in the config."""
    config = wandb_layout.config_of(params) | {
        "opusclip": {"tags": {"a": "b"}},
        "_wandb": {"version": "0"},
    }
    expected = ({"params": params} if params else {}) | {"tags": {"a": "b"}}
    assert wandb_layout.words_of_config(config) == expected


def test_files_are_found_again_in_an_artifact() -> None:
    """What an artifact says of its files is what the record said; W&B's own aliases are passed."""
    record = Files(
        "video vae", "model", {"a.bin": "s3://b/a.bin"}, {"a.bin": 5}, {"version": "3"}, ["best"]
    )
    assert wandb_layout.artifact_name(record.name) == "video_vae"
    found = wandb_layout.words_of_artifact(
        wandb_layout.artifact_metadata(record), "model", record.uris, ["v7", "latest", "best"]
    )
    assert found == words_of(record)
    assert wandb_layout.words_of_artifact({}, "model", {}, []) == {}


@pytest.mark.parametrize("asked", ["online", "offline"])
def test_a_mode_that_is_asked_for_is_taken(asked: str) -> None:
    """The mode is guessed only where nobody said."""
    assert wandb_layout.wandb_mode(asked) == asked


def test_hyperparameters_are_numbers_in_the_config() -> None:
    """With the goals of their results; anything else says nothing there."""
    assert wandb_layout.hparams_of(hparams()) == {
        "hparams": {"lr": 0.1, "optimizer": "adamw", "use_ema": True},
        "hparams_goals": {"val/loss": "minimize"},
    }
    empty = msgspec.structs.replace(hparams(), content={"params": 3})
    assert wandb_layout.hparams_of(empty) == wandb_layout.hparams_of(layout()) == {}


@pytest.mark.parametrize("mark", [None, "", "x", "1", "[]", '{"kind": "a"}', 3, {"kind": "a"}])
def test_a_mark_of_anothers_says_nothing(mark: Any) -> None:
    """A row that somebody else has written is no insight."""
    assert wandb_layout.insight_of_mark(mark) is None
    told = wandb_layout.insight_mark("graph", "ü/a:b")
    assert wandb_layout.insight_of_mark(told) == ("graph", "ü/a:b")
