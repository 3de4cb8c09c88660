"""The `opusclip` command: one verb, one function, one call of the library.

Each verb imports what it needs itself, so that `opusclip --help` answers at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import click

from opusclip_mlops import (
    ab_cli,
    alerts_cli,
    compare_cli,
    doctor_cli,
    launch_cli,
    profiling_cli,
    registry_cli,
    report_cli,
    samples_cli,
    scoring_cli,
    server_cli,
    sweep_cli,
    webhooks_cli,
)
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.object_storage import feed
from opusclip_mlops.unread_output import dropped

_JOURNAL_DIR = click.option(
    "--journal-dir",
    type=click.Path(path_type=Path),
    help="Where the runs' folders lie; OPUSCLIP_JOURNAL_DIR or .opusclip/journal otherwise.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


@click.group()
@click.version_option(package_name="opusclip-mlops", prog_name="opusclip")
def opusclip() -> None:
    """Track video model training: MLflow is the record, TensorBoard and W&B its mirrors."""


@opusclip.command("link-env")
@click.argument(
    "project", type=click.Path(exists=True, file_okay=False, path_type=Path), default="."
)
def link_env(project: Path) -> None:
    """Let `mlflow run PROJECT` use the virtual environment in use.

    MLflow otherwise needs conda or pyenv to build one. PROJECT is the current folder by default.
    """
    from opusclip_mlops.environment import link_environment

    link = link_environment(project)
    click.echo(f"mlflow run uses {link.target} (by {link.path})")
    if link.replaced:
        click.echo(
            f"it used {link.replaced}: clones of one project share this link, and who links last "
            "has it",
            err=True,
        )


@opusclip.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@_JOURNAL_DIR
@_JSON
def status(runs: tuple[str, ...], journal_dir: Path | None, as_json: bool) -> None:
    """Show what is on its way from this machine, and how far each sink is.

    RUN is a local id, an MLflow run id, a run name or a unique beginning of one; all runs that
    still have a journal here by default. Sweeps that were cut off are named too.
    """
    from opusclip_mlops import console, operating

    found = operating.status(runs, journal_dir=journal_dir)
    where = operating.configured_journal_dir(journal_dir)
    sweeps = None if runs else sweep_cli.cut_off()
    console.print_status(found, where, as_json=as_json, sweeps=sweeps)
    if not runs:
        sweep_cli.tell_cut_off()


@opusclip.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Recover every run that has a journal here.")
@_JOURNAL_DIR
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="How many seconds to wait; delivery goes on behind it.",
)
@click.option(
    "--discard-refused",
    is_flag=True,
    help="Remove what a sink refused for good, once all else has arrived.",
)
@_JSON
def recover(
    runs: tuple[str, ...],
    every: bool,
    journal_dir: Path | None,
    timeout_s: float,
    discard_refused: bool,
    as_json: bool,
) -> None:
    """Deliver what crashed or offline processes left, then clean up.

    RUN is a local id, an MLflow run id, a run name or a unique beginning of one. The exit code is 0
    when everything was delivered and 1 when something remains. With --all the runs of sweeps that
    were cut off are ended too.
    """
    from opusclip_mlops import console, operating

    try:
        with console.progress_shown() as show:
            found = operating.recover(
                runs,
                every=every,
                journal_dir=journal_dir,
                timeout_s=timeout_s,
                discard_refused=discard_refused,
                show=show,
            )
    except KeyboardInterrupt:
        console.tell("stopped waiting: what was begun goes on, see opusclip status")
        sys.exit(130)
    where = operating.configured_journal_dir(journal_dir)
    try:
        sweeps = sweep_cli.settle_cut_off() if every else None
    except KeyboardInterrupt:
        console.print_recoveries(found, where, as_json=as_json)
        sys.exit(130)
    console.print_recoveries(found, where, as_json=as_json, sweeps=sweeps)
    is_settled = all(one["is_ended"] for one in sweeps or ())
    sys.exit(0 if is_settled and all(one.is_settled for one in found) else 1)


_RUN_IDS = click.argument("run_ids", metavar="[RUN_ID]...", nargs=-1)
_EXPERIMENTS = click.option(
    "--experiment", "experiments", multiple=True, help="All runs of an experiment: name or id."
)
_TO = click.option(
    "--to",
    multiple=True,
    metavar="PLACE",
    help="tensorboard:FOLDER, wandb:ENTITY/PROJECT or wandb:PROJECT; may be given several times.",
)


def _places(verb: Callable[..., None]) -> Callable[..., None]:
    """The options that say where MLflow is, and how W&B is reached."""
    for option in (
        click.option(
            "--wandb-mode",
            type=click.Choice(["online", "offline"]),
            help="How W&B is written; online where there is a key otherwise.",
        ),
        click.option("--wandb-dir", help="The folder in which W&B keeps its wandb/."),
        click.option("--database-uri", help="MLflow's own database, to read points from at once."),
        click.option("--tracking-uri", help="The MLflow server or store."),
    ):
        verb = option(verb)
    return verb


@opusclip.command()
@_RUN_IDS
@_EXPERIMENTS
@_TO
@click.option("--follow", "follows", is_flag=True, help="Go on with present and future runs.")
@click.option("--plan", is_flag=True, help="Say what would be sent and what can't be.")
@click.option(
    "--poll",
    "poll_s",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="Seconds between two looks at MLflow, with --follow.",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait for another process that writes the same mirror.",
)
@_places
@_JSON
def mirror(
    run_ids: tuple[str, ...],
    experiments: tuple[str, ...],
    to: tuple[str, ...],
    follows: bool,
    plan: bool,
    poll_s: float,
    wait_s: float,
    as_json: bool,
    **places: str | None,
) -> None:
    """Bring the mirrors of MLflow runs up to date, in TensorBoard and W&B.

    Whatever a mirror lacks is sent, and one that holds what MLflow does not is made anew. It can be
    interrupted anywhere and called again. The exit code is 1 when a run could not be mirrored.
    """
    from opusclip_mlops import mirror_console, replay

    if follows and plan:
        raise click.UsageError("--follow and --plan exclude each other")
    where = replay.Places(**places)
    if follows:
        mirror_console.tell_offline(to, where)
        with mirror_console.lines_shown(as_json=as_json) as show, mirror_console.until_stopped():
            replay.follow(
                run_ids, to=to, experiments=experiments, poll_s=poll_s, places=where, show=show
            )
        return
    with mirror_console.progress_shown() as show:
        found = replay.mirror(
            run_ids, to=to, experiments=experiments, plan=plan, wait_s=wait_s, places=where,
            show=show,
        )  # fmt: skip
    mirror_console.refuse_unknown(found)
    mirror_console.print_mirrored(found, as_json=as_json)
    if any(one.outcome == "mirrored" for one in found):
        mirror_console.tell_offline(to, where)
    sys.exit(0 if mirror_console.is_well(found) else 1)


@opusclip.command()
@_RUN_IDS
@_EXPERIMENTS
@_TO
@click.option("--repair", is_flag=True, help="Mend mirrors that are not equal.")
@_places
@_JSON
def verify(
    run_ids: tuple[str, ...],
    experiments: tuple[str, ...],
    to: tuple[str, ...],
    repair: bool,
    as_json: bool,
    **places: str | None,
) -> None:
    """Compare MLflow with each mirror, point by point; exit code 1 when they are not equal.

    Without --to all mirrors that a run is known to have here are looked at.
    """
    from opusclip_mlops import mirror_console, replay, verifying

    with mirror_console.progress_shown() as show:
        found = verifying.verify(
            run_ids,
            to=to,
            experiments=experiments,
            repair=repair,
            places=replay.Places(**places),
            show=show,
        )
    mirror_console.refuse_unknown(found)
    mirror_console.print_verified(found, as_json=as_json)
    mirror_console.tell_under_way(found)
    sys.exit(0 if verifying.is_equal(found) else 1)


for _verb in (
    *registry_cli.VERBS,
    *samples_cli.VERBS,
    *scoring_cli.VERBS,
    *profiling_cli.VERBS,
    *server_cli.VERBS,
    *doctor_cli.VERBS,
    *webhooks_cli.VERBS,
    *alerts_cli.VERBS,
    *ab_cli.VERBS,
    *compare_cli.VERBS,
    *report_cli.VERBS,
    *launch_cli.VERBS,
    *sweep_cli.VERBS,
):
    opusclip.add_command(_verb)


@dropped()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; an error of ours or in the command is one line on stderr and exit code 2."""
    # MLflow draws its bars into pipes and files too.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for line in feed(os.environ):
        click.echo(line, err=True)
    try:
        code = opusclip.main(arguments, prog_name="opusclip", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "opusclip"
        _leave(2, f"error: {error.format_message().rstrip('.')}; see {path} --help")
    except (click.ClickException, OpusclipError) as error:
        _leave(2, f"error: {error}")
    except (click.Abort, KeyboardInterrupt):
        _leave(130, "stopped")
    sys.exit(code if isinstance(code, int) else 0)


def _leave(code: int, text: str) -> NoReturn:
    click.echo(" ".join(text.split()), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
