"""Models that a run logged, and the registered versions made of them, read as records."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from opusclip_mlops.listing import Found, Part, Sizes, list_files
from opusclip_mlops.records import About, Files
from opusclip_mlops.redaction import redacted
from opusclip_mlops.references import uri_of
from opusclip_mlops.refusals import is_for_good, reason_of

_MOST_FILES = 10_000
_NAME_CHARACTERS = 80
_PAGE_VERSIONS = 100
_STAGES = ("Staging", "Production")
_LOGGED_MODEL_URI = re.compile(r"models:/(m-[^/@]+)")
_RESERVED_ALIAS = re.compile(r"latest|v\d+")
_NOT_IN_ALIAS = re.compile(r"[/:]")


@dataclass
class ModelReader:
    """Reads the models of a run; what lies at one location is listed once."""

    client: MlflowClient
    run: Run
    found: Found = field(default_factory=Found)
    listed: dict[str, Sizes] = field(default_factory=dict)
    registered: dict[str, RegisteredModel | None] = field(default_factory=dict)

    def read(self) -> Found:
        """Logged models, then registered versions, oldest first."""
        for model_id, steps in _steps_of_models(self.run).items():
            model = self._logged_model(model_id)
            if model:
                self._add_logged_model(model, steps)
        for version in sorted(self._versions(), key=lambda one: (one.name, int(one.version))):
            self._add_version(version)
        return self.found

    def _logged_model(self, model_id: str) -> LoggedModel | None:
        try:
            return self.client.get_logged_model(model_id)
        except MlflowException as error:
            if not is_for_good(error):
                raise
            self.found.leave(f"logged model {model_id}", reason_of(error))
        return None

    def _add_logged_model(self, model: LoggedModel, steps: list[int]) -> None:
        name = f"{(model.name or 'model')[:_NAME_CHARACTERS]}-{model.model_id}"
        metadata = {
            "logged_model": model.name or "",
            "model_id": model.model_id,
            "model_type": model.model_type or "",
            "status": str(model.status),
            "status_message": model.status_message or "",
            "mlflow_run_id": self.run.info.run_id,
            **_prefixed("param", model.params or {}),
            **_prefixed("tag", model.tags or {}),
            **_prefixed("metric", self._last_metrics(model)),
        }
        aliases = [f"step-{step}" for step in steps]
        self._add_files(name, model.artifact_location, metadata, aliases)

    def _last_metrics(self, model: LoggedModel) -> dict[str, str]:
        """The last value of each metric; MLflow keeps NaN as 0 there."""
        points = sorted(model.metrics or [], key=lambda one: (one.step, one.timestamp))
        last = {one.key: repr(float(one.value)) for one in points}
        if len(points) > len(last):
            more = f"{len(points) - len(last)} other values of its metrics"
            self.found.leave(f"logged model {model.model_id}", f"{more} are only in MLflow")
        return last

    def _versions(self) -> Iterator[ModelVersion]:
        token: str | None = None
        while True:
            query = f"run_id = '{self.run.info.run_id}'"
            page = self.client.search_model_versions(query, _PAGE_VERSIONS, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _registered(self, name: str) -> RegisteredModel | None:
        if name not in self.registered:
            try:
                self.registered[name] = self.client.get_registered_model(name)
            except MlflowException as error:
                if not is_for_good(error):
                    raise
                self.registered[name] = None
        return self.registered[name]

    def _add_version(self, version: ModelVersion) -> None:
        model = self._registered(version.name)
        number = str(version.version)
        aliases = _aliases(model, number)
        about = {
            "version": number,
            "stage": version.current_stage or "None",
            "aliases": ", ".join(aliases),
            "status": str(version.status or ""),
            "status_message": version.status_message or "",
            "source": redacted(version.source or ""),
            "description": version.description or "",
            "user": version.user_id or "",
            "run_link": redacted(version.run_link or ""),
            **_prefixed("tag", version.tags or {}),
            **_about_model(model),
        }
        plain = {key: value for key, value in about.items() if value}
        changed_ms = int(version.last_updated_timestamp or version.creation_timestamp or 0)
        record = About(f"registry/{version.name}/{number}", plain, changed_ms)
        self.found.parts.append(Part(record))
        metadata = {"version": number, "stage": about["stage"], "mlflow_model": version.name}
        said = [f"mlflow-v{number}", *self._pointers(version, model, aliases)]
        self._add_files(version.name, self._location(version), metadata, said)

    def _pointers(
        self, version: ModelVersion, model: RegisteredModel | None, aliases: list[str]
    ) -> list[str]:
        """What points at a version in a mirror, where a stage is a name like any other."""
        name, number = f"registry/{version.name}/{version.version}", str(version.version)
        pointers = [_NOT_IN_ALIAS.sub("_", one) for one in aliases]
        for alias in [one for one in pointers if _RESERVED_ALIAS.fullmatch(one)]:
            self.found.leave(name, f"its alias {alias!r} means something else in a mirror")
            pointers.remove(alias)
        stage = version.current_stage or ""
        if stage in _STAGES and stage.lower() not in pointers:
            other = _other_holder(model, stage, number)
            if other:
                self.found.leave(name, f"its stage {stage} is shown at {other} only")
            else:
                pointers.append(stage.lower())
        return pointers

    def _location(self, version: ModelVersion) -> str:
        """Where a version's files lie; empty when nobody knows."""
        found = _LOGGED_MODEL_URI.fullmatch(version.source or "")
        if found:
            model = self._logged_model(found[1])
            return model.artifact_location if model else ""
        try:
            number = str(version.version)
            return str(self.client.get_model_version_download_uri(version.name, number) or "")
        except MlflowException as error:
            if not is_for_good(error):
                raise
            return str(version.source or "")

    def _add_files(
        self, name: str, location: str, metadata: dict[str, str], aliases: list[str]
    ) -> None:
        sizes = self._files_at(name, location) if location else {}
        uris = {path: uri_of(redacted(location), path) for path in sizes}
        kept = {key: value for key, value in metadata.items() if value}
        self.found.parts.append(Part(Files(name, "model", uris, sizes, kept, aliases)))

    def _files_at(self, name: str, location: str) -> Sizes:
        if location not in self.listed:
            try:
                repository = get_artifact_repository(
                    location, tracking_uri=self.client.tracking_uri
                )
            except MlflowException as error:
                self.found.leave(f"files of {name}", reason_of(error))
                self.listed[location] = {}
                return {}
            sizes, unlisted = list_files(repository, at_most=_MOST_FILES)
            self.listed[location] = sizes
            for one in unlisted:
                self.found.leave(f"files of {name}: {one.name}", one.reason)
        return self.listed[location]


