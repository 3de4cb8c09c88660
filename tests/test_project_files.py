"""The files round the package say the same thing as the package."""

import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import distribution
from itertools import chain
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from mlflow.projects._project_spec import load_project
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
CONDA = yaml.safe_load((ROOT / "conda.yaml").read_text())
PYTHON_ENV = yaml.safe_load((ROOT / "python_env.yaml").read_text())
MLPROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRY_POINTS = {"main": "train", "evaluate": "evaluate", "sweep": "sweep"}
# What the GPU builds of torch bring along is chosen by torch itself, not by us.
GPU_PARTS = re.compile(r"^(nvidia-(?!ml-py)|cuda-|triton)")


def pins() -> dict[str, str]:
    """The version of each package in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def required() -> list[Requirement]:
    """All that pyproject.toml asks for, the extras included."""
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for text in [*PROJECT["dependencies"], *chain(*extras)]]


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """The names of everything that installing the requirements brings into this environment."""
    found: set[str] = set()
    waiting = [(requirement.name, "") for requirement in requirements]
    waiting += [(r.name, extra) for r in requirements for extra in r.extras]
    seen = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen or GPU_PARTS.match(name):
            continue
        seen.add((name, extra))
        found.add(canonicalize_name(name))
        for text in distribution(name).requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed.name, each) for each in ("", *needed.extras)]
    return found


def test_conda_and_python_env_install_the_same_thing() -> None:
    """Both leave the list of packages to pyproject.toml, with the same extras."""
    [pip] = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    assert pip == PYTHON_ENV["dependencies"] == ["-e .[sample]"]
    assert (
        Requirement(pip[0].replace("-e .", "x")).extras <= PROJECT["optional-dependencies"].keys()
    )


def test_the_environment_files_list_no_packages_of_their_own() -> None:
    """Beside the project itself they name only what is needed to install it."""
    assert PYTHON_ENV.keys() == {"build_dependencies", "dependencies"}
    assert PYTHON_ENV["build_dependencies"] == ["pip", "setuptools", "wheel"]
    assert CONDA.keys() == {"name", "channels", "dependencies"}
    python, pip, _ = CONDA["dependencies"]
    assert pip == "pip"
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))


def test_the_project_has_one_name() -> None:
    """MLproject, conda.yaml and pyproject.toml mean the same project."""
    names = {MLPROJECT["name"], CONDA["name"], PROJECT["name"]}
    assert {canonicalize_name(name) for name in names} == {PROJECT["name"]}


def test_mlproject_leaves_the_environment_to_python_env_yaml() -> None:
    """An environment key would bind `mlflow run` to one tool."""
    assert MLPROJECT.keys() == {"name", "entry_points"}


@pytest.mark.parametrize(("entry_point", "module"), ENTRY_POINTS.items())
def test_mlproject_and_the_command_agree(entry_point: str, module: str) -> None:
    """Each option of the command is a parameter with the same default, and the other way round."""
    options = command_options(module)
    parameters = MLPROJECT["entry_points"][entry_point]["parameters"]
    assert {name: str(each["default"]) for name, each in parameters.items()} == {
        name: str(option.default) for name, option in options.items()
    }
    assert MLPROJECT["entry_points"][entry_point]["command"].split() == [
        *("python", "-m", f"opusclip_mlops.projects.{module}"),
        *(word for name in parameters for word in (options[name].opts[0], f"{{{name}}}")),
    ]


def command_options(module: str) -> dict[str, click.Option]:
    """The options of an entry point's module, by parameter name."""
    found = import_module(f"opusclip_mlops.projects.{module}")
    [command] = [each for each in vars(found).values() if isinstance(each, click.Command)]
    return {str(each.name): each for each in command.params if isinstance(each, click.Option)}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_a_parameter_reaches_the_command_whole(entry_point: str) -> None:
    """Spaces, quotes and shell characters in a value stay one argument and run nothing."""
    hostile = "a b; $(touch here) `x` \"'{data}"
    spec = load_project(str(ROOT)).get_entry_point(entry_point)
    values = dict.fromkeys(spec.parameters, hostile)
    words = shlex.split(spec.compute_command(values, None))
    assert words[4::2] == [hostile] * len(values)


def test_an_empty_parameter_stays_an_argument() -> None:
    """`-P register_as=` gives the command an empty value, not a missing one."""
    spec = load_project(str(ROOT)).get_entry_point("main")
    words = shlex.split(spec.compute_command({"register_as": ""}, None))
    assert words[words.index("--register-as") + 1] == ""


@pytest.mark.parametrize("requirement", required(), ids=str)
def test_pins_are_within_the_ranges(requirement: Requirement) -> None:
    """Everything pyproject.toml asks for is pinned, at a version it allows."""
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_the_whole_closure_is_pinned() -> None:
    """No dependency of a dependency is left to the day of the installation."""
    installed = [r for r in required() if r.name != "psycopg2-binary"]
    assert sorted(closure(installed) - pins().keys()) == []


def test_the_pins_are_what_is_installed() -> None:
    """The tests run with the versions that `make setup` installs."""
    installed = closure(r for r in required() if r.name != "psycopg2-binary")
    differing = {
        name: (distribution(name).version, pins()[name])
        for name in installed
        if distribution(name).version.split("+")[0] != pins()[name]
    }
    assert differing == {}


def test_constraints_hold_exact_versions_only() -> None:
    """Each line is a comment or name==version: no address, no option, no local version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert [line for line in pinned if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert pinned == sorted(pinned, key=str.lower)


def test_no_file_that_pins_names_a_registry() -> None:
    """Where packages come from is the business of the machine, not of the repository."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    pinning = re.compile(
        r"(^|/)(constraints|requirements)[^/]*\.txt$|\.lock$|-lock\.|(^|/)[^/]*\.(toml|ya?ml|cfg|ini)$"
        r"|(^|/)(Makefile|MLproject|Dockerfile[^/]*|run)$"
    )
    address = re.compile(
        r"(index-url|find-links|trusted-host|@ ?(https?|file):|pypi\.|pythonhosted|download\.)"
    )
    files = [name for name in listed if pinning.search(name) and (ROOT / name).is_file()]
    assert {"constraints.txt", "pyproject.toml", ".ci/run"} <= set(files)
    assert [name for name in files if address.search((ROOT / name).read_text())] == []


def test_mlruns_holds_artifacts_only() -> None:
    """A meta.yaml there would turn MLflow's default store back into the retired file store."""
    assert list((ROOT / "mlruns").rglob("meta.yaml")) == []


def test_every_package_folder_is_shipped() -> None:
    """pyproject.toml lists each folder that holds modules, so that none is left out of a wheel."""
    package = ROOT / "opusclip_mlops"
    folders = {path.parent.relative_to(ROOT) for path in package.rglob("*.py")}
    listed: list[Any] = PYPROJECT["tool"]["setuptools"]["packages"]
    assert sorted(".".join(folder.parts) for folder in folders) == sorted(listed)


def test_the_check_can_be_started() -> None:
    """.ci/run is a program."""
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
