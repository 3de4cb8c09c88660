"""Where a process stands among those that train together."""

import pytest

from opusclip_mlops.ranks import Place, launch_command, place_in, rank_in, world_size_in

TORCHRUN = {
    "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "3",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        (
            TORCHRUN,
            Place(rank=5, local_rank=1, world_size=8, node=1, nodes=2, attempt=3, job="job"),
        ),
        ({"RANK": "0", "WORLD_SIZE": "2"}, Place(rank=0, local_rank=0, world_size=2)),
        (
            {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_NODEID": "1",
             "SLURM_NNODES": "2", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"},
            Place(rank=3, local_rank=1, world_size=4, node=1, nodes=2, job="77.0"),
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NODEID": "0", "SLURM_STEP_ID": "1",
             "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_NAMESPACE": "prte@1",
             "OMPI_COMM_WORLD_LOCAL_RANK": "1", "SLURM_JOB_ID": "77"},
            Place(rank=3, local_rank=1, world_size=4, job="prte@1"),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "77"}, None),
        ({}, None), ({"RANK": "1"}, None), ({"WORLD_SIZE": "4"}, None),
        ({"RANK": "x", "WORLD_SIZE": "4"}, None), ({"RANK": "4", "WORLD_SIZE": "4"}, None),
    ],
)  # fmt: skip
def test_a_place_is_what_the_launcher_says(
    environment: dict[str, str], place: Place | None
) -> None:
    """Torchrun, Slurm and Open MPI number ranks; half of it, or the impossible, is none.

    Neither is a batch script of Slurm's one of many: it is there once, whatever it may start.
    """
    assert place_in(environment) == place


@pytest.mark.parametrize(
    ("environment", "is_one"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, False),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, True),
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}, False),
        ({"RANK": "0", "WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1"}, True),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}, False),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4",
          "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_NNODES": "1"},
         True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_NNODES": "2"},
         False),
    ],
)  # fmt: skip
def test_ranks_are_on_one_machine_where_their_launcher_says_so(
    environment: dict[str, str], is_one: bool
) -> None:
    """Numbers that were set by hand, or by an operator of Kubernetes, tell nothing of machines."""
    place = place_in(environment)
    assert place is not None
    assert place.is_one_machine == is_one


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, None), ({"RANK": "0"}, 0), ({"RANK": "3"}, 3), ({"SLURM_PROCID": "2"}, 2),
        ({"OMPI_COMM_WORLD_RANK": "1"}, 1), ({"RANK": "0", "SLURM_PROCID": "2"}, 0),
        ({"RANK": "rank"}, None), ({"RANK": ""}, None), ({"RANK": "-1"}, None),
        ({"RANK": "²"}, None), ({"RANK": "9" * 40}, None),
    ],
)  # fmt: skip
def test_the_rank_is_what_the_launcher_says(environment: dict[str, str], rank: int | None) -> None:
    """A process that was not launched with others has none, nor is rubbish one."""
    assert rank_in(environment) == rank


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, 1), ({"WORLD_SIZE": "8"}, 8), ({"SLURM_NTASKS": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2), ({"WORLD_SIZE": "8", "SLURM_NTASKS": "2"}, 8),
        ({"WORLD_SIZE": "0"}, 1), ({"WORLD_SIZE": "x"}, 1), ({"WORLD_SIZE": ""}, 1),
        ({"WORLD_SIZE": "-3"}, 1), ({"WORLD_SIZE": "9" * 40}, 1),
    ],
)  # fmt: skip
def test_how_many_train_together_is_what_the_launcher_says(
    environment: dict[str, str], size: int
) -> None:
    """A process that was not launched with others is alone, and so it is with rubbish."""
    assert world_size_in(environment) == size


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}, "torchrun --nnodes 2 --nproc-per-node 4 train.py"),
        (
            {"TORCHELASTIC_RUN_ID": "job", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            "torchrun --nproc-per-node 2 train.py",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun -np 2 python -u train.py"),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, "srun --ntasks 4 python -u train.py"),
        ({"SLURM_NTASKS": "4"}, ""), ({"RANK": "0", "WORLD_SIZE": "2"}, ""), ({}, ""),
        ({"TORCHELASTIC_RUN_ID": "job", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, ""),
    ],
)  # fmt: skip
def test_the_launchers_command_starts_all_of_them(
    environment: dict[str, str], command: str
) -> None:
    """Its own words before the program's; none where it is not known, or there is but one."""
    words = launch_command(environment, ["python", "-u", "train.py"])
    assert " ".join(words) == command
