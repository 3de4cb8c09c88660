"""The verb that lets people vote blindly: one verb, one call of the library."""

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from opusclip_mlops.blind_voting import Poll

_STEPS = re.compile(r"(-?\d{1,18})(?:,(-?\d{1,18}))?")
_FILE = click.Path(dir_okay=False, path_type=Path)


def _steps(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int] | None:
    if value == "last":
        return None
    found = _STEPS.fullmatch(value)
    if not found:
        raise click.BadParameter(
            f"{value!r:.60} is none of: last, a step like 500, or A's and B's like 500,800",
            ctx,
            param,
        )
    return int(found[1]), int(found[2] or found[1])


@click.command()
@click.argument("runs", metavar="[RUN_A RUN_B]", nargs=-1)
@click.option("--panel", help="The panel's name, or its title.")
@click.option(
    "--steps", callback=_steps, default="last", show_default=True, help="last, 500, or 500,800."
)
@click.option("--votes", type=_FILE, help="The file of votes; named by panel and runs otherwise.")
@click.option("--voter", help="Who votes; your user name otherwise.")
@click.option("--seed", type=click.IntRange(min=0), help="Of order and sides, in a new file.")
@click.option("--page", type=_FILE, help="Write the page for a voter elsewhere, and end.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="On 127.0.0.1; any by default."
)
@click.option("--status", type=_FILE, help="Say what the votes in this file say so far, and end.")
@click.option("--add", type=_FILE, multiple=True, help="With --status: votes that a page saved.")
@click.option(
    "--minimum-effect",
    type=click.FloatRange(0, 0.5),
    default=0.1,
    show_default=True,
    help="How far from 1/2 a preference lies that matters.",
)
@click.option(
    "--log/--no-log",
    "logs",
    default=None,
    help="Log the result to both runs; done after voting, not by --status.",
)
@click.option("--tracking-uri", help="The MLflow server or store.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def ab(
    runs: tuple[str, ...],
    panel: str | None,
    steps: tuple[int, int] | None,
    votes: Path | None,
    voter: str | None,
    seed: int | None,
    page: Path | None,
    port: int,
    status: Path | None,
    add: tuple[Path, ...],
    minimum_effect: float,
    logs: bool | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Vote blindly on two runs' samples of one panel: which is better?

    RUN_A and RUN_B are MLflow run ids, run names or unique beginnings. The address that is printed
    opens the pairs in a browser, in an order and on sides drawn for this voter: 1 left, 2 right, 0
    no preference, U undo. Each vote is kept at once; Ctrl-C ends it, and the same command goes on.
    Look with --status as often as you like: the p it gives is valid at any time.
    """
    if add and status is None:
        raise click.UsageError("--add goes with --status")
    if (status is None) == (len(runs) != 2) or (status is None and not panel):
        raise click.UsageError("give two runs and --panel, or --status and a file of votes")
    from opusclip_mlops import ab_console, blind_voting, patience, samples_console

    patience.ask_briefly()
    if status is not None:
        found = blind_voting.status(
            status, minimum_effect=minimum_effect, saved=add, logs=bool(logs),
            tracking_uri=tracking_uri,
        )  # fmt: skip
        ab_console.print_result(found, as_json=as_json)
        return
    asked = blind_voting.Asked(
        run_a=runs[0], run_b=runs[1], panel=panel or "", steps=steps, votes=votes, voter=voter,
        seed=seed, tracking_uri=tracking_uri,
    )  # fmt: skip
    with contextlib.ExitStack() as bars:
        show = bars.enter_context(samples_console.progress_shown())

        def tell(address: str, poll: "Poll") -> None:
            bars.close()
            ab_console.tell_address(address, poll)

        if page:
            poll = blind_voting.write_page(asked, page, show=show)
        else:
            found = blind_voting.vote(
                asked, tell=tell, minimum_effect=minimum_effect, port=port, logs=logs is not False,
                show=show,
            )  # fmt: skip
    if page:
        ab_console.print_page(poll, page, as_json=as_json)
    else:
        ab_console.print_result(found, as_json=as_json)


VERBS = (ab,)
"""All of them, for the command."""
