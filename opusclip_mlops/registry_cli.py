"""The verbs about registered models: one verb, one call of the library."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

if TYPE_CHECKING:
    from opusclip_mlops.decisions import Decision

_NAME = click.argument("name")
_VERSION = click.argument("version")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
_REASON = click.option("--reason", default="", help="Why; it is kept in the history.")


def _places(verb: Callable[..., None]) -> Callable[..., None]:
    """The options that say where MLflow is; a verb with them does not wait long for it."""

    @functools.wraps(verb)
    def brief(*args: object, **options: object) -> None:
        from opusclip_mlops import patience

        patience.ask_briefly()
        verb(*args, **options)

    for option in (
        click.option("--registry-uri", help="The MLflow registry, where it is another server."),
        click.option("--tracking-uri", help="The MLflow server or store."),
    ):
        brief = option(brief)
    return brief


_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("run_id")
@click.option("--checkpoint", default="best", show_default=True, help="best, last or its name.")
@click.option("--as", "name", required=True, help="The registered model; it is made if need be.")
@click.option("--model-file", type=_FILE, help="Serves a model of your own: models from code.")
@click.option("--input-example", type=_FILE, help="With it: rows of a request, in JSON.")
@click.option("--requirements", type=_FILE, help="With it: what serving needs, as pip reads it.")
@click.option("--input-reference", type=_FILE, help="Usual rows in JSON, 100 or more, for drift.")
@_places
@_JSON
def register(
    run_id: str,
    checkpoint: str,
    name: str,
    model_file: Path | None,
    input_example: Path | None,
    requirements: Path | None,
    input_reference: Path | None,
    as_json: bool,
    **places: str | None,
) -> None:
    """Make a checkpoint of a run the next version of a model.

    Without --model-file it is served as one of the clip generators of this package.
    """
    from opusclip_mlops import packing, registry, registry_console

    packed = packing.chosen(model_file, input_example, requirements)
    made = registry.register(
        run_id,
        name=name,
        checkpoint=checkpoint,
        python_model=packed.python_model,
        input_example=packed.input_example,
        signature=packed.signature,
        pip_requirements=packed.pip_requirements,
        serves=packed.serves,
        input_reference=packing.rows_of(input_reference) if input_reference else None,
        **places,
    )
    registry_console.print_version(made, as_json=as_json)


@click.group()
def gates() -> None:
    """Keep, show and try the policy that a model's versions have to pass."""


@gates.command("set")
@_NAME
@click.argument("file", type=click.File(encoding="utf-8"))
@_REASON
@_places
@_JSON
def set_gates(name: str, file: IO[str], reason: str, as_json: bool, **places: str | None) -> None:
    """Keep the policy in FILE (YAML, - for stdin) with a model, for everybody."""
    from opusclip_mlops import gated, registry_console

    text = file.read()
    made = gated.set_policy(name, text, source=file.name, reason=reason, came_by="CLI", **places)
    registry_console.print_decision(made, as_json=as_json)


@gates.command()
@_NAME
@_places
def show(name: str, **places: str | None) -> None:
    """Print the policy of a model, as it was written."""
    from opusclip_mlops import chronicle, patience

    click.echo(chronicle.policy_of(name, client=patience.connected(**places)), nl=False)


@gates.command()
@_NAME
@_VERSION
@click.option("--to", required=True, help="Staging or Production.")
@_places
@_JSON
def check(name: str, version: str, to: str, as_json: bool, **places: str | None) -> None:
    """Say what the gate says of a version; nothing is changed, exit code 1 if it does not pass."""
    from opusclip_mlops import gated, registry_console

    verdict = gated.check(name, version, to=to, **places)
    registry_console.print_verdict(verdict, as_json=as_json)
    sys.exit(0 if verdict.passed else 1)


