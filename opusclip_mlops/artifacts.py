"""A run's artifact files, read as records: clips, pictures, texts, tables, checkpoints, the rest.

Nothing is downloaded but what a record is made of: the metadata of checkpoints, and the tables of
`mlflow.log_table`. Clips, pictures, texts, insights and tables of ours are fetched later, one at a
time.
"""

import json
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from opusclip_mlops import layout
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.folder import Identity
from opusclip_mlops.insight_reading import insights_among, pictures_among, tables_among
from opusclip_mlops.listing import Found, Part, Sizes, content, list_files
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.records import Files, Image, Text, Video
from opusclip_mlops.redaction import redacted
from opusclip_mlops.references import checkpoint_files, uri_of
from opusclip_mlops.refusals import asking_faults, is_for_good, reason_of
from opusclip_mlops.tables import read_table, table_paths

_METADATA = "metadata.json"
_MOST_METADATA_BYTES = 16 * 2**20


def read_artifacts(
    repository: ArtifactRepository, identity: Identity, run: Run, *, is_over: bool
) -> Found:
    """All artifact files of a run, as records.

    A table of `mlflow.log_table` is read once the run is over: until then it may grow.
    """
    sizes, unlisted = list_files(repository)
    found = Found(left_out=unlisted)
    found.take(_clips(sizes))
    found.take(pictures_among(sizes))
    found.take(_pictures({path: size for path, size in sizes.items() if path not in found.used}))
    found.take(_texts(sizes))
    found.take(tables_among(sizes))
    found.take(insights_among(sizes))
    found.take(_checkpoints(repository, sizes, identity, run.data.tags))
    found.take(_tables(repository, sizes, run, is_over=is_over))
    found.used.update(path for path in sizes if layout.is_sources(path) or layout.origin_of(path))
    found.used.update(filter(layout.is_relayed, sizes))
    _miss(found, sizes, run.data.tags)
    rest = {path: size for path, size in sizes.items() if path not in found.used}
    if rest:
        found.parts.append(Part(_other_files(rest, identity)))
    return found


def _clips(sizes: Sizes) -> Found:
    """Clips of ours; only its still in the image grid says when a clip was logged."""
    stills = {
        (still.step, still.mark): (path, still)
        for path in sizes
        if path.endswith(".png") and (still := layout.image_of(path))
    }
    found = Found()
    for path in sizes:
        clip = layout.clip_of(path)
        if clip is None:
            continue
        still_path, still = stills.get((clip.step, clip.mark), ("", None))
        if still is None:
            found.leave(path, "its still is not under images/: when it was logged is not known")
            continue
        record = Video(still.timestamp_ms, clip.step, clip.key, "", 0.0)
        found.parts.append(Part(record, path))
        moving = f"{still_path.removesuffix('.png')}+compressed.webp"
        found.used.update({path, still_path, moving})
    return found


def _pictures(sizes: Sizes) -> Found:
    """What `mlflow.log_image` logged: the whole picture, the small one where that is all."""
    found = Found()
    seen: set[layout.Named] = set()
    for path in sorted(sizes, key=lambda path: (not path.endswith(".png"), path)):
        picture = layout.image_of(path)
        if picture is None:
            continue
        if "#" in path:
            found.leave(path, "MLflow hands out no file with a # in its name")
            continue
        found.used.add(path)
        if picture not in seen:
            seen.add(picture)
            record = Image(picture.timestamp_ms, picture.step, picture.key, "")
            found.parts.append(Part(record, path))
    return found


def _texts(sizes: Sizes) -> Found:
    found = Found()
    for path in sizes:
        text = layout.text_of(path)
        if text:
            found.parts.append(Part(Text(text.timestamp_ms, text.step, text.key, ""), path))
            found.used.add(path)
    return found


def _checkpoints(
    repository: ArtifactRepository, sizes: Sizes, identity: Identity, tags: Mapping[str, str]
) -> Found:
    """Checkpoints that stand whole in MLflow, the newest last."""
    found = Found()
    whole: list[tuple[str, CheckpointMetadata]] = []
    for name in _checkpoint_names(sizes):
        folder = f"{layout.CHECKPOINTS}/{name}"
        about = _metadata(repository, f"{folder}/{_METADATA}", sizes, found)
        if about is None:
            continue
        problem = _missing(about, folder, sizes)
        if problem:
            found.leave(folder, problem)
            continue
        whole.append((name, about))
        found.used.update(f"{folder}/{file}" for file in (*about.files, _METADATA))
    last = tags.get(layout.LAST_TAG)
    whole.sort(key=lambda one: (one[0] == last, one[1].created_ms, one[1].step, one[0]))
    of_step = {about.step: name for name, about in whole}
    for name, about in whole:
        files = checkpoint_files(identity, _about(name, about, tags))
        aliases = [one for one in files.aliases if _points_now(one, name, about, of_step, whole)]
        found.parts.append(Part(_with_aliases(files, aliases)))
    return found


