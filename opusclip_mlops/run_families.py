"""What a run and its nested runs are called together: W&B's group of them."""

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from opusclip_mlops.refusals import is_for_good

PARENT_TAG = "mlflow.parentRunId"
"""Names the run that a run is nested in."""

_MOST_GENERATIONS = 32
_FAMILY_CHARACTERS = 100


def family_of(client: MlflowClient, run: Run) -> str:
    """A name for a run with its nested runs, empty for one that stands alone."""
    if not run.data.tags.get(PARENT_TAG) and not _has_children(client, run):
        return ""
    root_id, root = _root(client, run)
    name = (root.info.run_name or "run") if root else "run"
    return f"{name[:_FAMILY_CHARACTERS]}-{root_id[:8]}"


def _root(client: MlflowClient, run: Run) -> tuple[str, Run | None]:
    """The oldest ancestor; of ancestors in a ring, or without end, one that all would name."""
    line = {run.info.run_id: run}
    while parent_id := run.data.tags.get(PARENT_TAG):
        if parent_id in line or len(line) >= _MOST_GENERATIONS:
            ring = list(line)[list(line).index(parent_id) :] if parent_id in line else list(line)
            return min(ring), line[min(ring)]
        try:
            run = client.get_run(parent_id)
        except MlflowException as error:
            if not is_for_good(error):
                raise
            return parent_id, None
        line[parent_id] = run
    return run.info.run_id, run


def _has_children(client: MlflowClient, run: Run) -> bool:
    query = f"tags.`{PARENT_TAG}` = '{run.info.run_id}'"
    return bool(client.search_runs([run.info.experiment_id], query, max_results=1))
