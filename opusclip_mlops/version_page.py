"""The page of a registered version in MLflow's UI: its description in Markdown, and its tags.

The UI renders tables, lists, links and pictures, and strips HTML attributes, styles and `data:`
URIs. Links are relative to the page, so that they hold behind any host name and path prefix. A
version's list shows the first words as they are written, so these carry no markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from opusclip_mlops.amounts import size_text
from opusclip_mlops.errors import PassportError
from opusclip_mlops.layout import CHECKPOINTS, image_of
from opusclip_mlops.metadata import CheckpointMetadata, StoredFile
from opusclip_mlops.passports import Passport
from opusclip_mlops.redaction import one_line

LONGEST = 5_000
"""Characters that MLflow's databases take as a description."""

_MOST_METRICS = 20
_TAGGED_METRICS = 3
_LONGEST_NAME = 80
_COMMIT_DIGITS = 12
_MOVING = "+compressed.webp"
_CLIP_MARK = 8  # characters; MLflow's own pictures have longer ones
_TAG_KEY = re.compile(r"(?!opusclip\.|mlflow\.)[\w\-. :/]{1,100}", re.ASCII)
_MARKUP = re.compile(
    r"[\\`*{}\[\]<>#|~@:&!$^]|(?<![A-Za-z0-9])_|(?<=www)\.|^[-+=]|^\d(?=\d*\. )", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture that was logged with a step: its path among the run's artifacts.

    Attributes:
        key: What it was logged as.
        step: When.
        mark: What tells it from others of its key and step.
        picture: The path of the moving picture.
        clip: The path of the clip that it shows, "" when that is not known.
    """

    key: str
    step: int
    mark: str
    picture: str
    clip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPage:
    """What a version's page is made of.

    Attributes:
        metadata: What its checkpoint knows.
        weights: The checkpoint's weights.
        metadata_sha256: Of its metadata.json, "" when not known.
        value_count: Numbers in them, 0 when not known.
        run_id: Its run.
        run_name: The run's name, "" for none.
        registered_by: Who makes the version, "" when not known.
        experiment_id: The run's experiment.
        is_linked: Whether the run is on the server that shows the page.
        dataset_name: What the dataset is called, "" when not known.
        sample: A picture of what it makes.
    """

    metadata: CheckpointMetadata
    weights: StoredFile
    run_id: str
    run_name: str
    experiment_id: str
    registered_by: str = ""
    metadata_sha256: str = ""
    is_linked: bool = True
    value_count: int = 0
    dataset_name: str = ""
    sample: Sample | None = None

    def description(self) -> str:
        """The page's text in Markdown, of at most 5,000 characters and of whole lines."""
        about = self.metadata
        head = f"{escaped(_kind(about))}, epoch {about.epoch}, step {about.step}, of "
        head += f"run {self._linked(escaped(self.run_name or self.run_id))}"
        parts = [head, *self._tables(), "\n".join(self._facts()), *self._pictures()]
        return _cut("\n\n".join(parts))

    def tags(self) -> dict[str, str]:
        """The version's tags, the first to be read first; hashes alone are long: they are whole."""
        about = self.metadata
        shown = [key for key in _by_weight(about) if _TAG_KEY.fullmatch(key)][:_TAGGED_METRICS]
        ours = {
            "epoch": about.epoch,
            "step": about.step,
            "git_dirty": "true" if about.git_dirty else None,
            "git_commit": about.git_commit and about.git_commit[:_COMMIT_DIGITS],
            "dataset_digest": about.dataset_digest,
            "evaluation_digest": about.evaluation_digest,
            "checkpoint": about.name,
            "registered_by": self.registered_by or None,
            "weights_sha256": self.weights.sha256,
            "metadata_sha256": self.metadata_sha256 or None,
        }
        known = {f"opusclip.{name}": str(one) for name, one in ours.items() if one is not None}
        return {key: f"{about.metrics[key]:.4g}" for key in shown} | known

    def _tables(self) -> Iterator[str]:
        metrics, shown = self.metadata.metrics, _by_weight(self.metadata)[:_MOST_METRICS]
        if shown:
            how = {key: _measured(self.metadata.passports.get(key)) for key in shown}
            third, line = (" how |", "---|") if any(how.values()) else ("", "")
            rows = [
                f"| {escaped(key)} | &emsp;{metrics[key]:.6g} |{f' {how[key]} |' if third else ''}"
                for key in shown
            ]
            yield "\n".join([f"| metric | value |{third}", f"|---|---|{line}", *rows])
        if len(metrics) > len(shown):
            yield f"and {len(metrics) - len(shown)} more metrics"

    def _facts(self) -> Iterator[str]:
        about, path = self.metadata, f"{CHECKPOINTS}/{self.metadata.name}"
        yield f"- Checkpoint {self._linked(escaped(about.name), path)}"
        if about.parent:
            yield f"- Trained on from {escaped(about.parent)}"
        if about.dataset_digest:
            name = f"{escaped(self.dataset_name)}, " if self.dataset_name else ""
            yield f"- Dataset {name}digest {escaped(about.dataset_digest)}"
        if about.evaluation_digest:
            yield f"- Evaluated on dataset digest {escaped(about.evaluation_digest)}"
        if about.git_commit:
            dirty = {True: ", with uncommitted changes", False: ", nothing uncommitted"}
            state = "" if about.git_dirty is None else dirty[about.git_dirty]
            yield f"- Code at commit {escaped(about.git_commit[:_COMMIT_DIGITS])}{state}"
        values = f", {self.value_count:,} values" if self.value_count else ""
        yield f"- Weights {size_text(self.weights.size_bytes)}{values}"

    def _pictures(self) -> Iterator[str]:
        if self.sample and self.is_linked:
            title = f"{escaped(self.sample.key)}, step {self.sample.step}"
            clip = self._linked(title, self.sample.clip) if self.sample.clip else title
            address = f"get-artifact?path={_in_address(self.sample.picture)}"
            yield f"Sample {clip}\n\n![]({address}&run_uuid={_in_address(self.run_id)})"

    def _linked(self, text: str, artifact: str = "") -> str:
        """A text that leads to the run, or to one of its artifacts."""
        if not self.is_linked:
            return text
        run = f"#/experiments/{_in_address(self.experiment_id)}/runs/{_in_address(self.run_id)}"
        rest = "/".join(_in_address(part) for part in artifact.split("/"))
        return f"[{text}]({run}{'/artifacts/' if rest else ''}{rest})"


def latest_sample(paths: Iterable[str], *, step: int) -> Sample | None:
    """The last moving picture that was logged by a step; a clip by itself goes before a panel's.

    Clips go before all other pictures.

    Args:
        paths: The run's artifacts below `images/`.
        step: The checkpoint's.
    """
    found = []
    for path in paths:
        named = image_of(path)
        if named and named.step <= step and path.endswith(_MOVING):
            is_panels = named.key.startswith("panels/")
            is_picture = len(named.mark) > _CLIP_MARK
            rank = (is_picture, -named.step, is_panels, named.key, -named.timestamp_ms)
            found.append((rank, Sample(named.key, named.step, named.mark, path)))
    return min(found, key=lambda one: one[0])[1] if found else None


def escaped(text: str) -> str:
    """A name as it is, on one line and of at most 80 characters, with nothing in it Markdown."""
    whole = "".join(one for one in one_line(text) if one.isprintable())
    short = whole if len(whole) <= _LONGEST_NAME else f"{whole[: _LONGEST_NAME - 1]}…"
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", short)


def _kind(about: CheckpointMetadata) -> str:
    return str(about.model.get("class") or "Model")


def _by_weight(about: CheckpointMetadata) -> list[str]:
    """The metrics by which the run chooses its best first, the others by name."""
    return sorted(about.metrics, key=lambda key: (key not in about.best, key))


def _measured(passport: Mapping[str, Any] | None) -> str:
    """How a value was measured, in a few words; empty for one without a readable passport."""
    if not passport:
        return ""
    try:
        known = Passport.from_dict(passport)
    except PassportError:
        return ""
    said = [f"{known.count:,} {known.unit}", f"passport {known.digest}"]
    if known.interval:
        ends = f"{known.interval.low:.5g} to {known.interval.high:.5g}"
        said.insert(0, f"{ends} ({known.interval.level:.0%})")
    return "; ".join(escaped(one) for one in (*said, known.extractor) if one)


def _in_address(text: str) -> str:
    return quote(text, safe="")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: text.rindex("\n", 0, LONGEST + 1)].rstrip()
