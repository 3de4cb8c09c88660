"""This machine, as the doctor sees it."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from opusclip_mlops.doctor import machine
from opusclip_mlops.doctor.findings import Subject
from tests.nvml import told_with_gpus

Make = Callable[..., Subject]


def test_packages_are_told_with_their_versions(subject: Make) -> None:
    """All are within the ranges that this package's own metadata gives."""
    found = machine.packages(subject())
    assert found.state == "ok"
    assert "mlflow 3." in found.seen


def test_packages_out_of_range_are_named(
    subject: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is there and what is wanted; extras are nobody's need."""
    info = tmp_path / "projector-1.dist-info"
    info.mkdir()
    wanted = "click<1", "opusclip-nowhere", "rich", "nothing; extra == 'more'"
    lines = ["Metadata-Version: 2.1", "Name: projector", "Version: 1"]
    info.joinpath("METADATA").write_text(
        "\n".join([*lines, *(f"Requires-Dist: {one}" for one in wanted), ""])
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(machine, "DISTRIBUTION", "projector")
    found = machine.packages(subject())
    assert found.state == "failed"
    assert found.seen.startswith("click ")
    assert found.seen.endswith("is not <1; opusclip-nowhere is not installed")


def test_few_open_files_are_warned_of(subject: Make) -> None:
    """With the command that allows more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        found = machine.open_files(subject())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found.state, found.seen) == ("warning", "512 open files a process")
    assert found.todo.startswith("ulimit -n ")


def test_memory_is_what_the_container_leaves(
    subject: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much the machine has."""
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    states = {}
    for limit_mib in (200, 800):
        (tmp_path / "memory.max").write_text(f"{limit_mib * 2**20}\n")
        (tmp_path / "memory.current").write_text("0\n")
        states[limit_mib] = machine.memory(subject()).state
    assert states == {200: "failed", 800: "warning"}


def test_a_clock_that_goes_is_well(subject: Make) -> None:
    """The time is told."""
    found = machine.clock(subject())
    assert found.state in ("ok", "warning")
    assert found.seen


def test_a_clock_that_is_years_behind_fails(subject: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a board without a battery."""
    monkeypatch.setattr(machine, "_EARLIEST_S", 4_000_000_000)
    assert machine.clock(subject()).state == "failed"


def test_gpus_are_named(tmp_path: Path) -> None:
    """With the memory that NVML tells."""
    code = (
        "from opusclip_mlops.doctor import machine\n"
        "drive(count=2)\nfound = machine.gpu(None)\ntell([found.state, found.seen])"
    )
    state, seen = told_with_gpus(tmp_path, code)[0]
    assert state == "ok"
    assert seen.startswith("0: ")
    assert ", 1: " in seen


def test_no_gpu_is_a_note(subject: Make) -> None:
    """It is no failure."""
    assert machine.gpu(subject()).state in ("note", "ok")
