"""What stands in a mirror once a run, not at a step: params, tags, datasets, files, the registry.

Each has a name and a mapping of texts; of one name the last holds.
"""

from opusclip_mlops.records import About, Dataset, Files, Params, Record, Tags

NOTE_TAG = "mlflow.note.content"
"""The tag that holds a run's notes."""

_OF_THE_MACHINE = ("mlflow.", "opusclip.")


def words_of(record: Record) -> dict[str, dict[str, str]]:
    """The words of a record by their names, nothing for one with a step or of another kind."""
    match record:
        case Params():
            return {"params": record.values}
        case Tags():
            plain = {k: v for k, v in record.values.items() if not k.startswith(_OF_THE_MACHINE)}
            note = record.values.get(NOTE_TAG)
            tags = {"tags": plain} if plain else {}
            return tags | ({} if note is None else {"notes": {"text": note}})
        case Dataset():
            about = {"digest": record.digest, "source": record.source, "profile": record.profile}
            return {f"dataset/{record.context}/{record.name}": about}
        case Files():
            part = record.metadata.get("version") or record.metadata.get("name", "")
            return {f"files/{record.name}/{part}".rstrip("/"): _about_files(record)}
        case About():
            return {record.name: record.values}
    return {}


def _about_files(record: Files) -> dict[str, str]:
    sizes = {
        path: f"{uri} ({record.sizes_bytes[path]} bytes)" if path in record.sizes_bytes else uri
        for path, uri in sorted(record.uris.items())
    }
    # "latest" needs no saying: it moves to whatever is newest.
    return sizes | {"aliases": ", ".join(sorted({*record.aliases} - {"latest"}))}
