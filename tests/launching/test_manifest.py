"""What Kubernetes is given: valid by its API's own schemas, and the same launch as elsewhere."""

from typing import Any

import kubernetes_validate
import msgspec
import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.launching.manifest import manifests
from opusclip_mlops.launching.workplace import Plan
from opusclip_mlops.redaction import redacted
from tests.launching.test_workplace import plan

VERSION = "1.33"
SERVER = "https://mlflow.example.org"


def planned(*, tracking_uri: str | None = SERVER, **values: Any) -> Plan:
    """A plan for Kubernetes."""
    values = {"kind": "kubernetes", "image": "registry.example.org/clips:1", **values}
    made = plan(**values)
    return msgspec.structs.replace(
        made, tracking_uri=tracking_uri, program=["-m", "train", "--note", "$(HOME) $x"]
    )


FULL = planned(
    nodes=4, processes_per_node=8, cpus=32, gpus=8, memory="256G", time_limit="12:00:00",
    restarts=3, grace_s=90, namespace="video", secret="training", volume_claim="journal",
    fs_group=2000, workdir="/project", pass_env=["WANDB_API_KEY"], env={"NCCL_DEBUG": "WARN"},
)  # fmt: skip


@pytest.mark.parametrize("one", [FULL, planned()], ids=["full", "least"])
def test_the_api_takes_each_object(one: Plan) -> None:
    """Strictly: nothing that the schema of this version does not know."""
    for made in manifests(one):
        kubernetes_validate.validate(made, VERSION, strict=True)


def test_a_schema_that_is_broken_is_noticed() -> None:
    """What the test above stands on: the schemas refuse a field that is not the API's."""
    _, job = manifests(FULL)
    job["spec"]["completionsMode"] = "Indexed"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSION, strict=True)


def test_one_pod_a_node_meets_the_others_at_the_first() -> None:
    """By the name that the Service gives to the pod with index 0."""
    service, job = manifests(FULL)
    spec, name = job["spec"], job["metadata"]["name"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert service["metadata"]["name"] == pod["subdomain"] == name
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert f"--rdzv-endpoint={name}-0.{name}:29500" in container["command"]
    assert {"--nnodes=4", "--nproc-per-node=8", "--max-restarts=3"} <= set(container["command"])
    named = {one["name"]: one.get("value") for one in container["env"]}
    assert named["MASTER_ADDR"] == f"{name}-0.{name}"
    assert named["MLFLOW_RUN_ID"] == FULL.run_id


def test_what_ends_a_pod_is_told_apart() -> None:
    """Evictions count for nothing, a lost pod is replaced; time and grace are as configured."""
    spec = manifests(FULL)[1]["spec"]
    assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (3, 0)
    assert spec["activeDeadlineSeconds"] == 43200
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 90
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    rules = spec["podFailurePolicy"]["rules"]
    assert rules[0]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert rules[0]["action"] == "Ignore"


def test_amounts_are_asked_for_and_kept_to() -> None:
    """Binary units, and the journal on the claim that was named."""
    pod = manifests(FULL)[1]["spec"]["template"]["spec"]
    amounts = {"cpu": "32", "memory": "256Gi", "nvidia.com/gpu": "8"}
    assert pod["containers"][0]["resources"] == {"requests": amounts, "limits": amounts}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "journal"}
    least = manifests(planned())[1]["spec"]["template"]["spec"]
    assert (least["containers"][0]["resources"], least["volumes"][0]["emptyDir"]) == ({}, {})


def test_a_volume_is_writable_for_the_group_that_was_named() -> None:
    """It is the pods' own group then; a volume that has it already is not gone through."""
    security = manifests(FULL)[1]["spec"]["template"]["spec"]["securityContext"]
    assert (security["fsGroup"], security["fsGroupChangePolicy"]) == (2000, "OnRootMismatch")
    least = manifests(planned())[1]["spec"]["template"]["spec"]["securityContext"]
    assert "fsGroup" not in least


def test_secrets_go_by_name() -> None:
    """And what Kubernetes would fill in is taken as it stands."""
    [container] = manifests(FULL)[1]["spec"]["template"]["spec"]["containers"]
    [secret] = [one for one in container["env"] if one["name"] == "WANDB_API_KEY"]
    assert secret["valueFrom"]["secretKeyRef"] == {"name": "training", "key": "WANDB_API_KEY"}
    assert container["command"][-1] == "$$(HOME) $$x"


@pytest.mark.parametrize("uri", ["sqlite:////a/mlflow.db", "file:///a", "/a/mlruns"])
def test_a_store_that_no_pod_reaches_is_refused(uri: str) -> None:
    """The run would stay empty, and nobody would know why."""
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_URI to a server's address"):
        manifests(planned(tracking_uri=uri))


def test_an_address_with_a_password_goes_by_the_secret() -> None:
    """It is in no manifest; what is said of it has no word that looks like one."""
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI into the Secret") as caught:
        manifests(planned(tracking_uri=None))
    assert redacted(str(caught.value), values=()) == str(caught.value)
    one = planned(tracking_uri=None, pass_env=["MLFLOW_TRACKING_URI"], secret="s")
    [container] = manifests(one)[1]["spec"]["template"]["spec"]["containers"]
    [found] = [one for one in container["env"] if one["name"] == "MLFLOW_TRACKING_URI"]
    assert "value" not in found
