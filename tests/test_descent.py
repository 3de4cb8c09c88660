"""What a film has touched: found from its file, its hash or its path, over runs and models."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.entities import Dataset, DatasetInput, InputTag, Run
from mlflow.entities.model_registry import ModelVersion

from opusclip_mlops import ExperimentTracker, Origin, Panel, SourceClip, TrackingConfig
from opusclip_mlops.descent import lineage
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.films import UnknownSourceError
from opusclip_mlops.layout import origin_path, samples_path
from opusclip_mlops.lookout import SelectionError
from opusclip_mlops.metadata import WEIGHTS, CheckpointMetadata, StoredFile
from opusclip_mlops.sources import Sources
from opusclip_mlops.touches import Lineage
from tests.journeys import store
from tests.mirrored import Place

A, B = (sha256(name.encode()).hexdigest() for name in "ab")
KITE = SourceClip(uri="/films/kite.mp4", sha256=A, start_s=0, end_s=4, use="training")
DOG = SourceClip(uri="/films/dog.mp4", sha256=B, start_s=0, end_s=4, use="training")


@dataclass(frozen=True)
class Lab:
    """Runs with datasets, checkpoints, samples and versions, written by MLflow's own client."""

    place: Place

    def run(self, experiment: str = "films", **tags: str) -> Run:
        plain = {key.replace("__", "."): value for key, value in tags.items()}
        return self.place.client.create_run(
            self.place.experiment(experiment), tags=plain, run_name="a run"
        )

    def use(
        self,
        run: Run,
        *clips: SourceClip,
        digest: str = "d1",
        context: str = "training",
        has_file: bool = True,
    ) -> Sources:
        """Log a dataset with its films, as a tracker does."""
        run_id, client = run.info.run_id, self.place.client
        films = Sources.of("films", digest, context, clips)
        for key, value in films.tags().items():
            client.set_tag(run_id, key, value)
        if has_file:
            client.log_text(run_id, films.text, films.path)
        self.plain(run, digest=digest, context=context, profile=json.dumps(films.profile({})))
        return films

    def plain(
        self,
        run: Run,
        *,
        digest: str = "d1",
        context: str = "training",
        profile: str = "",
        uri: str = "/films",
    ) -> None:
        dataset = Dataset("films", digest, "local", json.dumps({"uri": uri}), profile=profile)
        given = [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])]
        self.place.client.log_inputs(run.info.run_id, given)

    def save(
        self, run: Run, step: int, digest: str | None = "d1", *, parent: int | None = None
    ) -> str:
        """Log what a checkpoint knows; returns the hash of its weights."""
        weights = sha256(f"{run.info.run_id} {step}".encode()).hexdigest()
        about = CheckpointMetadata(
            name=name_of(step),
            step=step,
            epoch=0,
            dataset_digest=digest,
            files={WEIGHTS: StoredFile(weights, 8)},
            parent=None if parent is None else name_of(parent),
            created_ms=1_000 + step,
        )
        path = f"checkpoints/{about.name}/metadata.json"
        self.place.client.log_text(run.info.run_id, json.dumps(about.to_dict()), path)
        return weights

    def sample(self, run: Run, step: int, **origin: object) -> None:
        """Log the account of a clip by itself."""
        self.place.client.set_tag(run.info.run_id, "mlflow.loggedImages", "True")
        about = {"key": "samples/kite", "step": step, "clip": "media/…", "origin": origin}
        path = origin_path(step, "0123abcd")
        self.place.client.log_text(run.info.run_id, json.dumps(about), path)

    def panel(self, run: Run, step: int, **origin: object) -> None:
        """Log the account of a panel of two cells, the first without a clip."""
        self.place.client.set_tag(run.info.run_id, "mlflow.loggedImages", "True")
        cells = {
            name: {"key": f"panels/p-1/{name}", "clip": clip, "origin": origin}
            for name, clip in (("000", ""), ("001", "media/video/panels/p-1/001/step.mp4"))
        }
        about = {"title": "p-1", "step": step, "cells": cells}
        path = samples_path("p-1", step, 1)
        self.place.client.log_text(run.info.run_id, json.dumps(about), path)

    def version(self, run: Run | None, **tags: str) -> ModelVersion:
        client = self.place.client
        if not client.search_registered_models():
            client.create_registered_model("clip")
        plain = {f"opusclip.{key}": value for key, value in tags.items()}
        run_id = run.info.run_id if run else None
        return client.create_model_version("clip", "/nowhere", run_id, tags=plain)

    def found(self, source: str = A, *, experiments: Sequence[str] = ()) -> Lineage:
        return lineage(source, experiments=experiments, tracking_uri=self.place.uri)


