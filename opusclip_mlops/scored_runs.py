"""Scores that were measured outside a run, such as by hand, put into it with their passports."""

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Metric

from opusclip_mlops import layout
from opusclip_mlops.named_runs import run_called
from opusclip_mlops.passports import PASSPORTS_KEY, Score, encoded, passports_of
from opusclip_mlops.patience import ask_briefly, connected, patiently
from opusclip_mlops.records import check_key, now_ms, to_step


@dataclass(frozen=True)
class FoundRun:
    """A run of MLflow that was looked for.

    Attributes:
        run_id: Its id.
        client: Who asks MLflow about it.
    """

    run_id: str
    client: MlflowClient


def find_run(name: str, *, tracking_uri: str | None = None) -> FoundRun:
    """The run that is meant: by its id, its name, or a unique beginning of one.

    Raises:
        RegistryError: No run is called so, several are, or MLflow does not answer.
    """
    ask_briefly()
    client = connected(tracking_uri=tracking_uri)
    run = patiently(f"cannot find run {name}", lambda: run_called(client, name))
    return FoundRun(run.info.run_id, client)


def log_scores(run: FoundRun, scores: Mapping[str, Score], *, step: int, prefix: str = "") -> None:
    """Add scores to a run, whether it has ended or not.

    The run's mirrors get them when they are brought up to date the next time.

    Args:
        run: Which.
        scores: By key.
        step: At which step.
        prefix: What stands before each key, such as "eval/".

    Raises:
        RegistryError: MLflow refuses, or does not answer.
        RecordError: A key that MLflow would refuse, or a step beyond 64 bits.
    """
    named = {f"{prefix}{key}": score for key, score in scores.items()}
    for key in named:
        check_key(key)
    at, timestamp_ms = to_step(step), now_ms()
    text = encoded(passports_of(named))
    path = layout.text_path(PASSPORTS_KEY, at, timestamp_ms, text)
    points = [Metric(key, float(score), timestamp_ms, at) for key, score in named.items()]
    what = f"cannot log scores to run {run.run_id}"
    # The passports first: a value never stands there without its own.
    patiently(what, lambda: run.client.log_text(run.run_id, text, path))
    patiently(what, lambda: run.client.log_batch(run.run_id, points))
