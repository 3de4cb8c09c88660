"""The environment `mlflow run` uses: the one that is already installed.

For a project with a python_env.yaml MLflow builds an environment of its own, by pyenv, in a folder
named after the file's content. A link at that place to the virtual environment in use saves the
build, and makes a plain `mlflow run .` work where neither conda nor pyenv is installed.
"""

import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import yaml

from opusclip_mlops.errors import ConfigError

PYTHON_ENV_FILE = "python_env.yaml"
WITHOUT_LINK = "use `mlflow run . --env-manager local`"


@dataclass(frozen=True)
class EnvironmentLink:
    """Where MLflow looks for a project's environment, and the one it finds there.

    `replaced` is another environment that it found until now and that is still there, such as that
    of a second clone; None for none.
    """

    path: Path
    target: Path
    replaced: Path | None = None


def link_environment(project: Path) -> EnvironmentLink:
    """Make `mlflow run` of a project use the virtual environment this process runs in.

    Doing it again changes nothing; a link to another or a deleted environment is replaced, a real
    folder never. `MLFLOW_ENV_ROOT` moves the place, as it does for MLflow.

    Args:
        project: The folder that holds python_env.yaml.

    Raises:
        ConfigError: Not in a virtual environment; python_env.yaml missing or malformed; something
            that is not a link stands in the way; or this MLflow keeps environments elsewhere.
    """
    target = _running_environment()
    path = mlflow_environment_path(project)
    before = path.readlink() if path.is_symlink() and path.exists() else target
    link = EnvironmentLink(path, target, before if before != target else None)
    if link.path.exists() and not link.path.is_symlink():
        raise ConfigError(
            f"{link.path} is an environment MLflow built itself: "
            "keep it, or delete it and link again"
        )
    try:
        _replace_link(link)
    except OSError as error:
        raise ConfigError(f"cannot link {link.path}: {error.strerror}; {WITHOUT_LINK}") from error
    return link


def mlflow_environment_path(project: Path) -> Path:
    """Tell where MLflow looks for a project's environment.

    The name is a hash of python_env.yaml's content and this Python's version, whatever the folder:
    two clones of one project share it.

    Raises:
        ConfigError: python_env.yaml is missing or malformed, or this MLflow names environments
            in another way.
    """
    python_env_file = project / PYTHON_ENV_FILE
    if not python_env_file.is_file():
        raise ConfigError(f"no {PYTHON_ENV_FILE} in {project.absolute()}: give a project's folder")
    try:
        # MLflow has no public names for these; nothing else in the package knows them.
        from mlflow.utils.environment import _PythonEnv
        from mlflow.utils.virtualenv import _get_mlflow_virtualenv_root, _get_virtualenv_name
    except ImportError as error:
        raise ConfigError(
            f"MLflow {version('mlflow')} does not tell where its environments are ({error}): "
            f"{WITHOUT_LINK}"
        ) from error
    try:
        name: str = _get_virtualenv_name(_PythonEnv.from_yaml(python_env_file), project)
    except (TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{python_env_file} is not an environment file: {reason}") from error
    root: str = _get_mlflow_virtualenv_root()
    return Path(root).absolute() / name


def _running_environment() -> Path:
    if sys.prefix == sys.base_prefix:
        raise ConfigError(
            f"{sys.prefix} is not a virtual environment: "
            f"use .venv/bin/opusclip after `make setup`, or {WITHOUT_LINK}"
        )
    # Resolved, because Python may have been started through the very link that is to be made.
    prefix = Path(sys.prefix).resolve()
    if not (prefix / "bin" / "activate").is_file():
        raise ConfigError(f"{prefix} has no bin/activate for MLflow to source: {WITHOUT_LINK}")
    return prefix


def _replace_link(link: EnvironmentLink) -> None:
    if link.path.is_symlink() and link.path.readlink() == link.target:
        return
    link.path.parent.mkdir(parents=True, exist_ok=True)
    new = link.path.with_name(f"{link.path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(link.target, target_is_directory=True)
    new.replace(link.path)
