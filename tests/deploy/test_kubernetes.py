"""deploy/kubernetes: every object is what its API allows, and the parts fit each other."""

import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.programs import CONFIG, DEPLOY

FOLDER = DEPLOY / "kubernetes"
FILES = sorted(
    path for path in [*FOLDER.glob("base/*.yaml"), *FOLDER.glob("overlays/team/*.yaml")]
    if path.name != "kustomization.yaml" and path.parent.name + path.name != "teampostgres.yaml"
)  # fmt: skip
VERSION = "1.31"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
WORKLOADS = ("Deployment", "StatefulSet", "CronJob")


def objects(text: str) -> list[dict[str, Any]]:
    """The objects of a file."""
    return [one for one in yaml.safe_load_all(text) if one]


BASE = [one for path in FILES if path.parent.name == "base" for one in objects(path.read_text())]


def pods(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The specification of the pods of each workload."""
    return {
        one["metadata"]["name"]: _job(one)["spec"]["template"]["spec"]
        for one in found
        if one["kind"] in WORKLOADS
    }


def _job(one: dict[str, Any]) -> dict[str, Any]:
    return one["spec"]["jobTemplate"] if one["kind"] == "CronJob" else one


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_api_takes_each_object(path: Any) -> None:
    """Strictly: nothing that the schema does not know."""
    for one in objects(path.read_text()):
        kubernetes_validate.validate(one, VERSION, strict=True)


@pytest.mark.parametrize("overlay", ["small", "team"])
def test_an_overlay_builds_to_what_the_api_takes(overlay: str) -> None:
    """Kustomize merges it, each object is valid, each name that is referred to is there."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl on PATH: kustomize is in it")
    done = subprocess.run(
        [kubectl, "kustomize", FOLDER / "overlays" / overlay],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = objects(done.stdout)
    for one in built:
        kubernetes_validate.validate(one, VERSION, strict=True)
    assert {one["metadata"].get("namespace", "opusclip") for one in built} == {"opusclip"}
    check_references(built)


def check_references(built: list[dict[str, Any]]) -> None:
    """ConfigMaps that pods name exist; Secrets exist nowhere but in the cluster."""
    made = {one["metadata"]["name"] for one in built if one["kind"] == "ConfigMap"}
    assert not [one for one in built if one["kind"] == "Secret"]
    for pod in pods(built).values():
        for volume in pod.get("volumes", []):
            sources = volume.get("projected", {}).get("sources", [volume])
            for source in sources:
                if named := source.get("configMap"):
                    assert named["name"] in made


@pytest.mark.parametrize("name", pods(BASE))
def test_no_pod_is_root_or_can_become_it(name: str) -> None:
    """What a namespace that is `restricted` wants, and a root that cannot be written to."""
    pod = pods(BASE)[name]
    about = pod["securityContext"]
    assert about["runAsNonRoot"] is True
    assert about["runAsUser"] > 0
    assert about["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    # Variables by the names of services would be taken for settings of the parts.
    assert pod["enableServiceLinks"] is False
    for one in [*pod.get("initContainers", []), *pod["containers"]]:
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert one["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in one["resources"]["limits"]


@pytest.mark.parametrize("name", [name for name in pods(BASE) if name != "backup"])
def test_what_goes_on_is_asked_whether_it_is_ready(name: str) -> None:
    """Each container has a probe."""
    for one in pods(BASE)[name]["containers"]:
        assert one.keys() & {"readinessProbe", "startupProbe", "livenessProbe"}


def test_images_and_commands_are_those_of_compose() -> None:
    """One version of each part; servers, follower and TensorBoard are begun alike."""
    images = {one["image"] for one in COMPOSE.values()} - {COMPOSE["node"]["image"]}
    used = {
        one["image"]
        for pod in pods(BASE).values()
        for one in [*pod.get("initContainers", []), *pod["containers"]]
    }
    assert used == images
    there = {one["name"]: one for pod in pods(BASE).values() for one in pod["containers"]}
    for service, container in (("server-1", "server"), ("tensorboard", "tensorboard")):
        flags = {one.partition("=")[0] for one in COMPOSE[service]["command"]}
        assert {one.partition("=")[0] for one in there[container]["command"]} == flags


def test_secrets_are_named_and_never_kept() -> None:
    """Every key that is mounted is one that secrets.sh makes."""
    made = set(yaml.safe_load((DEPLOY / "compose.yaml").read_text())["secrets"])
    for pod in pods(BASE).values():
        for volume in pod.get("volumes", []):
            if secret := volume.get("secret"):
                assert secret["secretName"] in ("opusclip", "opusclip-tls")
                assert {one["key"] for one in secret.get("items", [])} <= made
    assert not [one for one in BASE if one["kind"] == "Secret"]


def test_network_policies_let_in_whom_compose_connects() -> None:
    """Nobody by default; Prometheus reaches what it asks, the world reaches nginx alone."""
    policies = {
        one["metadata"]["name"]: one["spec"] for one in BASE if one["kind"] == "NetworkPolicy"
    }
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert policies.keys() - {"nobody"} == pods(BASE).keys() - {"backup"}
    open_to_all = {
        name
        for name, one in policies.items()
        for rule in one.get("ingress", [])
        if "from" not in rule
    }
    assert open_to_all == {"nginx"}


def test_targets_are_services_with_such_a_port() -> None:
    """What Prometheus asks by name is a Service, and it has the port."""
    ports = {
        one["metadata"]["name"]: {port["port"] for port in one["spec"]["ports"]}
        for one in BASE
        if one["kind"] == "Service"
    }
    for name in ("storage", "mirror", "probe"):
        for target in yaml.safe_load((FOLDER / "base" / "targets" / f"{name}.yml").read_text()):
            for address in target["targets"]:
                host, _, port = address.split("://")[-1].partition("/")[0].partition(":")
                assert int(port) in ports[host]
        assert (FOLDER / "base" / "targets" / f"{name}.yml").read_text() == (
            CONFIG / "targets" / f"{name}.yml"
        ).read_text()