def name_of(step: int) -> str:
    return f"epoch_0000-step_{step:06d}"


def reached(found: Lineage) -> dict[int, str]:
    """How each checkpoint was reached, by step."""
    return {one.step: one.by for one in found.checkpoints}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(Place(tmp_path))


# Which film


def test_a_film_is_found_by_file_hash_beginning_and_path(lab: Lab, tmp_path: Path) -> None:
    """A file is hashed, wherever it lies now; a hash may be cut to 8 digits, in any case."""
    run = lab.run()
    lab.use(run, KITE, DOG)
    (tmp_path / "moved.mp4").write_bytes(b"a")
    for source in (str(tmp_path / "moved.mp4"), A, A[:8], A[:12].upper(), KITE.uri):
        found = lab.found(source)
        assert (found.sha256, found.uris) == (A, (KITE.uri,))
        [dataset] = found.datasets
        assert (dataset.name, dataset.digest, dataset.trains) == ("films", "d1", True)
        assert (dataset.run_ids, dataset.clips) == ((run.info.run_id,), (KITE,))


@pytest.mark.parametrize(
    "source", ["nowhere.mp4", "f" * 64, "0" * 8, A[:7], "/films", "%", "/films/%69.mp4", "films d1"]
)
def test_a_film_that_nobody_names_is_one_line(lab: Lab, source: str) -> None:
    """A name that is none, a hash nobody has, too few digits of one, and patterns."""
    lab.use(lab.run(), KITE)
    with pytest.raises(UnknownSourceError, match="no run names a film") as caught:
        lab.found(source)
    assert "\n" not in str(caught.value)


def test_a_file_that_nobody_names_is_told_by_its_hash(lab: Lab, tmp_path: Path) -> None:
    """Where its path is known with another content, that one's hash is said."""
    path = tmp_path / "new.mp4"
    path.write_bytes(b"b")
    lab.use(lab.run(), KITE)
    with pytest.raises(UnknownSourceError, match=f"sha256 {B}"):
        lab.found(str(path))
    lab.use(lab.run(), replace(KITE, uri=str(path)), digest="d2")
    with pytest.raises(UnknownSourceError, match=f"its path stands for {A}"):
        lab.found(str(path))


def test_two_films_of_one_path_are_told_apart(lab: Lab) -> None:
    """The path alone is refused, with both hashes; each hash finds its own."""
    lab.use(lab.run(), KITE)
    lab.use(lab.run(), replace(DOG, uri=KITE.uri), digest="d2")
    with pytest.raises(UnknownSourceError, match="stands for 2 films") as caught:
        lab.found(KITE.uri)
    assert A in str(caught.value)
    assert B in str(caught.value)
    assert [one.digest for one in lab.found(A).datasets] == ["d1"]
    assert [one.digest for one in lab.found(B).datasets] == ["d2"]


def test_one_film_under_two_paths_is_one(lab: Lab) -> None:
    """Either path finds both datasets, and what was logged by path alone."""
    lab.use(lab.run(), KITE)
    lab.use(lab.run(), replace(KITE, uri="s3://films/1.mp4"), digest="d2")
    lab.use(lab.run(), replace(KITE, uri="s3://films/1.mp4", sha256=""), digest="d3")
    for source in (KITE.uri, "s3://films/1.mp4"):
        found = lab.found(source)
        assert found.uris == (KITE.uri, "s3://films/1.mp4")
        assert [one.digest for one in found.datasets] == ["d1", "d2", "d3"]


