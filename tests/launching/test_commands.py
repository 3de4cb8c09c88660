"""An entry point's command becomes a list of words; what is in a value stays in it."""

import pytest
from torch.distributed.run import config_from_args, parse_args

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.launching.commands import program_of, torchrun_arguments
from tests.launching.made import config

NASTY = 'a b\'; rm -rf / $(x) `y` "z" {0} \n*'


def test_a_value_is_one_word_whatever_is_in_it() -> None:
    """Quotes, spaces, braces and what a shell would run are handed on as they are."""
    program = program_of("python -m pkg.train --note {note} --x='{x}'", {"note": NASTY, "x": NASTY})
    assert program == ["-m", "pkg.train", "--note", NASTY, f"--x={NASTY}"]


def test_parameters_that_are_not_declared_come_behind() -> None:
    """As MLflow does it: `--name value`, and an empty value stays one."""
    assert program_of("python3.11 -u a.py", {}, {"b": "", "c": "1 2"}) == [
        "a.py", "--b", "", "--c", "1 2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        "bash train.sh",
        "python train.py && rm x",
        "python train.py > log",
        "python $SCRIPT",
        "python `which x`",
        "A=1 python train.py",
        "python -c 'print()'",
        "python",
        "torchrun train.py",
        "",
    ],
)
def test_what_needs_a_shell_is_refused(command: str) -> None:
    """The error shows the command, and what would do."""
    with pytest.raises(ConfigError, match="torchrun starts `python -m MODULE"):
        program_of(command, {})


def test_a_parameter_that_is_not_declared_is_named() -> None:
    """And quotes that do not close are an error of ours too."""
    with pytest.raises(ConfigError, match="names 'b', which is no parameter"):
        program_of("python a.py {b}", {})
    with pytest.raises(ConfigError, match="is no parameter"):
        program_of("python a.py {b.c}", {"b": "1"})
    with pytest.raises(ConfigError, match="torchrun starts"):
        program_of("python {b}", {"b": "-c"})
    with pytest.raises(ConfigError, match="cannot be read"):
        program_of("python a.py 'b", {})


def test_torchrun_is_told_how_many_and_where() -> None:
    """The program stands last, so that its own options stay its own."""
    two = config(kind="slurm", nodes=2, processes_per_node=8, restarts=3)
    words = torchrun_arguments(two, ["a.py", "--nnodes=9"], meeting_id="run", endpoint="host:1")
    assert words == [
        "--nnodes=2", "--nproc-per-node=8", "--max-restarts=3", "--rdzv-backend=c10d",
        "--rdzv-id=run", "--rdzv-endpoint=host:1", "--", "a.py", "--nnodes=9",
    ]  # fmt: skip


@pytest.mark.parametrize("program", [["a.py"], ["-m", "pkg.train"]])
@pytest.mark.parametrize("own", ["--log 3", "--n 1", "--s 1", "--max=1", "--m 1", "--r 1", "-- 1"])
def test_the_programs_options_are_none_of_torchruns(program: list[str], own: str) -> None:
    """Not those either that torchrun would take for one of its own, cut short."""
    words = [*program, *own.split()]
    given = torchrun_arguments(config(), words, meeting_id="run", endpoint="localhost:0")
    _, _, of_rank = config_from_args(parse_args(given))  # type: ignore[no-untyped-call]
    assert of_rank == ["-u", *words]


def test_pods_wait_for_each_other_while_images_are_pulled() -> None:
    """The ten minutes that torchrun waits by itself are too short for that."""
    pods = config(kind="kubernetes", image="a")
    words = torchrun_arguments(pods, ["a.py"], meeting_id="run", endpoint="host:1")
    assert words[-3:] == ["--rdzv-conf=join_timeout=3600,read_timeout=3600", "--", "a.py"]
