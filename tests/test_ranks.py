"""Where a process stands among those that train together."""

import pytest

from opusclip_mlops.ranks import Place, place_in, rank_in, world_size_in

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