@pytest.mark.parametrize(
    "uri", ["/f/100 % sure.mp4", "C:\\f\\a b.mp4", "/f/Drachen 風 🪁.mp4", "a=b"]
)
def test_a_path_of_any_characters_is_found_as_it_was_logged(lab: Lab, uri: str) -> None:
    """Percent, spaces, Unicode: nothing is a pattern, and no hash is needed."""
    lab.use(lab.run(), SourceClip(uri=uri), KITE)
    found = lab.found(uri)
    assert (found.sha256, found.uris) == ("", (uri,))
    assert [one.uri for one in found.datasets[0].clips] == [uri]


def test_credentials_of_a_uri_are_not_kept_and_not_needed(lab: Lab) -> None:
    """The same URI finds the film, with its password or without."""
    secret = "https://me:hunter22@films.example/kite.mp4"
    lab.use(lab.run(), SourceClip(uri=secret))
    [uri] = lab.found(secret).uris
    assert "hunter22" not in uri
    assert lab.found(uri).uris == (uri,)


def test_timecodes_that_overlap_are_all_kept_in_order(lab: Lab) -> None:
    """Each piece once, by its start."""
    pieces = [replace(KITE, start_s=start_s, end_s=start_s + 4) for start_s in (2, 0, 3, 2)]
    lab.use(lab.run(), *pieces, replace(KITE, end_s=None))
    [dataset] = lab.found().datasets
    times = [(one.start_s, one.end_s) for one in dataset.clips]
    assert times == [(0, 4), (0, None), (2, 6), (3, 7)]


# Datasets


def test_a_dataset_logged_again_with_other_films_is_both(lab: Lab) -> None:
    """MLflow keeps one profile for a name and digest; each run's own list is believed."""
    first, second = lab.run(), lab.run()
    lab.use(first, KITE)
    lab.use(second, DOG)
    lab.use(first, DOG)
    assert [one.run_ids for one in lab.found(A).datasets] == [(first.info.run_id,)]
    assert [one.run_ids for one in lab.found(B).datasets] == [
        (first.info.run_id, second.info.run_id)
    ]


def test_a_list_that_is_gone_is_told(lab: Lab) -> None:
    """Nothing is made up: what cannot be read is named, all else is found."""
    run, other = lab.run(), lab.run()
    lab.use(run, KITE)
    many = [replace(KITE, uri=f"/films/{index}.mp4") for index in range(500)]
    films = lab.use(other, *many, digest="d2", has_file=False)
    found = lab.found()
    assert [one.digest for one in found.datasets] == ["d1"]
    [unread] = found.unread
    assert (unread.run_id, unread.path) == (other.info.run_id, films.path)
    assert unread.reason


def test_a_list_that_was_changed_is_not_believed(lab: Lab) -> None:
    """Its hash stands in the run's tags."""
    run = lab.run()
    many = [replace(KITE, uri=f"/films/{index}.mp4") for index in range(500)]
    films = lab.use(run, *many)
    lab.use(lab.run(), KITE, digest="d2")
    lab.place.client.log_text(run.info.run_id, films.text.replace("4.0", "5.0"), films.path)
    found = lab.found()
    assert [one.digest for one in found.datasets] == ["d2"]
    assert "hash" in found.unread[0].reason


def test_a_dataset_of_another_tool_is_found_by_where_it_came_from(lab: Lab) -> None:
    """Its source is the film: there are no timecodes, and no hash."""
    run = lab.run()
    lab.plain(run, uri="/films/whole.mp4")
    lab.plain(lab.run(), uri="/films/other.mp4", digest="d2")
    weights = lab.save(run, 1)
    found = lab.found("/films/whole.mp4")
    assert [one.digest for one in found.datasets] == ["d1"]
    assert [one.weights_sha256 for one in found.checkpoints] == [weights]


# Checkpoints


def test_checkpoints_saved_while_it_was_in_use_are_reached_and_those_after(lab: Lab) -> None:
    """What is trained on goes on in the weights; what was saved before is clean."""
    run = lab.run()
    lab.use(run, DOG, digest="before")
    lab.use(run, KITE)
    lab.use(run, DOG, digest="after")
    for step, digest, parent in [(1, "before", None), (2, "d1", 1), (3, "after", 2), (4, None, 3)]:
        lab.save(run, step, digest, parent=parent)
    assert reached(lab.found(A)) == {2: "dataset", 3: "parent", 4: "parent"}
    assert reached(lab.found(B)) == {1: "dataset", 2: "parent", 3: "dataset", 4: "parent"}


