"""Facts about `opusclip_mlops.metrics.distribution`: published values, and sets that go wrong."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance

from opusclip_mlops.errors import VideoError, WeightsError
from opusclip_mlops.metrics.distribution import FID, KID, FrechetVideoDistance, InceptionScore
from opusclip_mlops.metrics.inception import InceptionFeatures
from opusclip_mlops.metrics.inception_layers import inception_layers
from opusclip_mlops.passports import Passport
from tests.metrics.extractors import Fixed, Projection, frames
from tests.metrics.two_ranks import scores

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Examples:
    """What torchmetrics' two examples measure: the same pictures, by layers of one network."""

    kid: KID
    shallow: Tensor
    few: Tensor
    random_state: Tensor


@pytest.fixture(scope="module")
def examples() -> Examples:
    """The pictures go through the network once; those of the first layers are caught on the way.

    Torchmetrics' networks draw numbers before the pictures are drawn, in their layers' order.
    """
    torch.manual_seed(42)
    inception_layers()
    nn.Linear(2048, 1008)
    first = torch.randint(0, 200, (100, 3, 299, 299), dtype=torch.uint8)
    second = torch.randint(100, 255, (100, 3, 299, 299), dtype=torch.uint8)
    state = torch.get_rng_state()
    network, caught = InceptionFeatures(), []
    first_pool = network.layers.get_submodule("MaxPool_1")
    first_pool.register_forward_hook(lambda _, __, output: caught.append(output.mean((2, 3))))
    kid = KID(network, subset_size=50, seed=None)
    kid.update(first, real=True)
    kid.update(second, real=False)
    return Examples(kid, torch.cat(caught), first[:2], state)


def test_fid_is_the_published_example(examples: Examples) -> None:
    """Torchmetrics' documentation has 12.6388, over 64 features of 100 pictures each."""
    torch.testing.assert_close(InceptionFeatures(64)(examples.few), examples.shallow[:2])
    metric = FID(Fixed(examples.shallow[:100]))
    metric.update(frames(100), real=True)
    metric.extractor = Fixed(examples.shallow[100:])
    metric.update(frames(100), real=False)
    assert round(float(metric.compute()), 4) == 12.6388


def test_kid_is_the_published_example(examples: Examples) -> None:
    """Torchmetrics' documentation has 0.0312 and 0.0025, over 100 subsets of 50 pictures."""
    torch.set_rng_state(examples.random_state)
    mean, std = examples.kid.mean_and_std()
    assert (round(float(mean), 4), round(float(std), 4)) == (0.0312, 0.0025)
    assert examples.kid.metric == "kid"
    interval = examples.kid.score().passport.interval
    assert interval is not None
    assert interval.low < 0.0312 < interval.high


def fed(metric: FID | KID | FrechetVideoDistance, real: Tensor, fake: Tensor) -> None:
    """Take in both."""
    metric.update(real, real=True)
    metric.update(fake, real=False)


class Module(nn.Module):
    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.inner = Projection()

    def forward(self, pictures: Tensor) -> Tensor:
        return self.inner(pictures)


@pytest.mark.parametrize(("count", "accuracy"), [(60, 1e-6), (5, 1e-5)])
def test_fid_is_torchmetrics(count: int, accuracy: float) -> None:
    """Over the same features, with more pictures than features and with fewer."""
    real, fake = frames(count), frames(count + 2, seed=1, bright=30)
    ours, theirs = FID(Projection()), FrechetInceptionDistance(Module())
    fed(ours, real, fake)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), abs=accuracy)


@pytest.mark.parametrize("count", [3, 40])
def test_equal_sets_are_at_zero(count: int) -> None:
    """Whatever their order."""
    metric = FID(Projection())
    fed(metric, frames(count), frames(count).flip(0))
    score = metric.score()
    assert 0 <= score < 1e-6
    assert score.passport.interval is not None
    assert score.passport.interval.low == 0


