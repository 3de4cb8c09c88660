"""The passports of a run's values, as they lie in MLflow beside them."""

from dataclasses import dataclass
from http import HTTPStatus
from posixpath import dirname

from mlflow import MlflowClient
from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from opusclip_mlops import layout
from opusclip_mlops.errors import PassportError
from opusclip_mlops.listing import content
from opusclip_mlops.passports import PASSPORTS_KEY, Passport, decoded, differences
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import MISSING, asking_faults

_FOLDER = f"{layout.TEXTS}/{layout.folder_of_key(PASSPORTS_KEY)}"


@dataclass(frozen=True)
class _Kept:
    step: int
    timestamp_ms: int
    path: str


class PassportFiles:
    """Reads the passports of one run, those that are asked for, once each."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._repository: ArtifactRepository | None = None
        self._listed: list[_Kept] | None = None
        self._read: dict[str, bytes] = {}

    def of(self, key: str, *, step: int, timestamp_ms: int) -> Passport | None:
        """The passport of the value that a metric has at a step and time, None where it has none.

        Raises:
            PassportError: What lies there is no passport; or two values of this millisecond were
                not measured alike, and which is whose is not known.
            MlflowException, OSError, or another artifact store's own: it does not answer now.
        """
        found = {
            one.digest: one
            for kept in self._there()
            if (kept.step, kept.timestamp_ms) == (step, timestamp_ms)
            for one in self._passports(kept.path, key)
        }
        first, second, *_ = (*found.values(), None, None)
        if second is not None:
            what = "; ".join(differences(first, second))
            where = f"{key} at step {step} of run {self._run_id}"
            raise PassportError(one_line(f"{where} has two passports of one moment: {what}"))
        return first

    def _there(self) -> list[_Kept]:
        if self._listed is None:
            paths = (one.path for one in self._entries() if dirname(one.path) == _FOLDER)
            named = ((path, layout.text_of(path)) for path in paths)
            self._listed = [_Kept(at.step, at.timestamp_ms, path) for path, at in named if at]
        return self._listed

    def _entries(self) -> list[FileInfo]:
        try:
            return list(self._artifacts().list_artifacts(_FOLDER))
        except asking_faults() as error:
            if _is_missing(error):
                return []
            raise

    def _artifacts(self) -> ArtifactRepository:
        if self._repository is None:
            uri = str(self._client.get_run(self._run_id).info.artifact_uri)
            tracking_uri = self._client.tracking_uri
            self._repository = get_artifact_repository(uri, tracking_uri=tracking_uri)
        return self._repository

    def _passports(self, path: str, key: str) -> list[Passport]:
        if path not in self._read:
            self._read[path] = content(self._artifacts(), path)
        try:
            return list(decoded(self._read[path].decode(), key=key).values())
        except (PassportError, UnicodeDecodeError) as error:
            where = f"{path} of run {self._run_id}"
            raise PassportError(one_line(f"{where}: {error}")) from None


def _is_missing(error: Exception) -> bool:
    """Whether there is no such folder; one that nobody may see may hold passports."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    is_unknown = getattr(error, "error_code", "") == MISSING
    return is_unknown or status == HTTPStatus.NOT_FOUND or isinstance(error, FileNotFoundError)
