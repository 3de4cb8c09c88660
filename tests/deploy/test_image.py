"""The image and the scripts: linted, and with just what the package needs."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.deploy.programs import DEPLOY, ROOT
from tests.servers import BIN

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
SCRIPTS = [*DEPLOY.glob("*.sh"), Path(__file__).with_name("install.sh")]
LEFT_OUT = {"optuna", "torch", "torchmetrics"}


def names(requirements: list[str]) -> set[str]:
    """The packages of some requirements, without their versions."""
    return {re.split(r"[<>=\[ ]", one)[0] for one in requirements}


def required() -> list[str]:
    """The lines of the image's requirements that name a package."""
    lines = (DEPLOY / "requirements.txt").read_text().splitlines()
    return [one for one in lines if not one.startswith("#")]


def test_hadolint_finds_nothing() -> None:
    """The Dockerfile keeps the rules of its trade."""
    done = subprocess.run(
        [BIN / "hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    "script",
    [*DEPLOY.glob("*.sh"), Path(__file__).with_name("install.sh")],
    ids=lambda one: one.name,
)
def test_shellcheck_finds_nothing(script: Path) -> None:
    """Each script is sound, can be called, and stops at the first fault."""
    done = subprocess.run([BIN / "shellcheck", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert script.stat().st_mode & 0o111
    assert "\nset -euo pipefail\n" in script.read_text()


def test_the_image_has_what_the_package_needs_but_torch() -> None:
    """Its requirements are the package's own, with the extra `server`, without what trains."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = names(project["dependencies"] + project["optional-dependencies"]["server"])
    assert names(required()) == wanted - LEFT_OUT


def test_every_version_of_the_image_is_pinned() -> None:
    """Each requirement has one version in constraints.txt, and the base image a whole one."""
    pinned = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    for one in names(required()):
        assert f"\n{one.lower()}==" in pinned, one
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {
        "python:3.11.14-slim-bookworm"
    }
    assert "--constraint constraints.txt" in DOCKERFILE
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)


def test_the_context_holds_nothing_else() -> None:
    """All is left out but what the Dockerfile copies: no secret, no record, no journal."""
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    allowed = {one[1:] for one in lines if one.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }
    assert copied == allowed


@pytest.mark.parametrize("verb", ["server", "mirror"])
def test_the_image_can_do_without_what_trains(verb: str) -> None:
    """What runs in it loads where torch and optuna are not installed."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(LEFT_OUT)}))\n"
        "import opusclip_mlops.server.tracking, opusclip_mlops.server.models\n"
        "import opusclip_mlops.mirror_worker, opusclip_mlops.server.command\n"
        "from opusclip_mlops.cli import main; main([sys.argv[1], '--help'])"
    )
    done = subprocess.run(
        [BIN / "python", "-c", code, verb], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
