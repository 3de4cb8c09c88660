"""A worker that stages clips, and writes the same bytes once, by turns.

    python clipping.py <kind> <folder>

The kind is what a model makes of sixteen RGB pictures of 256 x 256, (T, C, H, W). A request is how
often (`rounds`); the answer holds, round by round, the nanoseconds that `media.stage` took in this
thread, those of one `os.write` of the tensor's bytes to a new file in the same folder, and those of
what was done before clips were staged as they are: conversion to RGB bytes, and numpy's own file.
"""

import os
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.workers import Answers, requests

SHAPE = (16, 3, 256, 256)
FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def main(kind: str, folder: Path) -> None:
    """Answer requests until there are none."""
    answers = Answers()
    ways = _ways(_clip(kind), folder)
    answers.tell()
    for request in requests():
        taken_ns = {name: array("q") for name in ways}
        for number in range(request["rounds"]):
            names = list(ways)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                taken_ns[name].append(_timed_ns(ways[name]))
        answers.tell(**{name: taken.tolist() for name, taken in taken_ns.items()})


def _clip(kind: str) -> Any:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    values = torch.rand(SHAPE)
    if kind == "uint8":
        return (values * 255).byte()
    return {"list": list(values), "bfloat16": values.bfloat16()}.get(kind, values)


def _ways(clip: Any, folder: Path) -> dict[str, Callable[[], Path]]:
    import numpy as np
    import torch

    from opusclip_mlops import media
    from opusclip_mlops.folder import Manifest, RunFolder
    from opusclip_mlops.pixels import to_frames

    run = RunFolder(folder / "run")
    run.create(Manifest(local_id="run", cwd="/", sinks=[], start_time_ms=1))
    tensor = torch.stack(clip) if isinstance(clip, list) else clip
    content = tensor.view(torch.uint8).numpy().data.cast("B")
    bare, converted = run.media / "bare", run.media / "converted.npy"

    def write_once() -> Path:
        descriptor = os.open(bare, FILE_FLAGS, 0o600)
        os.write(descriptor, content)
        os.close(descriptor)
        return bare

    def convert() -> Path:
        np.save(converted, to_frames(clip))
        return converted

    def stage() -> Path:
        return run.media / media.stage(run, clip, value_range=(0.0, 1.0))

    return {"staged": stage, "written": write_once, "converted": convert}


def _timed_ns(way: Callable[[], Path]) -> int:
    began_ns = time.perf_counter_ns()
    made = way()
    taken_ns = time.perf_counter_ns() - began_ns
    made.unlink()
    return taken_ns


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
