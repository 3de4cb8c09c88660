"""The verb that says how good videos are: one verb, one call of the library."""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from opusclip_mlops.passports import Score

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    found = _SIZE.fullmatch(value)
    if not found or not (int(found[1]) and int(found[2])):
        raise click.BadParameter(f"{value!r:.60} is no size: give one like 320x180", ctx, param)
    return int(found[1]), int(found[2])


@click.command()
@click.argument("videos", metavar="VIDEO...", nargs=-1, required=True)
@click.option(
    "--against",
    "references",
    metavar="REF",
    multiple=True,
    help="What a video should look like: once for all, or again for each in the same order.",
)
@click.option("--metrics", metavar="NAMES", help="Names with commas between; see above.")
@click.option("--resize", callback=_size, metavar="WxH", help="Bring all frames to this size.")
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), help="Take so many a second.")
@click.option("--max-frames", type=click.IntRange(min=1), help="Take the first so many.")
@click.option("--rank", metavar="METRIC", help="The best video first.")
@click.option("--allow-unlike", is_flag=True, help="Rank videos that were not measured alike.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Keep the JSON here.")
@click.option("--run", metavar="RUN", help="Log the scores to this run of MLflow.")
@click.option("--step", type=int, help="With --run: at which step.")
@click.option("--prefix", default="eval/", show_default=True, help="With --run: before each key.")
@click.option("--tracking-uri", help="The MLflow server or store.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def evaluate(
    videos: tuple[str, ...],
    references: tuple[str, ...],
    metrics: str | None,
    resize: tuple[int, int] | None,
    fps: float | None,
    max_frames: int | None,
    rank: str | None,
    allow_unlike: bool,
    out: Path | None,
    run: str | None,
    step: int | None,
    prefix: str,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Measure how good videos are: by themselves, and beside what they should look like.

    VIDEO and REF are files, or folders of them; the files of two folders belong together by name.

    Metrics beside REF: psnr, ssim (both by default), ms_ssim, lpips_alex, lpips_vgg; of all videos
    together fid and kid. Over time, all by default: flicker, warping_error, motion,
    brightness_pumping, frozen_frames, black_frames, cuts, loop_seam.

    The exit code is 1 when a video, or a metric that was asked for, could not be measured.
    """
    if (run is None) != (step is None):
        raise click.UsageError("--run and --step go together")
    from opusclip_mlops import scoring, scoring_console
    from opusclip_mlops.frame_sources import Taken

    asked = None if metrics is None else [name.strip() for name in metrics.split(",")]
    names = scoring.chosen(asked, has_references=bool(references))
    if rank and rank not in names:
        raise click.UsageError(f"--rank {rank!r:.60} is not among what is measured: see --metrics")
    width, height = resize or (0, 0)
    taken = Taken(width=width, height=height, fps=fps, max_frames=max_frames)
    log = None if run is None or step is None else _logging(run, step, prefix, tracking_uri)
    with scoring_console.progress_shown() as show:
        found = scoring.evaluate_videos(videos, references, metrics=names, taken=taken, show=show)
    ranking = scoring_console.Ranking(rank, allow_unlike=allow_unlike) if rank else None
    try:
        if out:
            scoring_console.write_json(found, out)
        if log:
            log(found.scores)
    finally:  # what took an hour to measure is not lost
        scoring_console.print_evaluation(found, ranking, as_json=as_json)
    left_out = {*found.left_out, *(name for one in found.videos for name in one.left_out)}
    unread = any(one.left_out and not one.scores for one in found.videos)
    sys.exit(1 if unread or (asked and left_out) else 0)


def _logging(
    run: str, step: int, prefix: str, tracking_uri: str | None
) -> Callable[[Mapping[str, "Score"]], None]:
    """What logs scores to a run that is there now; MLflow is loaded for it alone."""
    from opusclip_mlops import scored_runs

    found = scored_runs.find_run(run, tracking_uri=tracking_uri)
    return lambda scores: scored_runs.log_scores(found, scores, step=step, prefix=prefix)


VERBS = (evaluate,)
"""All of them, for the command."""
