"""How the versions of a registered model stand in MLflow's registry, and how they are moved."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from opusclip_mlops.decisions import DELETED, HELD, NO_STAGE, like
from opusclip_mlops.patience import patiently
from opusclip_mlops.refusals import MISSING

HISTORY_TAG = "opusclip.history"
HEAD_TAG = "opusclip.history.head"

_PAGE_VERSIONS = 1_000
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Standing:
    """A registered model as the registry shows it.

    Attributes:
        model: Its name.
        created_ms: When it was created, in Unix milliseconds.
        stages: The stage of every version there is.
        aliases: Alias to version.
        tags: The registered model's tags.
    """

    model: str
    created_ms: int
    stages: Mapping[int, str] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def names_head(self) -> bool:
        """Whether it says which history it has, and where that ends."""
        return bool(self.tags.get(HISTORY_TAG) and self.tags.get(HEAD_TAG))

    def lack(self, version: int) -> str:
        """That there is no such version, and which there are, for an error."""
        there = sorted(self.stages)
        known = ", ".join(map(str, there[-10:])) or "none"
        more = f"{there[0]} to {there[-1]}" if len(there) > 10 else known
        return f"{self.model!r} has no version {version}; there are: {more}"

    def stage_of(self, version: int) -> str:
        """Where a version is; "Deleted" where there is none of that number."""
        return self.stages.get(version, DELETED)

    def inside(self, stage: str) -> set[int]:
        """The versions in a stage, which may be several."""
        return {version for version, held in self.stages.items() if held == stage}


@dataclass(frozen=True, slots=True)
class Write:
    """One write to the registry: a version's stage, an alias, or a tag of the registered model."""

    what: Literal["stage", "alias", "no alias", "tag"]
    key: str
    version: int = 0
    value: str = ""


def alias_of(stage: str) -> str:
    """The alias that goes with a stage: production, staging."""
    return stage.lower()


def read_standing(client: MlflowClient, model: str) -> Standing:
    """How a registered model stands now.

    Raises:
        RegistryError: There is no such model, or MLflow did not answer.
    """
    what = f"cannot read the registered model {model!r}"
    entity: RegisteredModel = patiently(what, lambda: client.get_registered_model(model))
    versions = patiently(what, lambda: _versions(client, model))
    return Standing(
        model,
        int(entity.creation_timestamp or 0),
        {int(one.version): one.current_stage or NO_STAGE for one in versions},
        {alias: int(version) for alias, version in entity.aliases.items()},
        dict(entity.tags or {}),
    )


def writes_towards(
    standing: Standing, places: Mapping[int, str], tags: Mapping[str, str]
) -> list[Write]:
    """What has to be written so that the registry shows `places` and `tags`; holders first."""
    writes: list[Write] = []
    for stage in HELD:
        present = [one for one, held in places.items() if held == stage and one in standing.stages]
        writes += _stage_writes(standing, stage, present, places)
        writes += _alias_writes(standing, alias_of(stage), present)
    differing = {key: value for key, value in tags.items() if standing.tags.get(key) != value}
    return writes + [Write("tag", key, value=value) for key, value in differing.items()]


def write(client: MlflowClient, model: str, one: Write) -> None:
    """Do one write; what it is about may have vanished meanwhile, then nothing is done.

    Raises:
        RegistryError: MLflow refused, or did not answer.
    """
    what = f"cannot set {one.what} {one.key!r} of {model!r}"
    patiently(what, lambda: _try_to_write(client, model, one))


def _stage_writes(
    standing: Standing, stage: str, present: list[int], places: Mapping[int, str]
) -> list[Write]:
    arriving = [one for one in present if standing.stages[one] != stage]
    leaving = standing.inside(stage) - set(present)
    # The holder of the other stage is moved there by that stage's own write; who never held one
    # goes back to none.
    goes = {one: places.get(one, NO_STAGE) for one in sorted(leaving)}
    gone = [Write("stage", to, one) for one, to in goes.items() if to not in HELD]
    return [Write("stage", stage, one) for one in arriving] + gone


def _alias_writes(standing: Standing, alias: str, present: list[int]) -> list[Write]:
    version = standing.aliases.get(alias)
    if present and version != present[0]:
        return [Write("alias", alias, present[0])]
    if not present and version is not None:
        return [Write("no alias", alias)]
    return []


def _try_to_write(client: MlflowClient, model: str, one: Write) -> None:
    """Two processes that both insert a row are a fault of the slower one, which writes again."""
    for attempt in range(_TRIES):
        try:
            return _write(client, model, one)
        except MlflowException as error:
            if error.error_code == MISSING:
                return None
            if error.error_code != "BAD_REQUEST" or attempt == _TRIES - 1:
                raise
    return None


def _write(client: MlflowClient, model: str, one: Write) -> None:
    if one.what == "stage":
        _transition(client, model, one.version, one.key)
    elif one.what == "alias":
        client.set_registered_model_alias(model, one.key, str(one.version))
    elif one.what == "no alias":
        client.delete_registered_model_alias(model, one.key)
    else:
        client.set_registered_model_tag(model, one.key, one.value)


def _transition(client: MlflowClient, model: str, version: int, stage: str) -> None:
    with warnings.catch_warnings():
        # MLflow warns of stages' end at each call; only what this module calls is kept silent.
        warnings.filterwarnings("ignore", category=FutureWarning, module=re.escape(__name__))
        client.transition_model_version_stage(
            model, str(version), stage, archive_existing_versions=stage in HELD
        )


def _versions(client: MlflowClient, model: str) -> Iterable[ModelVersion]:
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(
            f"name {like(model)}",
            max_results=_PAGE_VERSIONS,
            order_by=["version_number ASC"],
            page_token=token,
        )
        found += [one for one in page if one.name == model]
        token = page.token
        if not token:
            return found
