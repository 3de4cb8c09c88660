"""The agent of a node: which number it has, and who holds the store where all meet."""

from pathlib import Path

import msgspec
import pytest

from opusclip_mlops.launching import agent
from opusclip_mlops.launching.outcomes import AgentOutcome


@pytest.mark.parametrize(
    ("variable", "number", "first"),
    [
        ("SLURM_NODEID", "0", ["--rdzv-conf=is_host=true"]),
        ("SLURM_NODEID", "3", ["--rdzv-conf=is_host=false"]),
        ("JOB_COMPLETION_INDEX", "1", ["--rdzv-conf=is_host=false"]),
        (None, "", []),
    ],
)
def test_the_first_node_holds_the_store(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, number: str, first: list[str]
) -> None:
    """Whatever names and addresses it has; here torchrun finds it out itself."""
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, number)
    assert agent.node_number() == int(number or 0)
    assert agent._with_host(["a.py"]) == [*first, "a.py"]
    given = agent._with_host(["--rdzv-conf=join_timeout=9", "a.py"])
    assert given == [
        ",".join(["--rdzv-conf=join_timeout=9", *first]).replace(",--rdzv-conf=", ","),
        "a.py",
    ]


def test_an_exit_code_is_true_where_the_outcome_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, or in a folder that is gone: ranks that finished have not failed for it."""
    monkeypatch.setattr(agent.torchrun, "run", lambda _: None)
    file = f"{tmp_path}/gone/{{node}}.json"
    assert agent.main([file, "--nnodes=1", "a.py"]) == 0


def test_what_torchrun_cannot_do_is_left_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No node holds the store: the others say that they found nobody, and where they looked."""
    monkeypatch.setenv("SLURM_NODEID", "1")
    words = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-id=x", "--rdzv-endpoint=localhost:1"]
    file = f"{tmp_path}/{{node}}.json"
    code = agent.main([file, *words, "--rdzv-conf=is_host=false,read_timeout=1", "a.py"])
    assert code == 1
    left = msgspec.json.decode((tmp_path / "1.json").read_bytes(), type=AgentOutcome)
    assert (left.rank, left.node, left.exit_code) == (None, 1, 1)
    assert left.message.startswith("no other node was met at localhost:1: ")
    assert "timed out" in left.message
