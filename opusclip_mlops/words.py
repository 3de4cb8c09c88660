"""What stands in a mirror once a run, not at a step: params, tags, datasets, files, the registry.

Each has a name and a mapping of texts; of one name the last holds.
"""

import json

from opusclip_mlops.records import About, Dataset, Files, Params, Record, Tags

NOTE_TAG = "mlflow.note.content"
"""The tag that holds a run's notes."""

PROVENANCE = "provenance"
"""The name of what a tracker says of its process and machine: only a live mirror has it."""

MOST_PROFILE_CHARACTERS = 2_000
"""What a mirror shows of a dataset's profile; the rest of it is in MLflow."""

_OF_THE_MACHINE = ("mlflow.", "opusclip.")


def words_of(record: Record) -> dict[str, dict[str, str]]:
    """The words of a record by their names, nothing for one with a step or of another kind."""
    match record:
        case Params():
            return {"params": record.values}
        case Tags():
            return _words_of_tags(record.values)
        case Dataset():
            profile = _shortened(record.profile)
            about = {"digest": record.digest, "source": record.source, "profile": profile}
            return {f"dataset/{record.context}/{record.name}": about}
        case Files():
            part = record.metadata.get("version") or record.metadata.get("name", "")
            return {f"files/{record.name}/{part}".rstrip("/"): _about_files(record)}
        case About():
            return {record.name: record.values}
    return {}


def _shortened(profile: str) -> str:
    """A profile as a configuration can hold it: without its films, and of a long one the beginning.

    Of runs with the same dataset MLflow shows the films of the first only.
    """
    said = _without_films(profile) if '"sources"' in profile else profile
    if len(said) <= MOST_PROFILE_CHARACTERS:
        return said
    return f"{said[:MOST_PROFILE_CHARACTERS]}… ({len(said)} characters, all of them in MLflow)"


def _without_films(profile: str) -> str:
    try:
        about = json.loads(profile)
        counts = {key: about["sources"][key] for key in ("film_count", "clip_count")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return profile
    return json.dumps({**about, "sources": counts})


def _words_of_tags(values: dict[str, str]) -> dict[str, dict[str, str]]:
    """A person's tags, the notes, and where a run comes from: a replay has that from MLflow."""
    noted = {NOTE_TAG: values[NOTE_TAG]} if NOTE_TAG in values else {}
    made = {k: v for k, v in values.items() if k.startswith(_OF_THE_MACHINE) and k not in noted}
    tags = {k: v for k, v in values.items() if k not in made and k not in noted}
    every = {"tags": tags, PROVENANCE: made, "notes": {"text": values.get(NOTE_TAG, "")}}
    return {name: said for name, said in every.items() if said and (name != "notes" or noted)}


def _about_files(record: Files) -> dict[str, str]:
    sizes = {
        path: f"{uri} ({record.sizes_bytes[path]} bytes)" if path in record.sizes_bytes else uri
        for path, uri in sorted(record.uris.items())
    }
    # "latest" needs no saying: it moves to whatever is newest.
    return sizes | {"aliases": ", ".join(sorted({*record.aliases} - {"latest"}))}
