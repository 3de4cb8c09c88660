"""The scripts that Slurm is given: read by shellcheck, and by bash in place of a node."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from opusclip_mlops.launching.sbatch import closing_script, training_script
from opusclip_mlops.launching.workplace import Plan
from tests.launching.test_workplace import plan

NASTY = 'a b\'; touch bad; $(touch bad) `touch bad` "z" \\ *'
SHELLCHECK = Path(sys.prefix) / "bin" / "shellcheck"


def full() -> Plan:
    """A plan with everything in it, and values that a shell would like to run."""
    values = {
        "kind": "slurm", "nodes": 2, "processes_per_node": 8, "cpus": 16, "gpus": 8,
        "memory": "64G", "time_limit": "1-00:00:00", "partition": "gpu", "account": "video",
        "qos": "high", "grace_s": 90, "chain": 3, "env": {"NOTE": NASTY},
    }  # fmt: skip
    return msgspec.structs.replace(plan(**values), program=["-m", "pkg.train", "--note", NASTY])


def test_what_is_asked_of_slurm_stands_at_the_top() -> None:
    """One task a node, the amounts of the configuration, and a word before time is up."""
    script = training_script(full(), Path("/shared/launch"))
    head = [one for one in script.split("\n") if one.startswith("#SBATCH")]
    assert [one.removeprefix("#SBATCH --") for one in head] == [
        "job-name=opusclip-aaaaaaaa", "nodes=2", "ntasks-per-node=1", "cpus-per-task=16",
        "gpus-per-node=8", "mem=64G", "time=1-00:00:00", "requeue", "open-mode=append",
        "signal=B:TERM@120", "partition=gpu", "account=video", "qos=high", "export=ALL",
    ]  # fmt: skip
    closing = closing_script(full(), Path("/shared/launch"))
    assert "#SBATCH --nodes=1\n#SBATCH --ntasks=1\n#SBATCH --mem=2G\n#SBATCH --time=30\n" in closing
    assert "gpus" not in closing
    assert "no-requeue" in training_script(plan(kind="slurm", requeue=False), Path("/l"))


@pytest.mark.parametrize("write", [training_script, closing_script])
def test_shellcheck_finds_nothing(write: object) -> None:
    """Quotes that hold what a shell would run are meant to."""
    script = write(full(), Path("/shared/a 'b' $c"))  # type: ignore[operator]
    done = subprocess.run(
        [SHELLCHECK, "--exclude=SC2016", "-"], input=script, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def write_stubs(folder: Path, stubs: dict[str, str]) -> None:
    """Programs that are found before the real ones."""
    for name, body in stubs.items():
        file = folder / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("srun_code", "signalled"), [(7, False), (0, False), (143, True), (7, True)]
)
def test_bash_hands_each_word_on_as_it_is(
    tmp_path: Path, srun_code: int, *, signalled: bool
) -> None:
    """Stubs of python and srun see every word; of a TERM ranks are told, and waited for."""
    folder = tmp_path / "a 'b' $c"
    folder.mkdir()
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    pid = f"{tmp_path}/srun.pid"
    told = f"echo $$ > {pid}; trap 'exit {srun_code}' TERM; kill -TERM $PPID; sleep 60 & wait"
    stop = told if signalled else ""
    stubs = {
        "python": f'printf "%s\\0" "$@" >> {tmp_path}/python.words; echo 0',
        "srun": f'printf "%s\\0" "$@" > {tmp_path}/srun.words\n{stop}\nexit {srun_code}',
        "scancel": f'echo "$*" > {tmp_path}/scancel.words; kill -TERM $(cat {pid})',
        "scontrol": 'echo "NodeName=one NodeAddr=10.0.0.1 NodeHostName=x"',
    }
    write_stubs(bin_dir, stubs)
    config = msgspec.structs.replace(full().config, python=str(bin_dir / "python"))
    script = training_script(msgspec.structs.replace(full(), config=config), folder)
    subprocess.run(
        ["bash", "-c", script],
        env={
            "PATH": f"{bin_dir}:{os.environ['PATH']}", "SLURM_JOB_ID": "12",
            "SLURM_JOB_NODELIST": "one",
        },
        cwd=tmp_path, check=False, timeout=60,
    )  # fmt: skip
    words = (tmp_path / "srun.words").read_text().split("\0")
    assert words[-4:-1] == ["pkg.train", "--note", NASTY]
    assert f"{folder}/outcomes/0-{{node}}.json" in words
    assert f"--rdzv-id={'a' * 32}-0" in words
    assert "--rdzv-endpoint=10.0.0.1:20012" in words
    asked = (tmp_path / "python.words").read_text().split("\0")
    expected = ["end", str(folder), "0", str(srun_code), "SIGTERM" if signalled else ""]
    assert asked[-6:-1] == expected
    assert (tmp_path / "scancel.words").exists() == signalled
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("begins", "attempt"),
    [("kill -TERM $shell; echo 3", "3"), ("echo 3; kill -TERM $shell $$", "3"),
     ("kill -TERM $shell $$", "")],
    ids=["it goes on", "it is told too", "it is told before it has begun"],
)  # fmt: skip
def test_a_job_that_is_told_before_its_ranks_begin_says_so(
    tmp_path: Path, begins: str, attempt: str
) -> None:
    """An earlier attempt's journal may be delivered for minutes then; no rank is started."""
    words = f'printf "%s\\0" "$@" >> {tmp_path}/python.words'
    begin = f"shell=$(cat {tmp_path}/shell.pid)\n[ $4 = end ] || {{ {begins}; }}"
    stubs = {"python": f"{words}\n{begin}", "srun": f"touch {tmp_path}/ran", "scancel": ":"}
    write_stubs(tmp_path, {**stubs, "scontrol": "echo NodeAddr=10.0.0.1"})
    config = msgspec.structs.replace(full().config, python=str(tmp_path / "python"))
    script = training_script(msgspec.structs.replace(full(), config=config), tmp_path)
    subprocess.run(
        ["bash", "-c", f"echo $$ > {tmp_path}/shell.pid\n{script}"],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12",
            "SLURM_JOB_NODELIST": "one",
        },
        check=False, timeout=60,
    )  # fmt: skip
    asked = (tmp_path / "python.words").read_text().split("\0")
    assert asked[-6:-1] == ["end", str(tmp_path), attempt, "143", "SIGTERM"]
    assert not (tmp_path / "ran").exists()
