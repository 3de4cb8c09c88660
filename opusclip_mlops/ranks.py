"""Where a process stands among those that train together, as what launched it says."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# What mpirun starts under Slurm inherits the numbers of mpirun's own processes from it.
_RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
_LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
_NODES = ("GROUP_RANK", "SLURM_NODEID")
_NODE_COUNTS = ("GROUP_WORLD_SIZE", "SLURM_NNODES")
_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")
_JOBS = ("TORCHELASTIC_RUN_ID", "PMIX_NAMESPACE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process stands among those that train together.

    Attributes:
        rank: Its number among all, from 0.
        local_rank: Its number among those of its node, from 0.
        world_size: How many processes train together.
        node: The number of its node, from 0.
        nodes: How many nodes train together.
        attempt: How often its launcher says that it has started this process anew, from 0: other
            machines may count otherwise. In a run that it has joined, how often the run's owner
            has begun anew, the same for all.
        is_one_machine: Whether all of them are known to be on one machine.
        was_many: Whether this is the last of many that its run had before.
        job: What the launcher calls them together, the same in all of them; empty where it has no
            name for them.
    """

    rank: int
    local_rank: int
    world_size: int
    node: int = 0
    nodes: int = 1
    attempt: int = 0
    is_one_machine: bool = False
    was_many: bool = False
    job: str = ""


def place_in(environment: Mapping[str, str]) -> Place | None:
    """Where this process stands by torchrun's, Slurm's or Open MPI's variables; None for none."""
    rank, size = rank_in(environment), _number(environment, _SIZES)
    if rank is None or not size or rank >= size or _is_batch_script(environment):
        return None
    return Place(
        rank=rank,
        local_rank=_number(environment, _LOCAL_RANKS) or 0,
        world_size=size,
        node=_number(environment, _NODES) or 0,
        nodes=_number(environment, _NODE_COUNTS) or 1,
        attempt=_number(environment, ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")) or 0,
        is_one_machine=_is_one_machine(environment, size),
        job=_job(environment),
    )


def _is_one_machine(environment: Mapping[str, str], size: int) -> bool:
    """Whether what launched it says so: numbers that were set by hand tell nothing."""
    here = _number(environment, _LOCAL_SIZES)
    return _number(environment, _NODE_COUNTS) == 1 if here is None else here == size


def _is_batch_script(environment: Mapping[str, str]) -> bool:
    """Whether this is a script of Slurm's, which has a number though srun started nobody."""
    others = environment.keys() & {"RANK", "OMPI_COMM_WORLD_RANK"}
    return not others and "SLURM_STEP_ID" not in environment


def _job(environment: Mapping[str, str]) -> str:
    """What the launcher calls all that it started together; one job of Slurm may have many."""
    if named := next((environment[name] for name in _JOBS if environment.get(name)), ""):
        return named
    slurm = (environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_STEP_ID", ""))
    return ".".join(filter(None, slurm))


def rank_in(environment: Mapping[str, str]) -> int | None:
    """The number of this process among those that train together, None for one that is alone."""
    return _number(environment, _RANKS)


def world_size_in(environment: Mapping[str, str]) -> int:
    """How many processes train together as their launcher says, 1 where none does."""
    return max(1, _number(environment, _SIZES) or 1)


def launch_command(environment: Mapping[str, str], command: Sequence[str]) -> list[str]:
    """What starts all ranks as this one was started, by torchrun, mpirun or srun.

    Empty for a process that is alone, and where no launcher is known. `command` is this process's
    own, with the interpreter; on many machines torchrun is started on each.
    """
    size = world_size_in(environment)
    if size == 1:
        return []
    if "TORCHELASTIC_RUN_ID" in environment:
        nodes, here = (_number(environment, (n,)) or 1 for n in (_NODE_COUNTS[0], _LOCAL_SIZES[0]))
        on_many = ["--nnodes", str(nodes)] if nodes > 1 else []
        program = command[2:] if list(command[1:2]) == ["-u"] else command[1:]
        return ["torchrun", *on_many, "--nproc-per-node", str(here), *program]
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return ["mpirun", "-np", str(size), *command]
    return ["srun", "--ntasks", str(size), *command] if "SLURM_STEP_ID" in environment else []


def _number(environment: Mapping[str, str], names: Sequence[str]) -> int | None:
    """The first of these variables that is there, None where it is no number."""
    known = next((environment[name] for name in names if name in environment), "")
    return int(known) if re.fullmatch(r"\d{1,9}", known, re.ASCII) else None
