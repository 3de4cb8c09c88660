"""deploy/compose.yaml: its format holds it to be right, and it keeps what it promises."""

import json
import re
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from opusclip_mlops.server.secret_files import NAMES
from tests.deploy.programs import CONFIG, DEPLOY

TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
JOBS = {"bucket", "accounts", "objects"}


class Loader(yaml.SafeLoader):
    """Reads the tags by which one compose file takes back what another says."""


Loader.add_constructor("!override", lambda loader, node: _built(loader, node))


def _built(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.MappingNode)
    return loader.construct_mapping(node, deep=True)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.minio.yaml"])
def test_the_schema_of_compose_files_holds(name: str) -> None:
    """Both files are what the specification's own schema allows."""
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    content = yaml.load((DEPLOY / name).read_text(), Loader)
    jsonschema.validate(content, json.loads(schema.read_text()))


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_is_root_or_can_become_it(name: str) -> None:
    """A user of its own or the image's, which is not root; nothing to gain; nothing to write to."""
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    # These three images name an unprivileged user themselves.
    by_itself = ("nginxinc/nginx-unprivileged:", "prom/")
    if not service["image"].startswith(by_itself):
        assert not service["user"].startswith(("0", "root"))


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_named_with_an_exact_version(name: str) -> None:
    """No `latest`, and no tag that means another image tomorrow."""
    assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z]+)?$", SERVICES[name]["image"])


def test_nginx_alone_is_reachable_from_outside() -> None:
    """One service publishes ports; the network of all the others has no way out."""
    assert {name for name, one in SERVICES.items() if "ports" in one} == {"nginx"}
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    outside = {name for name, one in SERVICES.items() if "outside" in one["networks"]}
    assert outside == {"nginx"}


def test_every_part_says_whether_it_is_well() -> None:
    """What goes on has a health check, but what Prometheus or people see the absence of."""
    without = {name for name, one in SERVICES.items() if "healthcheck" not in one}
    assert without - JOBS == {"blackbox", "node", "grafana"}


def test_secrets_come_by_file_and_secrets_sh_makes_each(tmp_path: Path) -> None:
    """Nothing secret stands in the file; what it names is made, and only its owner reaches it."""
    folder = tmp_path / "secrets"
    subprocess.run(
        [DEPLOY / "secrets.sh", "mlflow.example.com", folder], check=True, capture_output=True
    )
    named = {Path(one["file"]).name for one in COMPOSE["secrets"].values()}
    made = {one.name for one in folder.iterdir()}
    assert named == made
    assert folder.stat().st_mode & 0o077 == 0
    used = {
        one["source"] if isinstance(one, dict) else one
        for service in SERVICES.values()
        for one in service.get("secrets", [])
    }
    assert used | {"mirror_password"} == COMPOSE["secrets"].keys()
    values = [(folder / one).read_text() for one in made]
    assert not [value for value in values if value in TEXT]


def test_secrets_that_are_there_stay(tmp_path: Path) -> None:
    """Called again, the script changes nothing; a host that is none is refused."""
    folder = tmp_path / "secrets"
    line = [DEPLOY / "secrets.sh", "127.0.0.1", folder]
    subprocess.run(line, check=True, capture_output=True)
    before = {one.name: one.read_bytes() for one in folder.iterdir()}
    subprocess.run(line, check=True, capture_output=True)
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == before
    bad = subprocess.run(
        [DEPLOY / "secrets.sh", "a/b", folder], check=False, capture_output=True, text=True
    )
    assert (bad.returncode, bad.stderr) == (2, "error: a/b is no host name\n")


def test_a_variable_that_names_a_file_is_one_that_is_read() -> None:
    """Each NAME_FILE of the servers is known to `opusclip server`, and its secret is mounted."""
    server = SERVICES["server-1"]
    given = {key: value for key, value in server["environment"].items() if key.endswith("_FILE")}
    assert {key.removesuffix("_FILE") for key in given} <= set(NAMES)
    assert {Path(value).name for value in given.values()} == set(server["secrets"])


def test_files_and_volumes_that_are_named_exist() -> None:
    """Whatever is mounted lies in deploy/, and each volume is declared."""
    mounts = [one for service in SERVICES.values() for one in service.get("volumes", [])]
    for source in (one.split(":")[0] for one in mounts):
        if source.startswith("./"):
            assert (DEPLOY / source).exists(), source
        elif re.fullmatch(r"[a-z-]+", source):
            assert source in COMPOSE["volumes"], source


def test_the_servers_settings_are_mlflows() -> None:
    """Each line of the environment file is a variable that MLflow or boto3 reads."""
    import mlflow.environment_variables

    lines = (CONFIG / "opusclip.env").read_text().splitlines()
    names = [line.partition("=")[0] for line in lines if line and not line.startswith("#")]
    for name in names:
        assert name.startswith("AWS_") or hasattr(mlflow.environment_variables, name), name


@pytest.mark.parametrize("folder", ["targets", "targets.minio"])
def test_prometheus_asks_services_that_are_there(folder: str) -> None:
    """What it scrapes or probes is named as a service is, and each server is among it."""
    addresses = [
        address.split("://")[-1].partition(":")[0]
        for path in (CONFIG / folder).glob("*.yml")
        for target in yaml.safe_load(path.read_text())
        for address in [*target["targets"], *filter(None, [target.get("labels", {}).get("prober")])]
    ]
    assert set(addresses) <= SERVICES.keys()
    assert {name for name in SERVICES if name.startswith("server-")} <= set(addresses)