def _checkpoint_names(sizes: Sizes) -> list[str]:
    parts = (path.split("/") for path in sizes)
    return [one[1] for one in parts if one[::2] == [layout.CHECKPOINTS, _METADATA]]


def _points_now(
    alias: str,
    name: str,
    about: CheckpointMetadata,
    of_step: Mapping[int, str],
    whole: list[tuple[str, CheckpointMetadata]],
) -> bool:
    """Whether no later checkpoint took the alias over."""
    if alias == "latest":
        return name == whole[-1][0]
    return alias != f"step-{about.step}" or of_step[about.step] == name


def _with_aliases(files: Files, aliases: list[str]) -> Files:
    return Files(
        files.name, files.kind, files.uris, files.sizes_bytes, files.metadata, aliases
    )  # fmt: skip


def _metadata(
    repository: ArtifactRepository, path: str, sizes: Sizes, found: Found
) -> CheckpointMetadata | None:
    if sizes[path] > _MOST_METADATA_BYTES:
        found.leave(path, f"it has {sizes[path]} bytes: no metadata of a checkpoint has so many")
        return None
    try:
        return CheckpointMetadata.from_dict(json.loads(content(repository, path)))
    except (CheckpointError, ValueError, AttributeError) as error:
        found.leave(path, f"it can't be read as a checkpoint's metadata: {reason_of(error)}")
    except asking_faults() as error:
        if not is_for_good(error):
            raise
        found.leave(path, reason_of(error))
    return None


def _missing(about: CheckpointMetadata, folder: str, sizes: Sizes) -> str:
    if not about.files:
        return "its metadata lists no files"
    for name, stored in about.files.items():
        there = sizes.get(f"{folder}/{name}")
        if there is None:
            return f"it is not whole: {name} is missing"
        if there not in (0, stored.size_bytes):
            return f"it is not whole: {name} has {there} bytes of {stored.size_bytes}"
    return ""


def _about(name: str, about: CheckpointMetadata, tags: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "best": tags.get(layout.BEST_TAG) == name,
        "step": about.step,
        "epoch": about.epoch,
        "metrics": {key: str(value) for key, value in about.metrics.items()},
        "files": {file: one.sha256 for file, one in about.files.items()},
        "sizes_bytes": {file: one.size_bytes for file, one in about.files.items()},
    }


def _tables(repository: ArtifactRepository, sizes: Sizes, run: Run, *, is_over: bool) -> Found:
    found = Found()
    paths, problem = table_paths(run.data.tags)
    if problem:
        found.leave(*problem)
    for path in paths:
        if path in sizes and layout.table_of(path):
            continue  # ours, read by its name
        if path not in sizes:
            found.leave(path, "MLflow calls it a table of this run, but the file is not there")
        elif not is_over:
            found.leave(path, "a table may grow: it is mirrored once the run has ended")
        else:
            _add_table(repository, path, sizes[path], run, found)
    return found


def _add_table(
    repository: ArtifactRepository, path: str, size_bytes: int, run: Run, found: Found
) -> None:
    try:
        read = read_table(path, size_bytes, lambda: content(repository, path))
    except asking_faults() as error:
        if not is_for_good(error):
            raise
        found.leave(path, reason_of(error))
        return
    for note in read.left_out:
        found.leave(path, note)
    if read.columns is not None:
        found.parts.append(Part(read.record(path, timestamp_ms=run.info.start_time or 0)))
        found.used.add(path)


def _miss(found: Found, sizes: Sizes, tags: Mapping[str, str]) -> None:
    """Say what the run's tags tell of but its artifacts lack, as on another machine's disk."""
    for tag in (layout.LAST_TAG, layout.BEST_TAG):
        folder = f"{layout.CHECKPOINTS}/{tags.get(tag)}/"
        if tag in tags and not any(path.startswith(folder) for path in sizes):
            found.leave(folder.rstrip("/"), f"the tag {tag} names it, but it is not there")
    if layout.LOGGED_IMAGES_TAG in tags and not any(map(layout.image_of, sizes)):
        found.leave(layout.IMAGES, "the run has logged pictures, but they are not there")


def _other_files(rest: Sizes, identity: Identity) -> Files:
    base = redacted(identity.artifact_uri)
    return Files(
        name=f"artifacts-{identity.mirror_id}",
        kind="files",
        uris={path: uri_of(base, path) for path in rest},
        sizes_bytes=rest,
        metadata={"mlflow_run_id": identity.run_id},
    )
