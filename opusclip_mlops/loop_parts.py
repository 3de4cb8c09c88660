"""The parts of a training loop, and which of them a timed operation is."""

LOOP = "loop"
"""The category of the parts of a training loop."""

WORKERS = "workers/"
"""Begins the category of what was timed in a child process of the one that trains."""

DATA, FORWARD, BACKWARD, OPTIMIZER = "data", "forward", "backward", "optimizer"
EVALUATION, CHECKPOINT, COPY, COMPUTE = "evaluation", "checkpoint", "copy", "compute"

_BY_CATEGORY = {
    **dict.fromkeys(("data", "data_loading", "dataloader", "loading"), DATA),
    **dict.fromkeys(("copy", "copies", "transfer"), COPY),
    **dict.fromkeys(("evaluation", "eval", "validation"), EVALUATION),
    **dict.fromkeys(("compute", "model", "training"), COMPUTE),
    **{one: one for one in (FORWARD, BACKWARD, OPTIMIZER, CHECKPOINT)},
}
PARTS = tuple(dict.fromkeys(_BY_CATEGORY.values()))


def part_of(category: str, name: str) -> str | None:
    """Which part of a loop an operation is, None where it is none of them.

    `loop/<part>` says it itself; elsewhere the category does, such as `data` or `validation`.
    """
    if category == LOOP:
        return name if name in PARTS else None
    return _BY_CATEGORY.get(category)
