"""What a launch is to be: one JSON object for every place, checked before anything is started."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.redaction import redacted

Kind = Literal["local", "slurm", "kubernetes"]

_SECRET_NAME = re.compile(r"(?i)(PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_KEY)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MEMORY = re.compile(r"[1-9][0-9]*[MGT]")
_TIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/:@-]*")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_WORDS = ("account", "qos", "image", "context")
_LABELS = ("namespace", "secret", "volume_claim")
_LIST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/:@,-]*")
_OURS = ("BASH_ENV", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")
_LONGEST_GRACE_S = 65_000
TELLING_S = 30
"""What telling the end takes after the ranks' own grace, in seconds; Slurm is as exact as that."""
_AT_LEAST_ONE = ("nodes", "processes_per_node", "cpus", "chain", "grace_s", "fs_group")


class LaunchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is started, and where. What belongs to another kind of place is left alone.

    Attributes:
        kind: "local" for this machine, "slurm" or "kubernetes".
        nodes: How many machines; 1 for local.
        processes_per_node: How many ranks on each.
        cpus: Cores of each node.
        gpus: GPUs of each node.
        memory: Of each node, in binary units: "500M", "64G", "1T".
        time_limit: "HH:MM:SS" or "D-HH:MM:SS"; of one job, where several are chained.
        restarts: How often torchrun starts all ranks anew after one failed; on Kubernetes also how
            often a lost pod is replaced.
        grace_s: How many seconds before the end of its time a job is told, and how long ranks may
            take to end.
        env: Variables of the ranks, which stand in the script: nothing secret.
        pass_env: Names of variables that are taken from the environment `mlflow run` is called in,
            on Kubernetes from `secret`. Their values stand in no file.
        python: The interpreter; the one in use by default, "python" on Kubernetes.
        port: Where the ranks meet on the first node; by the job's number on Slurm, else 29500.
        folder: Where scripts, logs and how it ended lie: `.opusclip/launches` of the project by
            default. On Slurm all nodes have to see it.
        wait: Whether `mlflow run` waits for the end and has its exit code: for local only, unless
            it says otherwise.
        dry_run: Print what would be run or submitted, and do nothing.
        partition: Slurm's partition.
        account: Slurm's account.
        qos: Slurm's quality of service.
        requeue: Whether Slurm may put a job back into the queue when its node fails or it is
            preempted. It goes on in the same run.
        chain: How many jobs follow each other until the training is finished, for wall-time limits.
        image: The container's image, with the project in it.
        workdir: The project's folder in the image.
        namespace: Kubernetes' namespace.
        context: kubectl's context.
        secret: The Secret that holds the variables of `pass_env`.
        volume_claim: The PersistentVolumeClaim for what is on its way to MLflow; a folder that goes
            with its pod by default.
        fs_group: The group that may write to the claim, for an image that is not root's.
    """

    kind: Kind = "local"
    nodes: int = 1
    processes_per_node: int = 1
    cpus: int | None = None
    gpus: int | None = None
    memory: str | None = None
    time_limit: str | None = None
    restarts: int = 0
    grace_s: int = 60
    env: dict[str, str] = {}
    pass_env: list[str] = []
    python: str | None = None
    port: int | None = None
    folder: str | None = None
    wait: bool | None = None
    dry_run: bool = False
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    requeue: bool = True
    chain: int = 1
    image: str | None = None
    workdir: str | None = None
    namespace: str = "default"
    context: str | None = None
    secret: str | None = None
    volume_claim: str | None = None
    fs_group: int | None = None

    @property
    def time_limit_s(self) -> int | None:
        """The time limit in seconds, None for none."""
        return None if self.time_limit is None else _seconds(self.time_limit)

    @property
    def is_waited_for(self) -> bool:
        """Whether who launches it also waits for its end."""
        return self.kind == "local" if self.wait is None else self.wait


def checked(values: Mapping[str, Any]) -> LaunchConfig:
    """The configuration that a JSON object stands for.

    Raises:
        ConfigError: a key that is not known (the nearest one is named), or a value that cannot be.
    """
    for key in values:
        if key not in LaunchConfig.__struct_fields__:
            near = difflib.get_close_matches(str(key), LaunchConfig.__struct_fields__, 1, 0.0)[0]
            raise ConfigError(f"unknown key {str(key)!r:.60} in the backend's config: {near}?")
    if isinstance(kind := values.get("kind", "local"), str) and kind not in get_args(Kind):
        raise ConfigError(f"kind is {kind!r:.60}: choose from {', '.join(get_args(Kind))}")
    try:
        config = msgspec.convert(dict(values), LaunchConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the backend's config: {error}") from None
    _check(config)
    return config


def _check(config: LaunchConfig) -> None:
    for key in _AT_LEAST_ONE:
        if (number := getattr(config, key)) is not None and number < 1:
            raise ConfigError(f"{key} is {number}, and has to be at least 1")
    for key in ("gpus", "restarts"):
        if (number := getattr(config, key)) is not None and number < 0:
            raise ConfigError(f"{key} is {number}, and cannot be negative")
    if config.grace_s > _LONGEST_GRACE_S:
        raise ConfigError(
            f"grace_s is {config.grace_s}, and Slurm takes {_LONGEST_GRACE_S} at most"
        )
    if config.port is not None and not 1024 <= config.port <= 65535:
        raise ConfigError(f"port is {config.port}, and has to be from 1024 to 65535")
    _check_words(config)
    _check_variables(config)
    _check_place(config)


def _check_words(config: LaunchConfig) -> None:
    if config.memory is not None and not _MEMORY.fullmatch(config.memory):
        raise ConfigError(f'memory is {config.memory!r:.40}: write it like "64G" or "500M"')
    if config.time_limit is not None and not _seconds(config.time_limit):
        raise ConfigError(
            f'time_limit is {config.time_limit!r:.40}: write it like "12:00:00" or "2-00:00:00"'
        )
    for keys, pattern, what in (
        (("partition",), _LIST, "a name"),
        (_WORDS, _WORD, "a name"),
        (_LABELS, _DNS_LABEL, "a DNS label"),
    ):
        for key in keys:
            if (word := getattr(config, key)) is not None and not pattern.fullmatch(word):
                raise ConfigError(f"{key} is {word!r:.60}, which is not {what}")
    for key in ("python", "folder", "workdir"):
        word = getattr(config, key)
        if word is not None and (not word or not word.isprintable()):
            raise ConfigError(f"{key} is {word!r:.60}, which is no path")


def _check_variables(config: LaunchConfig) -> None:
    for name in (*config.env, *config.pass_env):
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"{name!r:.60} is no name of a variable")
    for name, value in config.env.items():
        if name in _OURS:
            raise ConfigError(f"env.{name} is not for a launch to set: leave it out")
        if _SECRET_NAME.search(name) or redacted(value, values=()) != value:
            raise ConfigError(
                f"env.{name} looks like a secret, and would stand in a file: put {name} into "
                "pass_env, and its value into the environment"
            )
        if not value.isprintable():
            raise ConfigError(f"env.{name} has characters that cannot be printed")


def _check_place(config: LaunchConfig) -> None:
    if config.kind == "local" and config.nodes != 1:
        raise ConfigError(f"nodes is {config.nodes}, and kind local has this machine only")
    if config.kind == "slurm" and config.time_limit_s is not None:
        needed_s = config.grace_s + TELLING_S
        if config.time_limit_s <= needed_s:
            raise ConfigError(
                f"time_limit is {config.time_limit}, and ending alone takes {needed_s} s: "
                "give it more time, or grace_s less"
            )
    if config.kind != "kubernetes":
        return
    if config.image is None:
        raise ConfigError("kind kubernetes needs image: the container with the project in it")
    if config.pass_env and config.secret is None:
        raise ConfigError(
            "pass_env needs secret on Kubernetes: the Secret that holds "
            + ", ".join(sorted(config.pass_env))
        )


def _seconds(text: str) -> int:
    """Seconds of "D-HH:MM:SS"; 0 where it is nothing of the kind."""
    if not (found := _TIME.fullmatch(text)):
        return 0
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
