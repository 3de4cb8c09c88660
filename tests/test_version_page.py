"""The page of a version: Markdown that MLflow's UI shows as meant, whatever names there are."""

from dataclasses import replace

import pytest

from opusclip_mlops.metadata import BestValue, CheckpointMetadata, StoredFile
from opusclip_mlops.passports import Interval, Passport
from opusclip_mlops.version_page import LONGEST, Sample, VersionPage, escaped, latest_sample

RUN = "0123456789abcdef0123456789abcdef"
PICTURE = "images/samples~a+step+{}+timestamp+{}+{}+compressed.webp"


def page(
    *, metrics: dict[str, float] | None = None, sample: Sample | None = None, **known: object
) -> VersionPage:
    """The page of a checkpoint of which everything is known; `known` replaces."""
    given = {
        "name": "epoch_0001_step_00000020",
        "step": 20,
        "epoch": 1,
        "metrics": {"val/psnr": 24.123456789, "val/loss": float("nan")}
        if metrics is None
        else metrics,
        "model": {"class": "Scaler"},
        "git_commit": "0123456789abcdef0123",
        "git_dirty": True,
        "dataset_digest": "d1g35t",
        "parent": "epoch_0000_step_00000010",
        "best": {"val/psnr": BestValue("epoch_0001_step_00000020", 24.1, "max")},
    }
    page_only = {"run_name": "kite", "is_linked": True, "dataset_name": "squares"}
    page_only |= {key: known.pop(key) for key in set(known) & set(page_only)}
    return VersionPage(
        metadata=CheckpointMetadata(**{**given, **known}),  # type: ignore[arg-type]
        weights=StoredFile("f" * 64, 2_097_152),
        value_count=524_288,
        run_id=RUN,
        experiment_id="7",
        sample=sample,
        **page_only,  # type: ignore[arg-type]
    )


def test_all_that_is_known_of_a_checkpoint_stands_in_order() -> None:
    """What it is, its metrics, where it comes from, what it weighs, and a sample."""
    picture = PICTURE.format(20, 1_700_000_000_000, "abcdef12")
    sample = Sample(
        "samples/a", 20, "abcdef12", picture, "media/video/a/step_00000020-abcdef12.mp4"
    )
    run = f"#/experiments/7/runs/{RUN}"
    clip = f"{run}/artifacts/media/video/a/step_00000020-abcdef12.mp4"
    address = "images%2Fsamples~a%2Bstep%2B20%2Btimestamp%2B1700000000000%2Babcdef12"
    assert (
        page(sample=sample).description()
        == f"""\
Scaler, epoch 1, step 20, of run [kite]({run})

| metric | value |
|---|---|
| val/psnr | &emsp;24.1235 |
| val/loss | &emsp;nan |

- Checkpoint [epoch_0001_step_00000020]({run}/artifacts/checkpoints/epoch_0001_step_00000020)
- Trained on from epoch_0000_step_00000010
- Dataset squares, digest d1g35t
- Code at commit 0123456789ab, with uncommitted changes
- Weights 2.0 MiB, 524,288 values

Sample [samples/a, step 20]({clip})

![](get-artifact?path={address}%2Bcompressed.webp&run_uuid={RUN})"""
    )


def test_a_value_with_a_passport_says_how_it_was_measured() -> None:
    """Its interval, how many it is over, and what to compare it by; rubbish says nothing."""
    interval = Interval(low=39.5, high=41, level=0.95, method="b", resamples=9, seed=0)
    passport = Passport(
        metric="fid", version="1", count=1000, unit="frames", extractor="net|x", interval=interval
    )
    text = page(
        metrics={"fid": 40.0, "loss": 1.0, "odd": 2.0},
        passports={"fid": passport.to_dict(), "odd": {"metric": 1}},
    ).description()
    assert "| metric | value | how |\n|---|---|---|" in text
    said = f"39.5 to 41 (95%); 1,000 frames; passport {passport.digest}; net&#124;x"
    assert f"| fid | &emsp;40 | {said} |" in text
    assert "| loss | &emsp;1 |  |\n| odd | &emsp;2 |  |" in text


def test_a_value_s_passport_is_named_whatever_else_it_says() -> None:
    """A long unit or extractor does not push out what values are compared by."""
    passport = Passport(metric="fid", version="1", count=9, unit="<b>|" * 99, extractor="net" * 99)
    text = page(metrics={"fid": 40.0}, passports={"fid": passport.to_dict()}).description()
    assert f"; passport {passport.digest}; netnet" in text
    assert "<b>" not in text


def test_what_is_not_known_is_not_spoken_of() -> None:
    """No row of metrics, no dataset, no commit, no parent: no line about them."""
    bare = page(
        metrics={}, model={}, git_commit=None, git_dirty=None, dataset_digest=None, parent=None
    )
    text = bare.description()
    assert text.startswith("Model, epoch 1")
    assert [line[:8] for line in text.splitlines() if line][1:] == ["- Checkp", "- Weight"]
    assert set(bare.tags()) == {
        f"opusclip.{name}" for name in ("checkpoint", "step", "epoch", "weights_sha256")
    }


def test_a_run_on_another_server_is_named_and_not_linked() -> None:
    """No link and no picture would lead there."""
    sample = Sample("a", 20, "abcdef12", PICTURE.format(20, 1, "abcdef12"))
    text = page(is_linked=False, sample=sample).description()
    assert "of run kite\n" in text
    assert "](" not in text


