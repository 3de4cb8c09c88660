"""What is printed of a lineage: lines for people, JSON for scripts."""

import json
from dataclasses import replace

import pytest

from opusclip_mlops.accounts import Unread
from opusclip_mlops.lineage_console import lines_of, print_lineage
from opusclip_mlops.samples import SourceClip
from opusclip_mlops.touches import (
    CheckpointTouch,
    DatasetTouch,
    EvaluationTouch,
    Lineage,
    SampleTouch,
    VersionTouch,
)

A, RUN, OTHER = "a" * 64, "1" * 32, "2" * 32
KITE = SourceClip(uri="/films/kite.mp4", sha256=A, start_s=0, end_s=4, use="training")
LATER = replace(KITE, start_s=2, end_s=6.25)
FOUND = Lineage(
    source="kite.mp4",
    sha256=A,
    uris=(KITE.uri,),
    datasets=(
        DatasetTouch(
            name="films",
            digest="d1",
            context="training",
            trains=True,
            run_ids=(RUN, OTHER),
            clips=(KITE, LATER, replace(KITE, start_s=8, end_s=None)),
        ),
        DatasetTouch(
            name="tests", digest="d2", context="evaluation", trains=False, run_ids=(OTHER,),
            clips=(replace(KITE, use="held out"),),
        ),
    ),
    checkpoints=(
        CheckpointTouch(run_id=RUN, name="epoch_1", step=1, weights_sha256=A, by="dataset"),
        CheckpointTouch(run_id=RUN, name="epoch_2", step=2, weights_sha256=A, by="dataset"),
        CheckpointTouch(run_id=RUN, name="epoch_3", step=3, weights_sha256=A, by="parent"),
    ),
    versions=(
        VersionTouch(
            model="clip", version=3, stage="Production", aliases=("production",), run_id=RUN,
            checkpoint="epoch_2", weights_sha256=A, by="weights",
        ),
    ),
    evaluations=(
        EvaluationTouch(
            run_id=OTHER, evaluated_run_id=RUN, checkpoint="epoch_2", weights_sha256=A
        ),
    ),
    samples=(
        *(
            SampleTouch(
                run_id=RUN, key="panels/p-1/000", panel="p-1", cell="000", step=step,
                checkpoint="epoch_2", by="weights",
            )
            for step in range(20)
        ),
        SampleTouch(
            run_id=RUN, key="samples/cut", panel="", cell="", step=4, checkpoint="", by="source",
            clips=(KITE,),
        ),
    ),
    run_names={RUN: "first", OTHER: ""},
    runs_read=200,
    deleted_runs=3,
    unread=(Unread(OTHER, "origins/step_1.json", "it is no JSON"),),
)  # fmt: skip


def test_people_are_told_all_kinds_in_few_lines() -> None:
    """Counts first; timecodes that overlap are one; steps are listed as far as they fit."""
    assert list(lines_of(FOUND)) == [
        "kite.mp4: 2 datasets, 3 checkpoints, 1 version, 1 evaluation, 21 samples",
        f"  sha256 {A}",
        "  logged as /films/kite.mp4",
        "datasets",
        f"  films d1 (training) of run first 11111111, run {OTHER}",
        "    training: 0 s to 6.25 s, 8 s to the end of /films/kite.mp4",
        f"  tests d2 (evaluation, not trained on it) of run {OTHER}",
        "    held out: 0 s to 4 s of /films/kite.mp4",
        "checkpoints",
        "  run first 11111111: epoch_1, epoch_2 (names the dataset)",
        "  run first 11111111: epoch_3 (went on from one that names it)",
        "registered versions",
        "  clip 3 Production @production of epoch_2, run first 11111111 (by weights)",
        "evaluations",
        f"  run {OTHER} evaluated epoch_2 of run first 11111111",
        "samples",
        "  run first 11111111: panels/p-1/000, step 0, 1, 2, 3, 4, 5 and 14 more (by weights)",
        "  run first 11111111: samples/cut, step 4 (by source)",
        "    training: 0 s to 4 s of /films/kite.mp4",
        "200 runs looked at, 3 deleted passed over",
        "not read, what it tells is missing above (1):",
        f"  {OTHER} origins/step_1.json: it is no JSON",
    ]


def test_scripts_are_told_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """Every sample with its step; a path that is no text is no fault."""
    print_lineage(replace(FOUND, uris=("/films/\udcff.mp4",)), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert len(told["samples"]) == 21
    assert told["datasets"][0]["clips"][1]["end_s"] == 6.25
    assert told["versions"][0]["aliases"] == ["production"]
    assert told["unread"][0]["reason"] == "it is no JSON"
    assert told["uris"] == ["/films/\udcff.mp4"]


def test_what_is_long_is_cut_and_what_is_none_is_not_shown() -> None:
    """Ten thousand keys are forty lines; what a server says moves no cursor."""
    one = FOUND.samples[0]
    many = tuple(replace(one, key=f"samples/\x1b[2J{index}") for index in range(10_000))
    lines = list(lines_of(replace(FOUND, samples=many, datasets=(), deleted_runs=0, unread=())))
    assert len(lines) < 60
    assert "  … 9960 more lines: --json has all" in lines
    assert "datasets" not in lines
    assert lines[-1] == "200 runs looked at"
    assert not any("\x1b" in line for line in lines)


def test_a_film_without_a_hash_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """It was found by its path."""
    print_lineage(replace(FOUND, sha256=""), as_json=False)
    assert "  no run logged its hash" in capsys.readouterr().out.splitlines()