@click.command()
@_NAME
@_VERSION
@click.option("--to", required=True, help="Staging, Production, Archived or None.")
@_REASON
@click.option("--approve", is_flag=True, help="Approve it first, in your name.")
@click.option("--force", is_flag=True, help="Whatever the gate says; needs --reason.")
@_places
@_JSON
def promote(
    name: str,
    version: str,
    to: str,
    reason: str,
    approve: bool,
    force: bool,
    as_json: bool,
    **places: str | None,
) -> None:
    """Move a version into a stage, past its gate; the alias follows.

    Where the gate refuses, its verdict is printed, nothing is moved and the exit code is 1.
    """
    from opusclip_mlops import gated

    _decide(
        lambda: gated.promote(
            name, version, to=to, reason=reason, approve=approve, force=force, came_by="CLI",
            **places,
        ),
        as_json=as_json,
    )  # fmt: skip


@click.command()
@_NAME
@click.option("--stage", default="Production", show_default=True, help="Staging or Production.")
@click.option("--reason", required=True, help="Why; it is kept in the history.")
@click.option("--force", is_flag=True, help="Whatever the smoke test says.")
@_places
@_JSON
def rollback(
    name: str, stage: str, reason: str, force: bool, as_json: bool, **places: str | None
) -> None:
    """Give a stage back to the version that held it before."""
    from opusclip_mlops import gated

    _decide(
        lambda: gated.rollback(
            name, stage=stage, reason=reason, force=force, came_by="CLI", **places
        ),
        as_json=as_json,
    )


@click.command()
@_NAME
@click.option("--at", metavar="TIME", help="Up to a time like 2026-11-01T12:00.")
@click.option("--verify", "verifies", is_flag=True, help="Look for what was changed or removed.")
@_places
@_JSON
def history(name: str, at: str | None, verifies: bool, as_json: bool, **places: str | None) -> None:
    """Show what was decided about a model, by whom, and who holds each stage.

    A history that is not whole is shown, with a word about it on stderr; with --verify the exit
    code is 1 then.
    """
    from opusclip_mlops import chain, chronicle, patience, registry_console
    from opusclip_mlops.decisions import HELD

    if at and verifies:
        raise click.UsageError("--verify looks at the whole history: leave out --at")
    client = patience.connected(**places)
    at_ms = registry_console.time_ms(at) if at else None
    records = chronicle.history(name, at_ms=at_ms, client=client)
    problems = chronicle.verify_history(name, client=client)
    if verifies:
        registry_console.print_problems(problems, len(records), as_json=as_json)
        sys.exit(1 if problems else 0)
    holders = {stage: chain.holder(records, stage) for stage in HELD}
    registry_console.print_history(records, holders, as_json=as_json)
    registry_console.warn_of_problems(name, problems)


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--poll",
    "poll_s",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    help="Seconds between two looks at the registry.",
)
@click.option("--once", is_flag=True, help="Look once.")
@_places
@_JSON
def watch(
    names: tuple[str, ...], poll_s: float, once: bool, as_json: bool, **places: str | None
) -> None:
    """Record what is moved by hand in MLflow, and put back what a gate refuses.

    NAME are registered models, all of them by default. It goes on until it is stopped. With --once
    the exit code is 1 where the registry or a model could not be looked at.
    """
    from opusclip_mlops import gated, mirror_console, registry_console

    problems: list[str] = []

    def show(one: gated.Sighting) -> None:
        problems.append(one.problem)
        registry_console.print_sighting(one, as_json=as_json)

    with mirror_console.until_stopped():
        gated.watch(
            names,
            poll_s=poll_s,
            show=show,
            rounds=1 if once else None,
            **places,
        )
    if once and any(problems):
        sys.exit(1)


def _decide(decide: Callable[[], "Decision"], *, as_json: bool) -> None:
    """Print a decision, or the verdict that refused it."""
    from opusclip_mlops import registry_console
    from opusclip_mlops.promotion import GateRefused

    try:
        made = decide()
    except GateRefused as refused:
        registry_console.print_refusal(refused, as_json=as_json)
        sys.exit(1)
    registry_console.print_decision(made, as_json=as_json)


VERBS = (register, gates, promote, rollback, history, watch)
"""All of them, for the command."""