def test_a_branch_that_went_back_before_it_is_clean(lab: Lab) -> None:
    """Resumed from a checkpoint before the film was used, by another road."""
    run = lab.run()
    lab.use(run, KITE, digest="d1")
    for step, digest, parent in [(1, "d0", None), (2, "d1", 1), (3, "d2", 1), (4, "d2", 3)]:
        lab.save(run, step, digest, parent=parent)
    assert reached(lab.found()) == {2: "dataset"}


def test_where_the_checkpoint_between_is_gone_time_decides(lab: Lab) -> None:
    """Its parent was removed: who was saved later than the film's first is counted in."""
    run = lab.run()
    lab.use(run, KITE)
    lab.save(run, 1, "d0", parent=0)
    lab.save(run, 2, "d1", parent=1)
    lab.save(run, 9, "d2", parent=8)
    assert reached(lab.found()) == {2: "dataset", 9: "parent"}


def test_where_no_checkpoint_names_the_dataset_all_of_its_run_may_be_of_it(lab: Lab) -> None:
    """Two datasets in use at once: a checkpoint names the last alone. It is said to be by run."""
    run = lab.run()
    lab.use(run, KITE)
    lab.use(run, DOG, digest="d2")
    lab.save(run, 1, "d2")
    assert reached(lab.found(A)) == {1: "run"}
    assert reached(lab.found(B)) == {1: "dataset"}


@pytest.mark.parametrize("context", ["evaluation", "test", "Validation", "calibration"])
def test_what_was_evaluated_on_a_film_was_not_trained_on_it(lab: Lab, context: str) -> None:
    """The dataset is listed as what it is, and reaches nothing."""
    run = lab.run()
    lab.use(run, KITE, context=context)
    lab.save(run, 1)
    lab.version(run)
    found = lab.found()
    [dataset] = found.datasets
    assert (dataset.context, dataset.trains) == (context, False)
    assert (found.checkpoints, found.versions, found.samples) == ((), (), ())


def test_a_film_that_was_held_out_is_not_trained_on(lab: Lab) -> None:
    """Not where all of it was; where a piece was trained on, all is reached."""
    run = lab.run()
    lab.use(run, KITE, replace(KITE, start_s=4, end_s=8, use="held out"), replace(DOG, use="test"))
    lab.save(run, 1)
    assert reached(lab.found(A)) == {1: "dataset"}
    assert reached(lab.found(B)) == {}
    assert [one.trains for one in lab.found(B).datasets] == [False]


def test_a_checkpoint_that_cannot_be_read_is_told(lab: Lab) -> None:
    """Its neighbours are found."""
    run = lab.run()
    lab.use(run, KITE)
    lab.save(run, 1)
    for text in ("{", "[]", "{}"):
        lab.place.client.log_text(run.info.run_id, text, "checkpoints/broken/metadata.json")
        found = lab.found()
        assert reached(found) == {1: "dataset"}
        assert [one.path for one in found.unread] == ["checkpoints/broken/metadata.json"]


# Versions


def test_versions_are_found_by_weights_checkpoint_dataset_and_run(lab: Lab) -> None:
    """Each says how it is known; one of a clean checkpoint is not found, nor one of nobody."""
    run, clean = lab.run(), lab.run()
    lab.use(run, KITE)
    lab.use(clean, DOG, digest="d2")
    lab.save(run, 1, "d0")
    weights = lab.save(run, 2, "d1", parent=1)
    made = {
        "weights": lab.version(None, weights_sha256=weights),
        "checkpoint": lab.version(run, checkpoint=name_of(2)),
        "dataset": lab.version(run, checkpoint=name_of(7), dataset_digest="d1"),
        "run": lab.version(run),
    }
    for other in ((run, {"checkpoint": name_of(1)}), (clean, {}), (None, {})):
        lab.version(other[0], **other[1])
    client = lab.place.client
    client.set_registered_model_alias("clip", "production", made["weights"].version)
    client.transition_model_version_stage("clip", made["weights"].version, "Production")
    found = lab.found().versions
    assert {one.by: one.version for one in found} == {
        by: int(one.version) for by, one in made.items()
    }
    assert (found[0].stage, found[0].aliases) == ("Production", ("production",))
    assert found[1].stage == "None"


