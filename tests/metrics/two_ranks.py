"""One of two processes of a training: half of the pictures go in, what comes out is written down.

Run as `two_ranks.py RANK FOLDER`; the two find each other by a file in the folder.
"""

import json
import sys
from pathlib import Path

import torch.distributed
from torch import Tensor

from opusclip_mlops.metrics.distribution import FID, KID, FrechetVideoDistance, InceptionScore
from opusclip_mlops.metrics.feature_sets import FeatureMetric
from opusclip_mlops.metrics.lpips import LPIPS
from opusclip_mlops.passports import Score
from tests.metrics.extractors import Projection, frames

REAL, FAKE = frames(21, seed=1), frames(14, seed=2, bright=40)


def scores(ranks: int, rank: int) -> dict[str, Score]:
    """Every metric's score over all, of which this rank has seen its share."""
    real, fake = REAL[rank::ranks], FAKE[rank::ranks]
    made = [FID(Projection()), KID(Projection(), subset_size=10, subsets=5)]
    for metric in made:
        feed(metric, real, fake)
    late = FID(Projection("late"))  # the reference is with the first rank alone
    feed(late, REAL if rank == 0 else None, fake)
    video = FrechetVideoDistance(Projection())
    feed(video, clips(REAL)[rank::ranks], clips(FAKE[:12])[rank::ranks])
    classes = InceptionScore(Projection(), splits=2)
    classes.update(fake)
    pairs = LPIPS("alex")
    pairs.update(pairs_of(fake), pairs_of(fake).flip(1))
    single = LPIPS("alex")  # the second rank has no pictures
    if rank == 0:
        single.update(pairs_of(FAKE), pairs_of(FAKE).flip(1))
    every = [*made, late, video, classes, pairs]
    found = {score.passport.metric: score for score in (one.score() for one in every)}
    return {**found, "single": single.score()}


def clips(pictures: Tensor) -> Tensor:
    """Three frames each."""
    return pictures.reshape(-1, 3, *pictures.shape[1:])


def pairs_of(small: Tensor) -> Tensor:
    """Large enough for LPIPS."""
    return small.repeat_interleave(4, 1).repeat_interleave(4, 2)


def feed(metric: FeatureMetric, real: object, fake: object) -> None:
    """Both sets, where there are any."""
    if real is not None:
        metric.update(real, real=True)
    metric.update(fake, real=False)


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    found = scores(2, rank)
    written = {name: [float(one), one.passport.to_dict()] for name, one in found.items()}
    (folder / f"{rank}.json").write_text(json.dumps(written))
    torch.distributed.destroy_process_group()
