"""How good videos are: beside what they should look like, and by themselves in time.

Videos are decoded as they are measured, a few frames at a time, so that memory does not grow with
their length. Every value is a `Score`, which carries how it was measured.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from opusclip_mlops.errors import VideoError
from opusclip_mlops.evaluations import Evaluated, Evaluation, total_of
from opusclip_mlops.frame_sources import (
    Digest,
    Source,
    Taken,
    batches,
    is_folder,
    listed,
    name_of,
    opened,
    pairs,
)
from opusclip_mlops.metrics.distribution import FID, KID
from opusclip_mlops.metrics.frame import MSSSIM, PSNR, SSIM
from opusclip_mlops.metrics.inception import InceptionFeatures
from opusclip_mlops.metrics.lpips import LPIPS
from opusclip_mlops.passports import Score, Setting
from opusclip_mlops.pixels import Frames
from opusclip_mlops.temporal import NAMES as TEMPORAL
from opusclip_mlops.temporal import TemporalScores

Show = Callable[[str, int], None]
_Range = tuple[float, float]


class PairMetric(Protocol):
    """A metric of pictures beside their targets: the frame metrics and LPIPS are such."""

    def update(self, pictures: Any, targets: Any) -> None:
        """Take in pairs, uint8 (N,H,W,3)."""

    def score(self, *, sampling: str, resize: str, reference: str) -> Score:
        """The value with its passport."""

    def reset(self) -> None:
        """Forget all pairs."""


# Ranks that train together do not add up what is measured here: each has its own videos.
_ALONE: dict[str, Any] = {"distributed_available_fn": lambda: False}
_PAIRS: dict[str, Callable[[], PairMetric]] = {
    "psnr": lambda: PSNR(**_ALONE),
    "ssim": lambda: SSIM(**_ALONE),
    "ms_ssim": lambda: MSSSIM(**_ALONE),
    "lpips_alex": lambda: LPIPS("alex", **_ALONE),
    "lpips_vgg": lambda: LPIPS("vgg", **_ALONE),
}
PAIRS = tuple(_PAIRS)
"""Metrics of a video beside its reference."""

SETS = ("fid", "kid")
"""Metrics of all videos together beside all references."""

METRICS = (*PAIRS, *TEMPORAL, *SETS)
"""All of them, in the order they are shown in."""

_USUAL_PAIRS = ("psnr", "ssim")
_KID_SUBSET = 1000


def calculate_video_metrics(
    video: Any, target: Any, *, value_range: _Range = (0.0, 1.0)
) -> dict[str, Score]:
    """Compare a video with the target it should look like.

    Both are brought to RGB bytes first, so that files and tensors give the same numbers. The
    values are floats that carry how they were measured, and intervals over the frames.

    Args:
        video: anything `to_frames` takes, or the path of a file.
        target: the same; as many frames, of the same size.
        value_range: what black and white are, where a video is of floats.

    Returns:
        {"psnr": dB, "ssim": -1..1}, as the classes `PSNR` and `SSIM` say.

    Raises:
        VideoError: a video that cannot be read, different shapes, or pictures below 11x11.
    """
    names = name_of(video, "the video"), name_of(target, "its target")
    kinds = {"psnr": PSNR(**_ALONE), "ssim": SSIM(**_ALONE)}
    with ExitStack() as stack:
        source, other = (
            stack.enter_context(opened(one, taken=Taken(), value_range=value_range, name=name))
            for one, name in zip((video, target), names, strict=True)
        )
        digest = Digest()
        for pictures, targets in pairs(source, other, digest):
            for metric in kinds.values():
                metric.update(pictures, targets)
    return {name: one.score(reference=digest.text) for name, one in kinds.items()}


def evaluate_videos(
    videos: Sequence[Any],
    references: Sequence[Any] = (),
    *,
    metrics: Sequence[str] | None = None,
    taken: Taken | None = None,
    value_range: _Range = (0.0, 1.0),
    show: Show | None = None,
) -> Evaluation:
    """Measure videos, beside their references where there are any.

    Args:
        videos: Paths of files or of folders of them, or what `to_frames` takes; one or more.
        references: None, one for all videos, or one for each in the same order; those of a
            folder belong to the videos that are called as they are. For the metrics of `SETS`
            alone any number.
        metrics: Names out of `METRICS`. None: all over time, and with references PSNR and SSIM.
        taken: Which frames are taken, and at which size; every frame as it is otherwise.
        value_range: What black and white are, where a video is of floats.
        show: Called now and then with the video at hand and how many frames it has had.

    Raises:
        VideoError: A video cannot be read; a reference has other frames, another size or rate;
            a name is unknown; or nothing can be measured.
        WeightsError: The weights of a network are not there.
    """
    wanted = chosen(metrics, has_references=bool(references))
    named, given = _named(videos, "video"), _named(references, "reference")
    by_name = any(is_folder(one) for one in references)
    beside = _beside(named, given, wanted, by_name=by_name)
    work = _Work(wanted, taken or Taken(), value_range, show)
    found = [
        work.evaluated_or_left_out(
            named[index], None if other is None else given[other], is_one=len(beside) == 1
        )
        for index, other in enumerate(beside)
    ]
    if not any(one.scores for one in found) and not set(wanted) & set(SETS):
        raise VideoError(next(why for one in found for why in one.left_out.values()))
    total, left_out = total_of(found) if len(found) > 1 else ({}, {})
    of_sets, lacking = work.set_scores(named, given)
    if lacking and not (of_sets or any(one.scores for one in found)):
        raise VideoError(next(iter(lacking.values())))
    return Evaluation(
        videos=tuple(found), total={**total, **of_sets}, left_out={**left_out, **lacking}
    )


_Named = tuple[Any, str]


def _named(videos: Sequence[Any], kind: str) -> list[_Named]:
    """Each with its name; a folder stands for its files."""
    every = enumerate(listed(videos), 1)
    return [(one, name_of(one, f"{kind} {number}")) for number, one in every]


def chosen(metrics: Sequence[str] | None, *, has_references: bool) -> tuple[str, ...]:
    """What is measured, in the order of `METRICS`.

    Args:
        metrics: What was asked for; None for the usual: all over time, and PSNR and SSIM where
            there are references.
        has_references: Whether there is one.

    Raises:
        VideoError: A name is unknown, needs a reference that is not there, or there is no name.
    """
    if metrics is None:
        return (*(_USUAL_PAIRS if has_references else ()), *TEMPORAL)
    for name in metrics:
        if name not in METRICS:
            raise VideoError(f"no metric is called {name!r:.60}: there are {', '.join(METRICS)}")
    alone = next((name for name in metrics if name not in TEMPORAL and not has_references), "")
    if alone:
        raise VideoError(f"{alone} is measured against a reference: pass one")
    if not metrics:
        raise VideoError("no metric was asked for: pass one or more")
    return tuple(name for name in METRICS if name in metrics)


def _beside(
    videos: Sequence[_Named],
    references: Sequence[_Named],
    wanted: Sequence[str],
    *,
    by_name: bool,
) -> list[int | None]:
    """The number of each video's reference, None for none."""
    count = len(videos)
    if not count:
        raise VideoError("no video was given: pass one or more")
    if not set(wanted) & set(PAIRS):
        return [None] * count
    if len(references) == 1:
        return [0] * count
    if by_name:
        return [*_beside_by_name(videos, references)]
    if len(references) != count:
        raise VideoError(
            f"there are {count} videos and {len(references)} references: "
            "pass one reference for all, or one for each video in the same order"
        )
    return list(range(count))