def test_the_weights_of_a_version_whose_checkpoint_is_gone_are_known(lab: Lab) -> None:
    """Samples that it made, and runs that evaluated it, are found by its tags."""
    run, other = lab.run(), lab.run("elsewhere")
    lab.use(run, KITE)
    lab.version(run, checkpoint=name_of(7), dataset_digest="d1", weights_sha256="c" * 64)
    lab.sample(other, 3, checkpoint=name_of(7), weights_sha256="c" * 64)
    assert [one.by for one in lab.found().samples] == ["weights"]


# Evaluations and samples


def test_evaluations_and_samples_of_reached_checkpoints_are_found_in_any_run(lab: Lab) -> None:
    """By weights in any experiment, by name in the run itself; a name elsewhere says nothing."""
    run, evaluation, other = lab.run(), lab.run("scores"), lab.run("scores")
    lab.use(run, KITE)
    weights = lab.save(run, 1)
    tags = {"run": run.info.run_id, "checkpoint": name_of(1), "weights_sha256": weights}
    for key, value in tags.items():
        lab.place.client.set_tag(evaluation.info.run_id, f"opusclip.evaluated.{key}", value)
    lab.panel(evaluation, 1, checkpoint=name_of(1), weights_sha256=weights)
    lab.panel(run, 1, checkpoint=name_of(1))
    lab.panel(run, 5, checkpoint=name_of(5))
    lab.panel(other, 1, checkpoint=name_of(1), weights_sha256="e" * 64)
    lab.sample(other, 2, checkpoint=name_of(1))
    lab.sample(run, 0, prompt="an untrained model made it")
    lab.sample(run, 6, prompt="made between two checkpoints")
    lab.sample(run, 7, sources=[DOG.to_dict()])
    found = lab.found()
    [scored] = found.evaluations
    assert (scored.run_id, scored.evaluated_run_id) == (evaluation.info.run_id, run.info.run_id)
    by = {(one.run_id, one.step): (one.by, one.panel, one.cell) for one in found.samples}
    assert by == {
        (evaluation.info.run_id, 1): ("weights", "p-1", "001"),
        (run.info.run_id, 1): ("checkpoint", "p-1", "001"),
        (run.info.run_id, 5): ("run", "p-1", "001"),
        (run.info.run_id, 6): ("run", "", ""),
    }
    assert found.run_names == dict.fromkeys(
        sorted([run.info.run_id, evaluation.info.run_id]), "a run"
    )


def test_a_sample_that_was_cut_from_a_film_is_found_by_it(lab: Lab) -> None:
    """With its timecodes, though nothing was trained on the film."""
    run = lab.run()
    piece = replace(KITE, use="conditioned on")
    lab.sample(run, 4, prompt="x", sources=[piece.to_dict(), DOG.to_dict()])
    found = lab.found()
    [sample] = found.samples
    assert (sample.by, sample.clips, sample.step) == ("source", (piece,), 4)
    assert (found.datasets, found.checkpoints) == ((), ())


def test_accounts_that_are_none_are_told_and_passed_over(lab: Lab) -> None:
    """Anybody may write a file there; each is named, and the others are read."""
    run = lab.run()
    lab.sample(run, 1, sources=[KITE.to_dict()])
    bad = ["{", "[]", "{}", '{"key": 1, "step": "x", "origin": {}}', '{"origin": []}',
           '{"key": "a", "step": 1, "origin": {"sources": [{"start_s": -1}]}}']  # fmt: skip
    for number, text in enumerate(bad, start=2):
        lab.place.client.log_text(run.info.run_id, text, origin_path(number, "0123abcd"))
    lab.place.client.log_text(run.info.run_id, '{"cells": 3}', samples_path("p-1", 1, 1))
    lab.place.client.log_text(run.info.run_id, "hello", "origins/notes.txt")
    found = lab.found()
    assert [one.step for one in found.samples] == [1]
    assert len(found.unread) == len(bad) + 1


