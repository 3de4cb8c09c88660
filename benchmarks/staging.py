"""Part `staging`: what a clip of sixteen pictures of 256 x 256 costs the training thread.

`media.stage`, which `log_video` calls, beside one write of the same bytes to a file on the same
disk, by turns in one process, and beside converting the clip before it is written. What the shipper
does with it later is not the training thread's.
"""

import statistics
from pathlib import Path

from benchmarks.figures import Figure, interval_of, paired_ratios
from benchmarks.processes import Worker

PART = "staging"
PROMISED = {"float32": 2.0, "uint8": 2.0}
KINDS = (*PROMISED, "bfloat16", "list")
WARM_UP_ROUNDS = 5
ROUNDS, QUICK_ROUNDS = 200, 30
PEERS = {"written": "one write", "converted": "converted first"}


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Stage clips of each kind."""
    found = []
    for kind in KINDS:
        with Worker("clipping.py", kind, str(folder / kind), folder=folder / kind) as worker:
            worker.ask(rounds=WARM_UP_ROUNDS)
            answer = worker.ask(rounds=QUICK_ROUNDS if quick else ROUNDS)
        found += [_figure(kind, answer, peer) for peer in PEERS]
    return found


def _figure(kind: str, taken_ns: dict[str, list[int]], peer: str) -> Figure:
    staged, theirs = taken_ns["staged"], taken_ns[peer]
    return Figure(
        part=PART,
        what=f"staging a clip, {kind}",
        ours=statistics.median(staged) / 1e6,
        unit="ms",
        peer=PEERS[peer],
        theirs=statistics.median(theirs) / 1e6,
        at_most=PROMISED.get(kind) if peer == "written" else None,
        interval=interval_of(paired_ratios(staged, theirs)),
    )