def _steps_of_models(run: Run) -> dict[str, list[int]]:
    steps: dict[str, list[int]] = {}
    outputs = run.outputs.model_outputs if run.outputs else []
    for output in sorted(outputs, key=lambda one: (one.step, one.model_id)):
        steps.setdefault(output.model_id, []).append(int(output.step))
    return steps


def _about_model(model: RegisteredModel | None) -> dict[str, str]:
    if not model:
        return {}
    return {"model_description": model.description or "", **_prefixed("model_tag", model.tags)}


def _aliases(model: RegisteredModel | None, number: str) -> list[str]:
    aliases = model.aliases if model else {}
    return sorted(alias for alias, of in aliases.items() if str(of) == number)


def _other_holder(model: RegisteredModel | None, stage: str, number: str) -> str:
    """The version that a stage's name stands for, when it is not this one."""
    if not model:
        return ""
    by_alias = {alias: str(of) for alias, of in model.aliases.items()}
    if stage.lower() in by_alias:
        return f"version {by_alias[stage.lower()]}, which has it as an alias"
    in_stage = [str(one.version) for one in model.latest_versions if one.current_stage == stage]
    return f"version {in_stage[0]}" if in_stage and in_stage[0] != number else ""


def _prefixed(prefix: str, values: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{key}": str(value) for key, value in sorted(values.items())}