# Runs


def test_deleted_runs_are_passed_over_and_counted(lab: Lab) -> None:
    """What only they told is not known any more."""
    run, gone = lab.run(), lab.run()
    lab.use(run, KITE)
    lab.use(gone, DOG, digest="d2")
    lab.place.client.delete_run(gone.info.run_id)
    found = lab.found()
    assert (found.runs_read, found.deleted_runs) == (1, 1)
    with pytest.raises(UnknownSourceError):
        lab.found(B)


def test_experiments_can_be_chosen(lab: Lab) -> None:
    """By name or id; without a choice all of them are looked at."""
    lab.use(lab.run("one"), KITE)
    lab.use(lab.run("two"), KITE, digest="d2")
    assert [one.digest for one in lab.found().datasets] == ["d1", "d2"]
    assert [one.digest for one in lab.found(experiments=["two"]).datasets] == ["d2"]
    with pytest.raises(SelectionError, match="three"):
        lab.found(experiments=["three"])


def test_a_store_that_does_not_answer_is_one_line() -> None:
    """A server that is not there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(RegistryError, match="cannot read what the runs are made of"):
            lineage(A, tracking_uri="http://127.0.0.1:9")


# The command


def test_the_command_prints_what_a_film_has_touched(
    lab: Lab, said: Callable[..., tuple[int, str]]
) -> None:
    """Lines for people, JSON for scripts; what nobody names is one line and exit code 2."""
    lab.use(lab.run(), KITE)
    places = ("--tracking-uri", lab.place.uri, "--experiment", "films")
    code, text = said("lineage", A[:10], *places)
    assert (code, text.splitlines()[0].partition(":")[2]) == (
        0, " 1 dataset, 0 checkpoints, 0 versions, 0 evaluations, 0 samples",
    )  # fmt: skip
    code, text = said("lineage", KITE.uri, *places, "--json")
    assert (code, json.loads(text)["datasets"][0]["digest"]) == (0, "d1")
    assert said("lineage", "nowhere.mp4", *places) == (
        2, "error: no run names a film nowhere.mp4\n",
    )  # fmt: skip


# All of it


def test_what_a_tracker_logs_is_found_from_the_film_to_the_sample(tmp_path: Path) -> None:
    """A dataset with its films, a checkpoint, a panel: no word is needed but the film's file."""
    film = tmp_path / "100 % Drachen 🪁.mp4"
    film.write_bytes(b"frames")
    config = TrackingConfig(
        tracking_uri=store(tmp_path), experiment_name="films", use_wandb=False,
        use_tensorboard=False, system_metrics=False,
    )  # fmt: skip
    panel = Panel(name="kites", prompts=("a kite",))
    clip = np.zeros((4, 16, 16, 3), np.uint8)
    piece = SourceClip.of_file(film, start_s=1, end_s=2, use="training")
    with ExperimentTracker(config) as tracker:
        tracker.log_dataset(
            name="films", digest="d1", source=str(tmp_path), profile={"n": 1}, sources=[piece]
        )
        name = tracker.save_checkpoint(torch.nn.Linear(1, 1), step=3)
        tracker.log_panel(panel, [clip], step=3)
        tracker.log_video(clip, "samples/cut", step=3, origin=Origin(sources=(piece,)))
        run_id = tracker.run_id
    found = lineage(str(film), tracking_uri=config.tracking_uri)
    assert [(one.digest, one.clips) for one in found.datasets] == [("d1", (piece,))]
    assert [(one.run_id, one.name, one.by) for one in found.checkpoints] == [
        (run_id, name, "dataset")
    ]
    assert [(one.key, one.by) for one in found.samples] == [
        (panel.key_of(panel.cells[0]), "weights"),
        ("samples/cut", "source"),
    ]
    assert found.samples[1].clips == (piece,)
    assert found.unread == ()
