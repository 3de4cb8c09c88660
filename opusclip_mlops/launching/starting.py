"""Starting what was planned: here, by Slurm, or by Kubernetes; or only saying what would be."""

import os
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path

import yaml

from opusclip_mlops.errors import ConfigError, OpusclipError
from opusclip_mlops.launching import commands, manifest, sbatch, slurm
from opusclip_mlops.launching.kubernetes import Cluster
from opusclip_mlops.launching.local import endpoint, start_supervisor
from opusclip_mlops.launching.submitted import KubernetesLaunch, LocalLaunch, SlurmLaunch, Watched
from opusclip_mlops.launching.workplace import Plan, Submitted, Workplace, folder_for

_TRAINING, _CLOSING = "train.sh", "close.sh"


def rendered(plan: Plan) -> str:
    """What would be run or submitted, to be read.

    Raises:
        ConfigError: it cannot be run there.
    """
    if plan.config.kind == "kubernetes":
        return _yaml(plan)
    folder = folder_for(plan.config, plan.cwd, plan.run_id)
    if plan.config.kind == "slurm":
        return _for_slurm(plan, folder)
    arguments = commands.torchrun_arguments(
        plan.config, plan.program, meeting_id=plan.run_id, endpoint=endpoint(plan.config)
    )
    words = [f"{name}={value}" for name, value in plan.environment.items()]
    return shlex.join(["env", f"--chdir={plan.cwd}", *words, "torchrun", *arguments]) + "\n"


def _for_slurm(plan: Plan, folder: Path) -> str:
    """The script that trains; behind it, as comments, how it is submitted, and the closing one."""
    scripts = _in_order(plan, folder / _TRAINING, folder / _CLOSING)
    calls = (
        slurm.sbatch_words(script, cwd=plan.cwd, after="JOB" if number else "")
        for number, script in enumerate(scripts)
    )
    more = [
        "The jobs, each after the one before it, JOB:",
        *map(shlex.join, calls),
        "",
        f"{_CLOSING}:",
        *sbatch.closing_script(plan, folder).splitlines(),
    ]
    commented = (f"# {line}".rstrip() for line in more)
    return "\n".join([sbatch.training_script(plan, folder), *commented, ""])


def _in_order(plan: Plan, training: Path, closing: Path) -> list[Path]:
    """The jobs of a launch: those that train, then the one that tells MLflow."""
    return [training] * plan.config.chain + [closing]


def check(plan: Plan) -> None:
    """Refuse what cannot be launched from here, before a run is made for it.

    Raises:
        ConfigError: a variable is missing, or where it runs nobody reaches MLflow.
    """
    config, uri = plan.config, plan.tracking_uri or ""
    if missing := [name for name in config.pass_env if _is_missing(name, plan)]:
        raise ConfigError(f"pass_env names {', '.join(missing)}, which is not set here")
    if config.kind == "kubernetes":
        manifest.manifests(plan)
    if config.kind == "slurm" and config.nodes > 1 and uri.startswith("sqlite"):
        raise ConfigError(
            f"{config.nodes} nodes cannot share {uri}: "
            "set MLFLOW_TRACKING_URI to a server's address"
        )


def start(place: Workplace, plan: Plan, *, tied: bool, secrets: Mapping[str, str]) -> Watched:
    """Start it.

    Args:
        place: Its folder.
        plan: What it says.
        tied: Whether a launch on this machine ends with this process.
        secrets: What the ranks find in their environment, and in no file.

    Raises:
        OpusclipError: it could not be started; then nothing of it runs.
        OSError: what is started could not be written down; then nothing of it runs either.
    """
    if plan.config.kind == "slurm":
        return _submitted(place, plan, secrets)
    if plan.config.kind == "kubernetes":
        place.write_script("job.yaml", _yaml(plan))
        # First: where that cannot be written, nothing runs.
        place.write_submitted(Submitted(jobs=[manifest.name_of(plan)]))
        Cluster(plan).create()
        place.note_started()
        return KubernetesLaunch(place)
    return _supervised(place, plan, tied=tied, secrets=secrets)


def _is_missing(name: str, plan: Plan) -> bool:
    return plan.config.kind != "kubernetes" and name not in os.environ


def _submitted(place: Workplace, plan: Plan, secrets: Mapping[str, str]) -> SlurmLaunch:
    """Each job after the one before it, however that ended; then the one that tells MLflow."""
    training = place.write_script(_TRAINING, sbatch.training_script(plan, place.path))
    closing = place.write_script(_CLOSING, sbatch.closing_script(plan, place.path))
    jobs: list[str] = []
    try:
        for script in _in_order(plan, training, closing):
            after = jobs[-1] if jobs else ""
            jobs.append(slurm.submit(script, cwd=plan.cwd, after=after, secrets=secrets))
            place.write_submitted(Submitted(jobs=jobs[: plan.config.chain]))
        place.write_submitted(Submitted(jobs=jobs[:-1], closing=jobs[-1]))
    except (OpusclipError, OSError, KeyboardInterrupt):
        slurm.cancel(jobs)
        raise
    return SlurmLaunch(place)


def _supervised(
    place: Workplace, plan: Plan, *, tied: bool, secrets: Mapping[str, str]
) -> LocalLaunch:
    supervisor = start_supervisor(place, plan, tied=tied, secrets=secrets)
    launched = LocalLaunch(place, supervisor)
    try:
        # Where it dies before it can say that it began, others see that it is gone.
        place.write_submitted(Submitted(jobs=[f"{socket.gethostname()}:{supervisor.pid}"]))
    except (OSError, KeyboardInterrupt):
        launched.cancel()
        raise
    return launched


def _yaml(plan: Plan) -> str:
    return yaml.safe_dump_all(manifest.manifests(plan), sort_keys=False, width=1000)
