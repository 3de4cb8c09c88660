"""Benchmarks: what is promised of the package, measured beside its peers in one run.

    make bench                               everything, about ten minutes on two cores
    make bench BENCH_ARGS="--only cost"      one part: cost, loop, staging, delivery, memory,
                                             freshness, mirror_history, mirroring
    make bench BENCH_ARGS=--quick            everything, small
    python -m benchmarks.scaling             how far it goes, 20 minutes: docs/scaling.md

Each part is a file; what is timed runs in worker processes of its own (`callers`, `looping`,
`clipping`, `delivering`, `replaying`). `figures` judges and prints, `processes` starts, pauses and
ends the workers.
"""
