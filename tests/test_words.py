"""What stands in a mirror once a run, by name."""

import json

import pytest

from opusclip_mlops.records import About, Dataset, Files, Metrics, Params, Tags
from opusclip_mlops.samples import SourceClip
from opusclip_mlops.sources import Sources
from opusclip_mlops.words import MOST_PROFILE_CHARACTERS, words_of


def test_each_record_has_its_name() -> None:
    """Params, tags, notes, datasets, files and what MLflow says; nothing for a point."""
    assert words_of(Params({"a": "1"})) == {"params": {"a": "1"}}
    assert words_of(Dataset("d", "x", "local", "uri", "training")).keys() == {"dataset/training/d"}
    assert words_of(About("registry/vae/3", {"stage": "None"})) == {
        "registry/vae/3": {"stage": "None"}
    }
    assert words_of(Metrics(1, 1, {"a": 1.0})) == {}


def test_tags_of_the_machinery_are_no_tags() -> None:
    """A tracker and a replay know different ones; the notes are words of their own."""
    tags = {"team": "x", "mlflow.user": "me", "opusclip.host": "h", "mlflow.note.content": "n"}
    made = {"mlflow.user": "me", "opusclip.host": "h"}
    assert words_of(Tags(tags)) == {
        "tags": {"team": "x"}, "provenance": made, "notes": {"text": "n"},
    }  # fmt: skip
    assert words_of(Tags({"team": "x"})) == {"tags": {"team": "x"}}
    assert words_of(Tags({"mlflow.note.content": ""})) == {"notes": {"text": ""}}


def test_files_are_told_apart_by_version_or_name() -> None:
    """One model's versions, one run's checkpoints; the newest's own alias is not compared."""
    record = Files("vae", "model", {"w": "s3://b/w"}, {"w": 3}, {"version": "2"}, ["latest", "x"])
    assert words_of(record) == {"files/vae/2": {"w": "s3://b/w (3 bytes)", "aliases": "x"}}
    checkpoint = Files("checkpoint-m", "model", {}, {}, {"name": "epoch-1"})
    assert words_of(checkpoint).keys() == {"files/checkpoint-m/epoch-1"}
    assert words_of(Files("artifacts-m", "files", {})).keys() == {"files/artifacts-m"}


def test_the_films_of_a_dataset_are_counted_and_not_shown() -> None:
    """They may be many, and MLflow shows those of the first run alone; the facts are all there."""
    piece = SourceClip(uri="/films/kite.mp4")
    films = Sources.of("d", "x", "training", [piece])
    profile = json.dumps(films.profile({"frames": 9}))
    told = words_of(Dataset("d", "x", "local", "uri", "training", profile))
    shown = json.loads(told["dataset/training/d"]["profile"])
    assert shown == {"frames": 9, "sources": {"film_count": 1, "clip_count": 1}}


@pytest.mark.parametrize("profile", ['{"sources"', '{"sources": 3}', '["sources"]', '{"a": 1}', ""])
def test_a_profile_of_anybody_else_is_shown_as_it_is(profile: str) -> None:
    """Whatever it calls sources."""
    told = words_of(Dataset("d", "x", "local", "uri", "training", profile))
    assert told["dataset/training/d"]["profile"] == profile


def test_a_long_profile_is_cut_and_says_so() -> None:
    """A run's configuration stays short."""
    profile = json.dumps({"frames": 9, "names": ["x" * 90] * 1000})
    told = words_of(Dataset("d", "x", "local", "uri", "training", profile))
    shown = told["dataset/training/d"]["profile"]
    assert len(shown) < MOST_PROFILE_CHARACTERS + 80
    assert shown.startswith('{"frames": 9')
    assert shown.endswith(f"({len(profile)} characters, all of them in MLflow)")
