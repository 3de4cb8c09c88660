"""One of W&B's agents, as a process: ENTITY PROJECT SWEEP COUNT PID, which it dies with."""

import sys

from opusclip_mlops.sweeps import leash


def main(arguments: list[str]) -> None:
    """Run trials as W&B says, so many of them."""
    entity, project, sweep, count, parent = arguments
    leash.tie_to(int(parent))
    import wandb

    wandb.agent(sweep, entity=entity or None, project=project or None, count=int(count))


if __name__ == "__main__":
    main(sys.argv[1:])
