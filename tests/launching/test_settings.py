"""One JSON object for every place: what cannot be is refused before anything is started."""

from typing import Any

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.launching.settings import checked


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"nodez": 2}, "unknown key 'nodez' in the backend's config: nodes?"),
        ({"nodes": "2"}, "nodes"),
        ({"kind": "slrum"}, "kind is 'slrum': choose from local, slurm, kubernetes"),
        ({"kind": "slurm", "nodes": 0}, "nodes is 0, and has to be at least 1"),
        ({"nodes": 2}, "kind local has this machine only"),
        ({"gpus": -1}, "gpus is -1"),
        ({"grace_s": 90_000}, "Slurm takes 65000 at most"),
        ({"port": 80}, "from 1024 to 65535"),
        ({"memory": "64 GB"}, "memory is '64 GB'"),
        ({"time_limit": "90"}, "time_limit is '90'"),
        ({"time_limit": "00:00:00"}, "time_limit is '00:00:00'"),
        ({"partition": "gpu\n#SBATCH --uid=0"}, "partition is"),
        ({"kind": "slurm", "time_limit": "00:01:30"}, "ending alone takes 90 s"),
        ({"env": {"MLFLOW_RUN_ID": "1"}}, "env.MLFLOW_RUN_ID is not for a launch to set"),
        ({"env": {"BASH_ENV": "a.sh"}}, "env.BASH_ENV is not"),
        ({"account": "a,b"}, "account is"),
        ({"account": "--uid=0"}, "account is"),
        ({"namespace": "a_b"}, "namespace is 'a_b', which is not a DNS label"),
        ({"folder": "a\nb"}, "folder is"),
        ({"env": {"A B": "1"}}, "'A B' is no name of a variable"),
        ({"env": {"A": "1\n2"}}, "env.A has characters"),
        ({"env": {"WANDB_API_KEY": "x"}}, "env.WANDB_API_KEY looks like a secret"),
        ({"env": {"DB": "postgresql://u:hidden@h/d"}}, "env.DB looks like a secret"),
        ({"pass_env": ["A=B"]}, "'A=B' is no name of a variable"),
        ({"kind": "kubernetes"}, "needs image"),
        ({"kind": "kubernetes", "image": "a", "pass_env": ["B", "A"]}, "holds A, B"),
    ],
)
def test_what_cannot_be_is_named(values: dict[str, Any], named: str) -> None:
    """The error says which key it is, in one line, and never a secret's value."""
    with pytest.raises(ConfigError) as caught:
        checked(values)
    assert named in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_configuration_is_for_every_place() -> None:
    """What belongs to another kind of place stays in, so that only `kind` is changed."""
    values = {"partition": "gpu,big", "image": "a/b:1", "processes_per_node": 8}
    kinds = [checked({**values, "kind": kind}) for kind in ("local", "slurm", "kubernetes")]
    assert [one.is_waited_for for one in kinds] == [True, False, False]
    assert checked({"kind": "slurm", "wait": True}).is_waited_for


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:30:00", 1800), ("1-02:03:04", 93784), ("100:00:00", 360000)]
)
def test_a_time_limit_is_read_as_slurm_does(text: str, seconds: int) -> None:
    """Hours, minutes and seconds, with days before a dash."""
    assert checked({"time_limit": text}).time_limit_s == seconds