def test_a_tag_is_short_but_a_hash() -> None:
    """Commit in 12 digits, metrics in 4; three metrics, what the best is chosen by first."""
    metrics = {f"a/{number}": number / 3 for number in range(9)}
    odd = {"no tag, says MLflow": 1.0, "opusclip.checkpoint": 1.0, "": 1.0}
    tags = page(metrics={**metrics, "val/psnr": 24.123456789, **odd}).tags()
    assert list(tags.items()) == [
        ("val/psnr", "24.12"),
        ("a/0", "0"),
        ("a/1", "0.3333"),
        ("opusclip.epoch", "1"),
        ("opusclip.step", "20"),
        ("opusclip.git_dirty", "true"),
        ("opusclip.git_commit", "0123456789ab"),
        ("opusclip.dataset_digest", "d1g35t"),
        ("opusclip.checkpoint", "epoch_0001_step_00000020"),
        ("opusclip.weights_sha256", "f" * 64),
    ]
    more = replace(
        page(evaluation_digest="e1"), registered_by="anna", metadata_sha256="a" * 64
    ).tags()
    assert list(more.items())[-5:] == [
        ("opusclip.evaluation_digest", "e1"),
        ("opusclip.checkpoint", "epoch_0001_step_00000020"),
        ("opusclip.registered_by", "anna"),
        ("opusclip.weights_sha256", "f" * 64),
        ("opusclip.metadata_sha256", "a" * 64),
    ]


def test_what_it_was_evaluated_on_is_named_where_that_is_known() -> None:
    """Beside what it was trained on."""
    text = page(evaluation_digest="e_1").description()
    assert "digest d1g35t\n- Evaluated on dataset digest e_1\n" in text


def test_many_metrics_are_twenty_and_a_number() -> None:
    """The table stays one that a person reads."""
    text = page(metrics={f"m{number:03}": 1.0 for number in range(500)}).description()
    assert text.count("\n| m0") == 20
    assert "and 480 more metrics" in text


NASTY = (
    "a|b",
    "[a](http://evil.example)",
    "![a](x)",
    "<script>alert(1)</script>",
    "`code`",
    "*a* _a_ __a__ ~~a~~",
    "a\\",
    "@octocat",
    ":smile:",
    "http://evil.example/x",
    "www.evil.example/x",
    "me@evil.example",
    "&lt;b&gt;",
    "# a",
    "- a",
    "1. a",
    "=====",
)


@pytest.mark.parametrize("name", NASTY)
def test_a_name_holds_no_markdown(name: str) -> None:
    """What Markdown would read is written as the number of its character."""
    text = escaped(name)
    for mark in ("|", "[", "]", "<", ">", "`", "*", "~~", "\\", "@", ":", "://", " _", "www."):
        assert mark not in text
    assert not text.startswith(("-", "#", "=", "1"))


def test_a_name_is_one_line_of_what_can_be_seen() -> None:
    """Line ends, signs that turn the writing round and halves of characters are gone."""
    assert escaped("a\n\n| b\u202ec\0\ud800") == "a &#124; bc"
    assert escaped("x" * 100) == "x" * 79 + "…"
    assert escaped("snake_case/of_2") == "snake_case/of_2"


def test_a_name_holds_no_password() -> None:
    """Credentials in an address are taken out, as everywhere."""
    assert "hunter2" not in escaped("s3 at https://me:hunter2@films.example")


def test_names_of_any_length_fit_into_a_description() -> None:
    """Each is cut; should all be at their longest, whole lines at the end are left out."""
    long = "|" * 300
    sample = Sample(long, 20, "abcdef12", "images/" + "|" * 300, "media/" + "|" * 300)
    text = page(
        metrics={f"{number}{long}": 1e-300 for number in range(50)},
        sample=sample, run_name=long, model={"class": long}, dataset_name=long, dataset_digest=long,
        parent=long,
    ).description()  # fmt: skip
    assert len(text) <= LONGEST
    assert all(
        line.endswith((" |", ")")) for line in text.splitlines()[2:3] + text.splitlines()[-1:]
    )


def test_a_sample_is_the_last_one_by_the_checkpoints_step() -> None:
    """A clip goes before a picture, and what came later, or does not move, is none."""
    paths = [
        PICTURE.format(10, 5, "abcdef10"),
        PICTURE.format(15, 6, "abcdef15"),
        PICTURE.format(15, 7, "abcdef16"),
        PICTURE.format(30, 8, "abcdef30"),
        PICTURE.format(18, 9, "4b0d37a5-5b56-44b4-8d6f-1d0a66a3b6c2"),
        "images/samples~a+step+19+timestamp+9+abcdef19.png",
        "images/other.webp",
    ]
    assert latest_sample(paths, step=20) == Sample("samples/a", 15, "abcdef16", paths[2])
    of_panel = PICTURE.replace("samples~a", "panels~kites-1").format(15, 9, "abcdef17")
    assert latest_sample([of_panel, *paths], step=20).mark == "abcdef16"  # type: ignore[union-attr]
    assert latest_sample([of_panel], step=20) is not None
    assert latest_sample(paths[4:], step=20) == Sample(
        "samples/a", 18, "4b0d37a5-5b56-44b4-8d6f-1d0a66a3b6c2", paths[4]
    )
    assert latest_sample(paths[:3], step=9) is None