def test_metrics_are_named_by_their_extractor() -> None:
    """Only the published network gives the published name."""
    published, other, i3d = (
        Projection(name) for name in ("inception-2015-12-05", "x-1", "i3d-kinetics-400")
    )
    assert [FID(published).metric, FID(other).metric] == ["fid", "fid_x-1"]
    assert [KID(published).metric, KID(other).metric] == ["kid", "kid_x-1"]
    assert InceptionScore(Projection("inception-2015-12-05-classes")).metric == "inception_score"
    assert InceptionScore(other).metric == "inception_score_x-1"
    assert FrechetVideoDistance(i3d).metric == "fvd"
    assert FrechetVideoDistance(other).metric == "frechet_video_distance_x-1"


def test_a_score_carries_its_passport() -> None:
    """What it was measured with and over, and how sure it is."""
    metric = KID(Projection(), subsets=7, subset_size=5, seed=3, value_range=(0.0, 1.0))
    fed(metric, frames(9) / 255, frames(6, seed=1) / 255)
    passport = metric.score(sampling="every 2nd frame", resize="12x12 area").passport
    assert (passport.metric, passport.count, passport.unit) == ("kid_projection-8", 6, "frames")
    assert (passport.extractor, passport.weights_sha256) == ("projection-8", "ab" * 32)
    assert (passport.sampling, passport.resize) == ("every 2nd frame", "12x12 area")
    assert passport.colour_range == "RGB floats 0..1"
    assert passport.settings == {"references": 9, "subsets": 7, "subset_size": 5, "seed": "3"}


@pytest.mark.parametrize("kind", [FID, FrechetVideoDistance])
def test_a_frechet_distance_of_few_items_says_so(kind: type[FID]) -> None:
    """Of no more items than features, on either side; and the value is told all the same."""
    for made, true, is_few in ((9, 9, False), (8, 9, True), (9, 8, True)):
        metric = kind(Projection(), resamples=0)
        sets = [frames(n, seed=n) for n in (true, made + 1)]
        real, fake = sets[0], sets[1][:made]
        if metric.unit == "clips":
            real, fake = (one[:, None].expand(-1, 2, -1, -1, -1) for one in (real, fake))
        fed(metric, real, fake)
        notes = metric.score().passport.notes
        few = f"8 {metric.unit} are far too few for 8 features: the value is too large"
        assert [note.startswith(few) for note in notes] == [True] * is_few


def test_a_kernel_distance_of_few_frames_says_so() -> None:
    """Below a hundred on either side."""
    for made, true, is_few in ((100, 100, False), (99, 100, True), (100, 99, True)):
        metric = KID(Projection(), subset_size=5, resamples=0)
        fed(metric, frames(true), frames(made, seed=1))
        notes = metric.score().passport.notes
        assert [note.startswith("99 frames are too few") for note in notes] == [True] * is_few


def test_another_reference_is_another_protocol() -> None:
    """The reference's digest depends on its pictures, and not on their order or batches."""
    whole, parts, other = (FID(Projection()) for _ in range(3))
    fed(whole, frames(6), frames(5, seed=1))
    parts.update(frames(6)[4:], real=True)
    fed(parts, frames(6)[:4].permute(0, 3, 1, 2), frames(5, seed=2))
    fed(other, frames(6, seed=9), frames(5, seed=1))
    mine = whole.score().passport
    assert mine.differences(parts.score().passport) == ()
    assert [one.partition(":")[0] for one in mine.differences(other.score().passport)] == [
        "reference"
    ]
    assert whole.score(reference="set 7").passport.reference == "set 7"


def test_features_that_are_no_numbers_are_refused() -> None:
    """The error says whose and which, before anything is kept of them."""
    bad = torch.ones(4, 3)
    bad[2, 1] = math.nan
    metric = FID(Fixed(bad))
    with pytest.raises(VideoError, match="fixed gave NaN or Inf for number 2 of the frames"):
        metric.update(frames(4), real=True)
    with pytest.raises(VideoError, match="a reference of 0"):
        metric.compute()


