"""Forks processes that mirror a run and kills them -9 at random; prints how many it has hit."""

import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from opusclip_mlops.launch import children_of
from tests.mirrored import Place

for _name in ("holdings.tensorboard", "holdings.wandb", "sinks.tensorboard", "sinks.wandb"):
    # So that a forked process is at work at once.
    importlib.import_module(f"opusclip_mlops.{_name}")


def main(folder: str, kind: str, run_id: str, times: str, seed: str) -> None:
    """Kill one process after another."""
    chance = random.Random(int(seed))
    place = Place(Path(folder))
    hit = 0
    for _number in range(int(times)):
        child = os.fork()
        if not child:
            run = place.client.get_run(run_id)
            place.mirror(run, kind).catch_up(run)
            os._exit(0)
        time.sleep(chance.uniform(0.05, 1.2))
        grandchildren = children_of(child)
        os.kill(child, signal.SIGKILL)
        hit += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if chance.random() < 0.5:
            for pid in grandchildren:
                os.kill(pid, signal.SIGKILL)
    print(hit)


if __name__ == "__main__":
    main(*sys.argv[1:])
