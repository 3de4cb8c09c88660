"""The scripts that Slurm is given: one that trains, and one that tells MLflow how it ended."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from opusclip_mlops.launching import commands
from opusclip_mlops.launching.settings import TELLING_S
from opusclip_mlops.launching.workplace import Plan, python_of

JOB = "opusclip_mlops.launching.job"

CLOSING_MINUTES = 30
"""How long the closing job may take to deliver what is left."""

_TRAINING = """\
# Slurm tells this shell alone that time is up: it has the ranks told, and waits for them. A signal
# to srun would end them by force.
stopped=''
ranks=''
trap 'stopped=SIGTERM; scancel --quiet --signal=TERM "$SLURM_JOB_ID"' TERM

# What an earlier job left is delivered here: that may take minutes, in which no rank is to be told.
attempt=$({job} begin {folder})
began=$?
if [ "$attempt" = over ]; then exit 0; fi
if [ "$began" -ne 0 ] && [ -z "$stopped" ]; then exit 1; fi

# The address by which Slurm itself reaches the first node: its name may mean nothing elsewhere.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if [[ $(scontrol --oneliner show node "$MASTER_ADDR") =~ NodeAddr=([^ ]+) ]]; then
    MASTER_ADDR=${{BASH_REMATCH[1]}}
fi
export MASTER_ADDR
port={port}

if [ -z "$stopped" ]; then
    {srun} &
    ranks=$!
fi
while [ -n "$ranks" ] && kill -0 "$ranks" 2>/dev/null; do wait "$ranks"; done
trap '' TERM
# A signal ends a wait with a code of its own: srun's is asked for once it has ended.
code=143
if [ -n "$ranks" ]; then
    wait "$ranks"
    code=$?
fi
{job} end {folder} "$attempt" "$code" "$stopped"
"""


def training_script(plan: Plan, folder: Path) -> str:
    """The script of a job that trains, or goes on where an earlier one had to end."""
    job = _words([*_python(plan), JOB])
    port = plan.config.port or "$((20000 + SLURM_JOB_ID % 10000))"
    body = _TRAINING.format(job=job, folder=_word(str(folder)), port=port, srun=_srun(plan, folder))
    return "\n".join([*_head(plan, _wanted(plan)), *_exports(plan), "", body])


def closing_script(plan: Plan, folder: Path) -> str:
    """The script of the job that comes when all others are over, however they ended."""
    wanted = {
        "nodes": "1",
        "ntasks": "1",
        "mem": "2G",
        "time": str(CLOSING_MINUTES),
        "requeue": None,
    }
    job = _words([*_python(plan), JOB])
    lines = [*_head(plan, wanted), *_exports(plan), ""]
    return "\n".join([*lines, f"exec {job} close {_word(str(folder))}", ""])


def _head(plan: Plan, wanted: dict[str, str | None]) -> Iterator[str]:
    yield "#!/bin/bash"
    config = plan.config
    named = {"partition": config.partition, "account": config.account, "qos": config.qos}
    options = {"job-name": f"opusclip-{plan.run_id[:8]}", **wanted}
    options |= {name: value for name, value in named.items() if value is not None}
    for name, value in {**options, "export": "ALL"}.items():
        yield f"#SBATCH --{name}" + ("" if value is None else f"={value}")
    yield "set -u"


def _wanted(plan: Plan) -> dict[str, str | None]:
    config = plan.config
    amounts = {
        "cpus-per-task": config.cpus,
        "gpus-per-node": config.gpus,
        "mem": config.memory,
        "time": config.time_limit,
    }
    return {
        "nodes": str(config.nodes),
        "ntasks-per-node": "1",
        **{name: str(amount) for name, amount in amounts.items() if amount},
        "requeue" if config.requeue else "no-requeue": None,
        "open-mode": "append",
        "signal": f"B:TERM@{config.grace_s + TELLING_S}",
    }


def _exports(plan: Plan) -> Iterator[str]:
    """Slurm hands on the environment of who submits: what is secret is in there, not here."""
    for name, value in plan.environment.items():
        yield f"export {name}={_word(value)}"
    # A task has the cores of its job only where srun is told so again.
    if plan.config.cpus:
        yield f"export SRUN_CPUS_PER_TASK={plan.config.cpus}"


def _srun(plan: Plan, folder: Path) -> str:
    config = plan.config
    arguments = commands.torchrun_arguments(config, plan.program, meeting_id="", endpoint="")
    # The shell fills in what is known on the first node only.
    filled = {
        "--rdzv-id=": f'"--rdzv-id={plan.run_id}-$attempt"',
        "--rdzv-endpoint=": '"--rdzv-endpoint=$MASTER_ADDR:$port"',
    }
    outcome = _word(f"{folder}/outcomes/") + '"$attempt"' + _word("-{node}.json")
    words = [
        *map(_word, ("srun", "--kill-on-bad-exit=1", f"--nodes={config.nodes}")),
        *map(_word, (f"--ntasks={config.nodes}", *_python(plan), commands.AGENT)),
        outcome,
        *(filled.get(one) or _word(one) for one in arguments),
    ]
    return " ".join(words)


def _python(plan: Plan) -> list[str]:
    return list(python_of(plan.config, sys.executable))


def _words(words: list[str]) -> str:
    return " ".join(map(_word, words))


def _word(text: str) -> str:
    return shlex.quote(text)