@pytest.mark.parametrize("features", [torch.ones(3, 2), torch.ones(4), torch.ones(4, 2, 2)])
def test_features_of_another_shape_are_refused(features: Tensor) -> None:
    """There is one row a frame."""
    with pytest.raises(VideoError, match=r"gave features of .* for 4 frames: \(4, D\) is needed"):
        FID(Fixed(features)).update(frames(4), real=True)


def test_too_few_items_are_refused() -> None:
    """The error says how many there are, and how many are needed."""
    metric = FID(Projection())
    with (
        pytest.warns(UserWarning, match="called before the ``update``"),
        pytest.raises(VideoError, match=r"fid_projection-8 over 0 frames and a reference of 0"),
    ):
        metric.compute()
    fed(metric, frames(5), frames(1))
    with pytest.raises(VideoError, match=r"over 1 frames and a reference of 5: give at least 2"):
        metric.score()
    kid = KID(Projection())
    fed(kid, frames(5), frames(12))
    with pytest.raises(VideoError, match="subsets of 1000 and there are 12 generated frames"):
        kid.compute()
    few = KID(Projection(), subset_size=6)
    fed(few, frames(5), frames(12))
    with pytest.raises(VideoError, match="there are 5 reference frames: pass more, or subset_size"):
        few.compute()
    with pytest.raises(VideoError, match="at least 1 of 2 frames"):
        KID(Projection(), subset_size=1)


def test_an_inception_score_is_never_nan() -> None:
    """Also in one split, whose deviation torchmetrics gives as NaN."""
    metric = InceptionScore(Fixed(torch.eye(6) * 1000), splits=1)
    metric.update(frames(6))
    assert float(metric.score()) == pytest.approx(6)
    assert float(metric.compute()) == pytest.approx(6)
    unsure = InceptionScore(Fixed(torch.zeros(6, 4)), splits=3)
    unsure.update(frames(6))
    assert float(unsure.score()) == pytest.approx(1)
    few = InceptionScore(Fixed(torch.zeros(6, 4)))
    few.update(frames(6))
    with pytest.raises(VideoError, match="in 10 splits of 6 frames: pass at least 20 frames, or"):
        few.score()
    with pytest.raises(VideoError, match="0 splits: at least 1"):
        InceptionScore(Projection(), splits=0)


def test_the_inception_score_needs_the_official_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, and without a classifier of the caller's, there is none."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="no weights of inception-2015-12-05 with classes here"):
        InceptionScore()


