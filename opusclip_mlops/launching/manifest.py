"""What Kubernetes is given: a Service by which the pods meet, and an indexed Job of one a node."""

from typing import Any

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.launching import commands
from opusclip_mlops.launching.settings import LaunchConfig
from opusclip_mlops.launching.workplace import Plan, python_of

PORT = 29500
KEPT_S = 7 * 24 * 3600
"""How long a Job that is over can still be read, in seconds."""

_OUTCOME = "/dev/termination-log"
_PLACE = "/var/lib/opusclip"
_USAGE = 2
_LOCAL_SCHEMES = ("sqlite", "file")
Manifest = dict[str, Any]


def name_of(plan: Plan) -> str:
    """What the Job and the Service of a run are called."""
    return f"opusclip-{plan.run_id[:16]}"


def manifests(plan: Plan) -> list[Manifest]:
    """The Service, then the Job.

    Raises:
        ConfigError: pods could not reach the MLflow server from where they are.
    """
    _check_reachable(plan)
    return [_service(plan), _job(plan)]


def _check_reachable(plan: Plan) -> None:
    uri = plan.tracking_uri
    if uri is None and "MLFLOW_TRACKING_URI" not in plan.config.pass_env:
        raise ConfigError(
            "MLflow's address holds a password and cannot stand in the manifest: put "
            "MLFLOW_TRACKING_URI into the Secret and into pass_env"
        )
    if uri is not None and (uri.partition(":")[0] in _LOCAL_SCHEMES or ":" not in uri):
        raise ConfigError(f"no pod reaches {uri}: set MLFLOW_TRACKING_URI to a server's address")


def _service(plan: Plan) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(plan),
        "spec": {
            "clusterIP": "None",
            # The ranks meet before any of them could be ready.
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": name_of(plan)},
            "ports": [{"name": "meeting", "port": _port(plan.config)}],
        },
    }


def _job(plan: Plan) -> Manifest:
    config = plan.config
    limit_s = config.time_limit_s
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(plan),
        "spec": {
            "completionMode": "Indexed",
            "completions": config.nodes,
            "parallelism": config.nodes,
            "backoffLimitPerIndex": config.restarts,
            "maxFailedIndexes": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules()},
            **({"activeDeadlineSeconds": limit_s} if limit_s else {}),
            "ttlSecondsAfterFinished": KEPT_S,
            "template": {"metadata": {"labels": _labels(plan)}, "spec": _pod(plan)},
        },
    }


def _failure_rules() -> list[Manifest]:
    """A pod that was evicted or preempted counts for nothing; a wrong command is not repeated."""
    return [
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "ranks", "operator": "In", "values": [_USAGE]},
        },
    ]


def _pod(plan: Plan) -> Manifest:
    config = plan.config
    claim = config.volume_claim
    kept = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    return {
        "restartPolicy": "Never",
        "subdomain": name_of(plan),
        "terminationGracePeriodSeconds": config.grace_s + 30,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _security(config),
        "containers": [_container(plan)],
        "volumes": [
            {"name": "journal", **kept},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _security(config: LaunchConfig) -> Manifest:
    """A volume that has the group already is not gone through, file by file, for each pod."""
    group = {"fsGroup": config.fs_group, "fsGroupChangePolicy": "OnRootMismatch"}
    return {
        "seccompProfile": {"type": "RuntimeDefault"},
        **(group if config.fs_group else {}),
    }


def _container(plan: Plan) -> Manifest:
    config = plan.config
    return {
        "name": "ranks",
        "image": config.image,
        **({"workingDir": config.workdir} if config.workdir else {}),
        "command": _command(plan),
        "env": _environment(plan),
        "ports": [{"name": "meeting", "containerPort": _port(config)}],
        "resources": _resources(config),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": _OUTCOME,
        "volumeMounts": [
            {"name": "journal", "mountPath": _PLACE},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def _command(plan: Plan) -> list[str]:
    """One list of words; `$(…)` of a parameter's value is not Kubernetes' to fill in."""
    name = name_of(plan)
    arguments = commands.torchrun_arguments(
        plan.config,
        plan.program,
        meeting_id=plan.run_id,
        endpoint=f"{name}-0.{name}:{_port(plan.config)}",
    )
    words = [*python_of(plan.config, ""), commands.AGENT, _OUTCOME, *arguments]
    return [word.replace("$", "$$") for word in words]


def _environment(plan: Plan) -> list[Manifest]:
    config = plan.config
    name = name_of(plan)
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    plain = {
        **{key: value.replace("$", "$$") for key, value in plan.environment.items()},
        "MASTER_ADDR": f"{name}-0.{name}",
        # A journal of its own for each pod: they may share the volume.
        "OPUSCLIP_JOURNAL_DIR": f"{_PLACE}/$(OPUSCLIP_NODE)/journal",
    }
    passed = [one for one in config.pass_env if one not in plain]
    return [
        {"name": "OPUSCLIP_NODE", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        *({"name": key, "value": value} for key, value in plain.items()),
        *(
            {"name": key, "valueFrom": {"secretKeyRef": {"name": config.secret, "key": key}}}
            for key in passed
        ),
    ]


def _resources(config: LaunchConfig) -> Manifest:
    """What is asked for is what may be used: a node is not shared beyond it."""
    amounts = {
        "cpu": config.cpus and str(config.cpus),
        "memory": config.memory and f"{config.memory}i",
        "nvidia.com/gpu": config.gpus and str(config.gpus),
    }
    wanted = {name: amount for name, amount in amounts.items() if amount}
    return {"requests": wanted, "limits": wanted} if wanted else {}


def _metadata(plan: Plan) -> Manifest:
    return {
        "name": name_of(plan),
        "namespace": plan.config.namespace,
        "labels": _labels(plan),
    }


def _labels(plan: Plan) -> dict[str, str]:
    return {"app.kubernetes.io/name": "opusclip", "opusclip/run": plan.run_id}


def _port(config: LaunchConfig) -> int:
    return config.port or PORT