def _beside_by_name(videos: Sequence[_Named], references: Sequence[_Named]) -> Iterator[int]:
    """The reference that is called as each video is, whatever their endings and folders."""
    numbers: dict[str, int] = {}
    for number, (_, name) in enumerate(references):
        if numbers.setdefault(Path(name).stem, number) != number:
            raise VideoError(f"{name} is not the only reference of its name: keep one of them")
    for _, name in videos:
        if Path(name).stem not in numbers:
            raise VideoError(
                f"{name} has no reference of its name: call the files of both folders alike"
            )
        yield numbers[Path(name).stem]


class _Work:
    """The metrics that were asked for, each network of them loaded once."""

    def __init__(
        self,
        wanted: Sequence[str],
        taken: Taken,
        value_range: _Range,
        show: Show | None,
    ) -> None:
        self._wanted, self._taken, self._show = wanted, taken, show
        self._value_range = value_range
        self._pairs = {name: make() for name, make in _PAIRS.items() if name in wanted}
        self._sets: dict[str, FID | KID] = {}
        if set(wanted) & set(SETS):
            self._features = _Once(InceptionFeatures())
            kinds = {"fid": FID, "kid": KID}
            self._sets = {
                name: make(self._features, **_ALONE)
                for name, make in kinds.items()
                if name in wanted
            }
        self._over_time = [name for name in TEMPORAL if name in wanted]
        self._with_flow = "motion" in wanted or "warping_error" in wanted

    def evaluated_or_left_out(
        self, video: _Named, reference: _Named | None, *, is_one: bool
    ) -> Evaluated:
        """Measure one video; what is wrong with one of several leaves the others their scores."""
        try:
            return self.evaluated(video, reference)
        except VideoError as error:
            if is_one:
                raise
            left_out = {name: str(error) for name in self._wanted if name not in SETS}
            return Evaluated(
                video=video[1], reference=reference[1] if reference else "", frames=0, fps=None,
                width=0, height=0, scores={}, left_out=left_out,
            )  # fmt: skip

    def evaluated(self, video: _Named, reference: _Named | None) -> Evaluated:
        """Measure one video."""
        for metric in self._pairs.values():
            metric.reset()
        with ExitStack() as stack:
            source = stack.enter_context(self._opened(video))
            other = reference and stack.enter_context(self._opened(reference))
            return self._measured(source, other)

    def _tell(self, video: str, frames: int) -> None:
        if self._show:
            self._show(video, frames)

    def _opened(self, named: _Named) -> AbstractContextManager[Source]:
        video, name = named
        return opened(video, taken=self._taken, value_range=self._value_range, name=name)

    def _measured(self, source: Source, other: Source | None) -> Evaluated:
        over_time, count = TemporalScores(with_flow=self._with_flow), 0
        left_out: dict[str, str] = {}
        digest = Digest()
        for pictures, targets in pairs(source, other, digest):
            self._compare(pictures, targets, left_out)
            if self._over_time:
                over_time.add(pictures)
            count += len(pictures)
            self._tell(source.name, count)
        scores = self._scores(over_time, digest, left_out, source)
        if not scores and left_out:
            raise VideoError(f"{source.name}: {next(iter(left_out.values()))}")
        return Evaluated(
            video=source.name,
            reference=other.name if other else "",
            frames=count,
            fps=source.fps,
            width=source.width,
            height=source.height,
            scores=scores,
            left_out=left_out,
        )

    def _compare(self, pictures: Frames, targets: Frames | None, left_out: dict[str, str]) -> None:
        for name, metric in self._pairs.items():
            if targets is None or name in left_out:
                continue
            try:
                metric.update(pictures, targets)
            except VideoError as error:
                left_out[name] = str(error)

    def _scores(
        self, over_time: TemporalScores, digest: Digest, left_out: dict[str, str], source: Source
    ) -> dict[str, Score]:
        how = {"sampling": self._taken.sampling, "resize": self._taken.resize}
        scores = {
            name: metric.score(**how, reference=digest.text)
            for name, metric in self._pairs.items()
            if name not in left_out
        }
        found = over_time.scores() if self._over_time else {}
        for name in self._over_time:
            if name in found:
                scores[name] = self._as_taken(found[name], source)
            else:
                left_out[name] = "too few frames, or too small"
        return scores

    def _as_taken(self, score: Score, source: Source) -> Score:
        """A score over time, with how the frames came to it: size and rate move it."""
        passport, taken = score.passport, self._taken
        steps = [one for one in (taken.resize, passport.resize) if one != "none"]
        size: dict[str, Setting] = {"size": f"{source.width}x{source.height}"}
        rate: dict[str, Setting] = {"fps": f"{taken.fps or source.fps:.4g}"} if source.fps else {}
        resize = ", then ".join(steps) or "none"
        settings = {**passport.settings, **size, **rate}
        changed = replace(passport, sampling=taken.sampling, resize=resize, settings=settings)
        return Score(float(score), changed)

    def set_scores(
        self, videos: Sequence[_Named], references: Sequence[_Named]
    ) -> tuple[dict[str, Score], dict[str, str]]:
        """The metrics of all videos beside all references, and why one is not there."""
        if not self._sets:
            return {}, {}
        fewest = min(self._fill(videos, real=False), self._fill(references, real=True))
        scores: dict[str, Score] = {}
        left_out: dict[str, str] = {}
        how = {"sampling": self._taken.sampling, "resize": self._taken.resize}
        for name, distance in self._sets.items():
            if isinstance(distance, KID):
                distance.subset_size = min(_KID_SUBSET, fewest)
            try:
                scores[name] = distance.score(**how)
            except VideoError as error:
                left_out[name] = str(error)
        return scores, left_out

    def _fill(self, named: Sequence[_Named], *, real: bool) -> int:
        """Take in one side; returns how many frames it has."""
        total = 0
        for one in named:
            count = 0
            with self._opened(one) as source:
                for pictures in batches(source):
                    self._features.take(pictures)
                    for distance in self._sets.values():
                        distance.update(pictures, real=real)
                    count += len(pictures)
                    self._tell(source.name, count)
            total += count
        return total


class _Once:
    """The features of the pictures at hand, computed once for all metrics over them."""

    def __init__(self, network: InceptionFeatures) -> None:
        self._network = network
        self.name, self.weights_sha256 = network.name, network.weights_sha256
        self._features = Tensor()

    def take(self, pictures: Frames) -> None:
        """The next pictures."""
        self._features = self._network.forward(pictures)

    def __call__(self, pictures: Tensor, /) -> Tensor:  # noqa: ARG002
        """Their features."""
        return self._features
