"""The verb about webhooks: one verb, one call of the library."""

import sys

import click


@click.command()
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--retry", is_flag=True, help="Send what failed again; the database's URI is needed.")
@click.option("--tracking-uri", help="The MLflow server or store.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def webhooks(models: tuple[str, ...], retry: bool, tracking_uri: str | None, as_json: bool) -> None:
    """Show how far each webhook has been told of decisions, and what failed.

    MODEL is a registered model; all of them by default. The exit code is 1 when something failed
    that was not put back.
    """
    from opusclip_mlops import announcing, patience, webhooks_console

    patience.ask_briefly()
    client = patience.connected(tracking_uri=announcing.plain_uri(tracking_uri))
    if retry:
        announcing.demand_database(client)
    found = announcing.deliveries(models, client=client)
    if retry:
        count = announcing.put_back(found, client=client)
        found = announcing.deliveries(models, client=client)
        webhooks_console.tell_put_back(count)
    webhooks_console.print_deliveries(found, as_json=as_json)
    sys.exit(1 if announcing.lost(found) else 0)


VERBS = (webhooks,)
"""All of them, for the command."""
