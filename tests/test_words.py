"""What stands in a mirror once a run, by name."""

from opusclip_mlops.records import About, Dataset, Files, Metrics, Params, Tags
from opusclip_mlops.words import words_of


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
