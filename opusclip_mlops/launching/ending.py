"""What MLflow is told of a launch: that it goes on, and how it ended."""

from mlflow.entities import Run, RunStatus

from opusclip_mlops import operating
from opusclip_mlops.asking import told_in_one_line
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.launching.outcomes import Ending
from opusclip_mlops.launching.workplace import Plan
from opusclip_mlops.layout import REASON_TAG
from opusclip_mlops.patience import connected


def go_on(plan: Plan) -> None:
    """Have the run go on that an earlier attempt may have ended.

    Raises:
        RegistryError: MLflow does not answer, or has no such run.
    """
    with told_in_one_line(f"cannot begin run {plan.run_id} again"):
        client = connected(tracking_uri=plan.tracking_uri)
        if client.get_run(plan.run_id).info.status != "RUNNING":
            client.update_run(plan.run_id, status="RUNNING")


def settle(plan: Plan, ending: Ending, *, delivery_wait_s: float) -> None:
    """Tell MLflow how a run ended, once what its ranks logged has arrived.

    What a tracker said of its own end stays, unless it is known better here: that all is not well,
    or why its process was told to end.

    Args:
        plan: What was run.
        ending: How it ended.
        delivery_wait_s: How long to wait for what is on its way, in seconds.

    Raises:
        RegistryError: MLflow does not answer, or has no such run.
    """
    deliver(plan, wait_s=delivery_wait_s)
    with told_in_one_line(f"cannot say how run {plan.run_id} ended"):
        client = connected(tracking_uri=plan.tracking_uri)
        run = client.get_run(plan.run_id)
        is_over = RunStatus.is_terminated(RunStatus.from_string(run.info.status))
        if is_over and not _is_known_better(plan, ending, run):
            return
        if ending.reason:
            client.set_tag(plan.run_id, REASON_TAG, ending.reason)
        client.set_terminated(plan.run_id, ending.status, run.info.end_time if is_over else None)


def _is_known_better(plan: Plan, ending: Ending, run: Run) -> bool:
    """Whether the launch knows more of a run's end than the tracker that said how it was.

    A rank that was ended for another's failure, by a cancellation, or because its supervisor here
    was killed, knows SIGTERM only.
    """
    status, said = run.info.status, run.data.tags.get(REASON_TAG, "")
    if ending.is_good or status == "FAILED":
        return False
    if status == "FINISHED":
        return not ending.is_guess
    if ending.is_guess and plan.config.kind != "local":
        return False
    return said.endswith("ended by SIGTERM") or (ending.status == "FAILED" and "SIGTERM" in said)


def deliver(plan: Plan, *, wait_s: float) -> None:
    """Deliver what the run's ranks left in their journal here, for as long as that.

    What has not arrived by then goes on being delivered, as long as this machine lets it.
    """
    journal_dir = operating.configured_journal_dir()
    if not (journal_dir / plan.run_id).is_dir():
        return
    try:
        operating.recover([plan.run_id], journal_dir=journal_dir, timeout_s=wait_s)
    except (OpusclipError, OSError):
        # Delivered meanwhile, left to an operator, or on a full disk: the end is told all the same.
        return