def test_values_and_intervals_are_the_same_each_time() -> None:
    """By seeds of their own, which leave torch's random numbers alone."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        metrics = [FID(Projection()), KID(Projection(), subset_size=5)]
        for metric in metrics:
            fed(metric, frames(12), frames(12, seed=1, bright=20))
        classes = InceptionScore(Projection(), splits=2)
        classes.update(frames(12))
        every = [one.score() for one in (*metrics, classes)]
        found.append([(float(one), one.passport.interval) for one in every])
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]
    assert all(interval is not None for _, interval in found[0])


def test_the_order_of_the_pictures_does_not_matter() -> None:
    """Nor their batches: what is drawn by a seed is drawn from a set."""
    found = []
    for batches in (frames(12).split(12), frames(12).flip(0).split(5)):
        kid = KID(Projection(), subset_size=5, subsets=3, keep_reference=True)
        kid.update(frames(8, seed=1), real=True)
        classes = InceptionScore(Projection(), splits=2)
        for batch in batches:
            kid.update(batch, real=False)
            classes.update(batch)
        found.append([float(kid.compute()), float(classes.compute())])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_intervals_can_be_turned_off_and_are_where_they_cost_minutes() -> None:
    """A number of draws is a word; without one, large sets have no interval."""
    metric = FID(Projection(), resamples=0)
    fed(metric, frames(5), frames(5, seed=1))
    assert metric.score().passport.interval is None
    wide = FID(Fixed(torch.randn(1025, 1025)))
    fed(wide, frames(1025, size=1), frames(1025, size=1))
    assert wide.score().passport.interval is None
    for resamples, known in ((None, False), (2, True)):
        large = KID(Fixed(torch.randn(2049, 2)), subset_size=2, resamples=resamples)
        fed(large, frames(2049, size=1), frames(2049, size=1))
        assert (large.score().passport.interval is not None) == known


def test_a_collection_looks_at_each_picture_once() -> None:
    """Torchmetrics sees that the metrics keep the same, and asks one network."""
    extractors = [Projection(), Projection()]
    collection = MetricCollection([FID(extractors[0]), KID(extractors[1], subset_size=4)])
    for number in range(4):
        collection.update(frames(3, seed=number), real=number % 2 == 0)
    assert extractors[0].calls + extractors[1].calls == 5  # both are asked the first time
    alone = FID(Projection())
    for number in range(4):
        alone.update(frames(3, seed=number), real=number % 2 == 0)
    scores = {name: metric.score() for name, metric in collection.items()}
    assert scores["FID"] == alone.score()
    assert scores["FID"].passport == alone.score().passport
    assert scores["KID"].passport.count == 6


def test_the_reference_can_stay() -> None:
    """Reset forgets what the model made, and its reference only where nobody wants it kept."""
    kept, plain = FID(Projection(), keep_reference=True), FID(Projection())
    for metric in (kept, plain):
        fed(metric, frames(6), frames(6, seed=1))
    first = kept.score()
    for metric in (kept, plain):
        metric.reset()
        metric.update(frames(6, seed=1), real=False)
    assert kept.score() == first
    assert kept.score().passport == first.passport
    with pytest.raises(VideoError, match="a reference of 0"):
        plain.compute()


def test_clips_are_items_of_their_own() -> None:
    """A Fréchet video distance counts clips, and takes no frames."""
    metric = FrechetVideoDistance(Projection())
    fed(metric, frames(12).reshape(4, 3, 12, 12, 3), frames(9, seed=1).reshape(3, 3, 12, 12, 3))
    passport = metric.score().passport
    assert (passport.count, passport.unit) == (3, "clips")
    assert passport.settings == {"references": 4}
    with pytest.raises(VideoError, match=r"clips of shape \(12, 12, 12, 3\) are not"):
        metric.update(frames(12), real=True)


def test_the_clip_extractor_tells_flicker_from_stillness() -> None:
    """Clips that flicker are farther from still ones than other still ones are."""
    clips = frames(4, size=40)[:, None].repeat(1, 2, 1, 1, 1)
    metric = FrechetVideoDistance(keep_reference=True, resamples=0)
    metric.update(clips[:2], real=True)
    metric.update(clips[2:], real=False)
    still = metric.score()
    assert still.passport.metric == "frechet_video_distance_inception-2015-12-05-mean-diff"
    metric.reset()
    metric.update(torch.stack([clips[2:, 0], 255 - clips[2:, 1]], 1), real=False)
    assert metric.score() > still


def test_two_ranks_measure_what_one_would(tmp_path: Path) -> None:
    """Two processes with half of the pictures each give the values over all, to both."""
    command = [sys.executable, "-m", "tests.metrics.two_ranks"]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT) for rank in range(2)
    ]
    expected = scores(1, 0)
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found.keys() == expected.keys()
        for name, score in expected.items():
            value, passport = found[name]
            assert value == pytest.approx(float(score), rel=1e-6), name
            found_passport = Passport.from_dict(passport)
            assert found_passport.differences(score.passport) == (), name
            assert (found_passport.interval is None) == (score.passport.interval is None), name
