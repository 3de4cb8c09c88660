"""Facts about `opusclip_mlops.config`: where a setting comes from, and what is refused."""

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.errors import ConfigError, OpusclipError

# Two legal values of each field; the first is not the default.
VALUES: dict[str, tuple[Any, Any]] = {
    "experiment_name": ("films", "trailers"),
    "project_name": ("project-a", "project-b"),
    "run_name": ("first try", "second try"),
    "run_id": ("a1b2c3", "d4e5f6"),
    "tags": ({"team": "video"}, {"team": "audio"}),
    "notes": ("some notes", "other notes"),
    "tracking_uri": ("http://one:5000", "http://two:5000"),
    "registry_uri": ("http://three:5000", "http://four:5000"),
    "use_tensorboard": (False, True),
    "tensorboard_dir": ("events-a", "events-b"),
    "use_wandb": (False, True),
    "wandb_mode": ("offline", "disabled"),
    "wandb_entity": ("team-a", "team-b"),
    "wandb_dir": ("logs-a", "logs-b"),
    "journal_dir": ("journal-a", "journal-b"),
    "drain_timeout_s": (1.5, 2.5),
    "priorities": ({"video/*": "low"}, {"*": "high"}),
    "log_intervals": ({"low": 50}, {"low": 10, "medium": 5}),
    "backlog_quota_bytes": (2**20, 2**21),
    "system_metrics": (False, True),
    "system_metrics_interval_s": (1.5, 2.5),
    "alerts": ("alerts-a.yaml", "alerts-b.yaml"),
    "ranks": ("own", "one"),
    "metric_rank": (1, 2),
    "profile_operations": (False, True),
    "profile_interval_s": (1.5, 2.5),
    "profile_steps": ((10, 13), (0, 100)),
    "log_frequency": (3, 4),
    "save_frequency": (5, 6),
    "max_epochs": (7, 8),
    "learning_rate": (0.25, 0.5),
    "batch_size": (9, 10),
    "device": ("cuda:0", "cuda:1"),
}
FOREIGN = {
    "tracking_uri": "MLFLOW_TRACKING_URI",
    "registry_uri": "MLFLOW_REGISTRY_URI",
    "experiment_name": "MLFLOW_EXPERIMENT_NAME",
    "run_id": "MLFLOW_RUN_ID",
    "run_name": "WANDB_NAME",
    "project_name": "WANDB_PROJECT",
    "wandb_mode": "WANDB_MODE",
    "wandb_entity": "WANDB_ENTITY",
    "wandb_dir": "WANDB_DIR",
}
WHOLE = ["log_frequency", "save_frequency", "max_epochs", "batch_size", "backlog_quota_bytes"]
NUMBERS = [*WHOLE, "drain_timeout_s", "system_metrics_interval_s", "profile_interval_s"]
every_field = pytest.mark.parametrize("name", VALUES)


def as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | bool) else str(value)


def write_toml(path: Path, name: str, value: Any) -> Path:
    is_table = isinstance(value, dict)
    pairs = [f'"{key}" = {json.dumps(one)}' for key, one in value.items()] if is_table else []
    text = f"{{ {', '.join(pairs)} }}" if is_table else json.dumps(value)
    path.write_text(f"{name} = {text}\n")
    return path


def test_every_field_is_tested_here() -> None:
    """The table of values above names each field once."""
    assert list(VALUES) == [one.name for one in dataclasses.fields(TrackingConfig)]


# Where a value comes from


@every_field
def test_without_anything_the_default_holds(name: str) -> None:
    """No field has its first test value by default, so that the tests below prove something."""
    assert getattr(TrackingConfig(), name) != VALUES[name][0]


@every_field
def test_a_keyword_goes_before_everything(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the code says holds, whatever the environment and the file say."""
    ours, other = VALUES[name]
    monkeypatch.setenv(f"OPUSCLIP_{name.upper()}", as_text(other))
    monkeypatch.setenv(FOREIGN.get(name, "NOTHING"), as_text(other))
    file = write_toml(tmp_path / "c.toml", name, other)
    assert getattr(TrackingConfig.from_file(file, **{name: ours}), name) == ours


@every_field
def test_our_variable_goes_before_others_and_the_file(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`OPUSCLIP_<FIELD>` holds where no keyword is given, in the field's own type."""
    ours, other = VALUES[name]
    monkeypatch.setenv(f"OPUSCLIP_{name.upper()}", as_text(ours))
    monkeypatch.setenv(FOREIGN.get(name, "NOTHING"), as_text(other))
    found = getattr(TrackingConfig.from_file(write_toml(tmp_path / "c.toml", name, other)), name)
    assert found == ours
    assert type(found) is type(ours)


@pytest.fixture(autouse=True)
def _own_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """What all other tests set is not set here."""
    monkeypatch.delenv("OPUSCLIP_DRAIN_TIMEOUT_S")
    monkeypatch.delenv("OPUSCLIP_PROFILE_INTERVAL_S")


@pytest.mark.parametrize("name", FOREIGN)
def test_the_tools_own_variable_goes_before_the_file(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is set for MLflow or W&B anyway need not be set again."""
    theirs, other = VALUES[name]
    monkeypatch.setenv(FOREIGN[name], theirs)
    found = TrackingConfig.from_file(write_toml(tmp_path / "c.toml", name, other))
    assert getattr(found, name) == theirs


@every_field
@pytest.mark.parametrize("suffix", ["toml", "TOML", "yaml", "yml", "json"])
def test_the_file_goes_before_the_default(name: str, suffix: str, tmp_path: Path) -> None:
    """Each field can stand in a TOML or a YAML file; JSON is YAML too."""
    value = VALUES[name][0]
    path = tmp_path / f"config.{suffix}"
    if suffix.lower() == "toml":
        write_toml(path, name, value)
    else:
        path.write_text(json.dumps({name: value}))
    found = getattr(TrackingConfig.from_file(path), name)
    assert found == value
    assert type(found) is type(value)


def test_a_variable_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`OPUSCLIP_CONFIG` names a file for every configuration that is not given one."""
    (tmp_path / "all.yaml").write_text("batch_size: 9\nrun_name: from the file\n")
    (tmp_path / "mine.toml").write_text("batch_size = 10\n")
    monkeypatch.setenv("OPUSCLIP_CONFIG", str(tmp_path / "all.yaml"))
    assert TrackingConfig().batch_size == 9
    assert TrackingConfig(batch_size=1).run_name == "from the file"
    mine = TrackingConfig.from_file(tmp_path / "mine.toml")
    assert (mine.batch_size, mine.run_name) == (10, None)
    assert TrackingConfig().batch_size == 9


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set to nothing counts as not set."""
    for name in VALUES:
        monkeypatch.setenv(f"OPUSCLIP_{name.upper()}", "")
    monkeypatch.setenv("OPUSCLIP_CONFIG", "")
    monkeypatch.setenv("WANDB_PROJECT", "clips")
    assert TrackingConfig() == TrackingConfig(project_name="clips")


@pytest.mark.parametrize("word", ["1", "true", "TRUE", "Yes", "on", " true "])
def test_words_for_yes(word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is on is said in any of the usual words."""
    (tmp_path / "c.yaml").write_text("use_wandb: false")
    monkeypatch.setenv("OPUSCLIP_USE_WANDB", word)
    assert TrackingConfig.from_file(tmp_path / "c.yaml").use_wandb is True


@pytest.mark.parametrize("word", ["0", "false", "False", "NO", "off"])
def test_words_for_no(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is what is off."""
    monkeypatch.setenv("OPUSCLIP_USE_WANDB", word)
    assert TrackingConfig().use_wandb is False


@pytest.mark.parametrize(("word", "mode"), [("dryrun", "offline"), ("run", "online")])
def test_wandbs_old_words_for_its_mode(
    word: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B itself still takes them, so its variable may hold them."""
    monkeypatch.setenv("WANDB_MODE", word)
    assert TrackingConfig().wandb_mode == mode


def test_a_number_that_yaml_takes_for_a_text_is_a_number(tmp_path: Path) -> None:
    """YAML reads `1e-4` as a text, for it lacks the point; the learning rate is meant."""
    (tmp_path / "c.yaml").write_text("learning_rate: 1e-4\n")
    assert TrackingConfig.from_file(tmp_path / "c.yaml").learning_rate == 1e-4


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """Editors on Windows put one in front."""
    for name, text in (("c.toml", 'notes = "é"'), ("c.yaml", "notes: é")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert TrackingConfig.from_file(tmp_path / name).notes == "é"


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_sets_nothing(text: str, tmp_path: Path) -> None:
    """A file that holds no setting is no mistake."""
    (tmp_path / "c.yaml").write_text(text)
    assert TrackingConfig.from_file(tmp_path / "c.yaml") == TrackingConfig()


# What is refused


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("experiment", "experiment_name"),
        ("experimentname", "experiment_name"),
        ("lerning_rate", "learning_rate"),
        ("batchsize", "batch_size"),
        ("trackinguri", "tracking_uri"),
    ],
)
def test_an_unknown_field_names_the_nearest(wrong: str, right: str, tmp_path: Path) -> None:
    """By keyword and in either kind of file, the message says what was probably meant."""
    with pytest.raises(ConfigError, match=f"no field '{wrong}': did you mean '{right}'"):
        TrackingConfig(**{wrong: "1"})
    for name, text in (("c.toml", f"{wrong} = 1"), ("c.yaml", f"{wrong}: 1")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=f"{name} has no field '{wrong}': .*'{right}'"):
            TrackingConfig.from_file(tmp_path / name)


@pytest.mark.parametrize("text", ["1: 2", "true: 2", "null: 3", "[batch_size]: 2"])
def test_a_name_in_a_file_that_is_no_text_is_refused(text: str, tmp_path: Path) -> None:
    """YAML allows names that are no texts; no field has one."""
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        TrackingConfig.from_file(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, wrong) for name in NUMBERS for wrong in ("3", True, None, [3], 1j)),
        *((name, 2.5) for name in WHOLE),
        *(
            (name, Path("3"))
            for name in (*NUMBERS, "learning_rate", "use_wandb", "use_tensorboard", "tags")
        ),
        ("learning_rate", "0.1"),
        ("learning_rate", 10**400),
        ("use_wandb", 1),
        ("use_wandb", "yes"),
        ("use_tensorboard", None),
        ("experiment_name", 3),
        ("run_name", b"x"),
        ("project_name", None),
        ("device", 0),
        ("notes", None),
        ("tracking_uri", 5),
        ("tags", "words"),
        ("tags", b"words"),
        ("tags", 3),
        ("tags", {"a", "b"}),
        ("run_name", "half a sign: \ud83d"),
        ("journal_dir", Path("folder\udcff")),
        *((name, wrong) for name in ("priorities", "log_intervals") for wrong in ("low", ["low"])),
        *((name, wrong) for name in ("priorities", "log_intervals") for wrong in (None, 3)),
        ("priorities", {3: "low"}),
        ("priorities", {"system/*": 3}),
        ("log_intervals", {"low": "3"}),
        ("log_intervals", {"low": 2.5}),
        ("log_intervals", {"low": True}),
        ("system_metrics", 1),
        *(("profile_steps", wrong) for wrong in (3, "10,13", (1,), (1, 2, 3), (1, 2.5), (0, True))),
    ],
)
def test_a_wrong_type_is_refused(name: str, value: Any) -> None:
    """The message is one line that names the field, what it takes, and what it got."""
    with pytest.raises(ConfigError, match=f"^{name} must be ") as caught:
        TrackingConfig(**{name: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in WHOLE),
        *((name, -1) for name in NUMBERS),
        *((name, float("nan")) for name in ("drain_timeout_s", "learning_rate")),
        *((name, float("inf")) for name in ("drain_timeout_s", "learning_rate")),
        ("priorities", {"system/*": "lowest"}),
        ("log_intervals", {"low": 0}),
        ("log_intervals", {"lowest": 5}),
        ("backlog_quota_bytes", 2**20 - 1),
        *(("system_metrics_interval_s", value) for value in (0.49, float("nan"), float("inf"))),
        *(("profile_interval_s", value) for value in (0.09, float("nan"), float("inf"))),
        *(("profile_steps", value) for value in ((3, 3), (5, 2), (-1, 2), (0, 101))),
        ("ranks", "two"),
        ("metric_rank", -1),
        ("learning_rate", 0.0),
        ("learning_rate", -0.1),
        ("wandb_mode", "ofline"),
        ("experiment_name", ""),
        ("experiment_name", "  "),
        ("experiment_name", "x" * 257),
        ("run_name", "x" * 251),
        ("notes", "x" * 8001),
        ("run_id", "../other"),
        ("run_id", ""),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: Any) -> None:
    """The message names the field and the range, and is short."""
    with pytest.raises(ConfigError, match=f"^{name} must be ") as caught:
        TrackingConfig(**{name: value})
    assert len(str(caught.value)) < 200


def test_names_and_notes_may_be_as_long_as_mlflow_stores_them() -> None:
    """The longest that its columns hold are taken."""
    about: dict[str, Any] = {
        "experiment_name": "x" * 256,
        "run_name": "x" * 250,
        "notes": "x" * 8000,
    }
    config = TrackingConfig(**about)
    assert {name: getattr(config, name) for name in about} == about


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("OPUSCLIP_BATCH_SIZE", "many", "OPUSCLIP_BATCH_SIZE must be a whole number, not 'many'"),
        ("OPUSCLIP_BATCH_SIZE", "2.5", "OPUSCLIP_BATCH_SIZE must be a whole number, not '2.5'"),
        ("OPUSCLIP_BATCH_SIZE", "0", "OPUSCLIP_BATCH_SIZE must be 1 or more, not 0"),
        ("OPUSCLIP_LEARNING_RATE", "fast", "OPUSCLIP_LEARNING_RATE must be a number, not 'fast'"),
        ("OPUSCLIP_LEARNING_RATE", "nan", "OPUSCLIP_LEARNING_RATE must be above 0, not nan"),
        ("OPUSCLIP_USE_WANDB", "maybe", "OPUSCLIP_USE_WANDB must be true or false, not 'maybe'"),
        ("OPUSCLIP_TAGS", '{"a": ', "OPUSCLIP_TAGS is not JSON"),
        ("OPUSCLIP_PROFILE_STEPS", "10", "OPUSCLIP_PROFILE_STEPS must be a first step and a later"),
        ("OPUSCLIP_PROFILE_STEPS", "ten,12", "OPUSCLIP_PROFILE_STEPS must be a first step"),
        ("OPUSCLIP_PRIORITIES", "system/*=low", "OPUSCLIP_PRIORITIES is not JSON"),
        (
            "OPUSCLIP_PRIORITIES",
            '{"system/*": "none"}',
            "OPUSCLIP_PRIORITIES must be a mapping of key patterns to high, medium or low, not {",
        ),
        (
            "OPUSCLIP_LOG_INTERVALS",
            '{"low": "5"}',
            "OPUSCLIP_LOG_INTERVALS must be a mapping of high, medium or low to 1 or more steps",
        ),
        (
            "OPUSCLIP_BACKLOG_QUOTA_BYTES",
            "1000",
            "OPUSCLIP_BACKLOG_QUOTA_BYTES must be 1048576 or more bytes (1 MiB), not 1000",
        ),
        ("WANDB_MODE", "sometimes", "WANDB_MODE must be one of online, offline, disabled"),
        ("MLFLOW_RUN_ID", "../x", "MLFLOW_RUN_ID must be an MLflow run id"),
    ],
)
def test_a_wrong_variable_is_named(
    variable: str, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads the message finds the variable to mend, whatever is wrong with it."""
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError) as caught:
        TrackingConfig()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size: [1]", "batch_size in {} must be a whole number, not [1]"),
        ("batch_size: many", "batch_size in {} must be a whole number, not 'many'"),
        ("batch_size: 0", "batch_size in {} must be 1 or more, not 0"),
        ("use_wandb: 3", "use_wandb in {} must be true or false, not 3"),
        ("run_name: 2024-01-01", "run_name in {} must be a text, not datetime.date(2024, 1, 1)"),
        ("- a\n- b", "config file {} must hold names and values"),
        ("a: b: c", "config file {} is not YAML"),
    ],
)
def test_a_wrong_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    """Who reads the message finds the file to mend, and what in it."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        TrackingConfig.from_file(path)
    assert str(caught.value).startswith(message.format(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is missing, a folder, not text or not TOML: one line with its name."""
    (tmp_path / "latin.toml").write_bytes('notes = "é"'.encode("latin-1"))
    (tmp_path / "broken.toml").write_text("batch_size 3")
    for name, why in (
        ("none.toml", "No such file"),
        (".", "Is a directory"),
        ("latin.toml", "not UTF-8"),
        ("broken.toml", "is not TOML"),
    ):
        with pytest.raises(ConfigError, match=why) as caught:
            TrackingConfig.from_file(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        monkeypatch.setenv("OPUSCLIP_CONFIG", str(tmp_path / name))
        with pytest.raises(ConfigError, match=why):
            TrackingConfig()


def test_a_refused_file_is_forgotten(tmp_path: Path) -> None:
    """A file that was refused does not reach into the next configuration."""
    (tmp_path / "c.yaml").write_text("batch_size: 0\n")
    with pytest.raises(ConfigError):
        TrackingConfig.from_file(tmp_path / "c.yaml")
    assert TrackingConfig().batch_size == 32


def test_a_refusal_is_one_of_the_packages_errors() -> None:
    """`except OpusclipError` and `except ValueError` catch it."""
    for kind in (OpusclipError, ValueError):
        with pytest.raises(kind, match="batch_size"):
            TrackingConfig(batch_size=0)


# Tags


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (None, {}),
        ([], {}),
        ({}, {}),
        (["fast", "v2"], {"fast": "true", "v2": "true"}),
        (("fast",), {"fast": "true"}),
        ({"team": "video", "gpus": 8}, {"team": "video", "gpus": "8"}),
        (MappingProxyType({"team": "video"}), {"team": "video"}),
        ([3], {"3": "true"}),
    ],
)
def test_tags_are_a_mapping_or_words(tags: Any, expected: dict[str, str]) -> None:
    """A word is a tag of value `true`; other values become texts."""
    assert TrackingConfig(tags=tags).tag_values == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fast", {"fast": "true"}),
        ("fast, v2,", {"fast": "true", "v2": "true"}),
        ("team=video,gpus = 8", {"team": "video", "gpus": "8"}),
        ("team=video, fast", {"team": "video", "fast": "true"}),
        ("query=a=b", {"query": "a=b"}),
        ('{"team": "video, audio"}', {"team": "video, audio"}),
        ('["a, b", "c"]', {"a, b": "true", "c": "true"}),
    ],
)
def test_tags_in_the_environment_and_in_a_file(
    text: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Words, names=values or both between commas, or JSON; a text in a file is read alike."""
    (tmp_path / "c.yaml").write_text(json.dumps({"tags": text}))
    assert TrackingConfig.from_file(tmp_path / "c.yaml").tag_values == expected
    monkeypatch.setenv("OPUSCLIP_TAGS", text)
    assert TrackingConfig().tag_values == expected


def test_tags_are_the_configurations_own() -> None:
    """Changing the mapping that was passed changes no configuration made of it."""
    tags = {"team": "video"}
    config = TrackingConfig(tags=tags)
    tags["team"] = "audio"
    assert config.tag_values == {"team": "video"}


# What is logged how often


def test_by_default_everything_is_logged() -> None:
    """Without any setting, each priority logs every step."""
    assert TrackingConfig().intervals == {"high": 1, "medium": 1, "low": 1}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"log_frequency": 20}, (1, 20, 20)),
        ({"log_frequency": 100}, (1, 100, 100)),
        ({"log_intervals": {"low": 50}}, (1, 1, 50)),
        ({"log_intervals": {"low": 50}, "log_frequency": 20}, (1, 20, 50)),
        ({"log_intervals": {"high": 2, "low": 1}, "log_frequency": 20}, (2, 20, 1)),
    ],
)
def test_intervals_come_from_two_settings(given: Any, expected: tuple[int, int, int]) -> None:
    """`log_intervals` first, then a `log_frequency` that was set; high keys only by the first."""
    intervals = TrackingConfig(**given).intervals
    assert (intervals["high"], intervals["medium"], intervals["low"]) == expected


@pytest.mark.parametrize("name", ["log_frequency", "OPUSCLIP_LOG_FREQUENCY", "file"])
def test_a_log_frequency_from_anywhere_counts(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Keyword, environment and file alike, and even where it says what is the default."""
    (tmp_path / "c.yaml").write_text("log_frequency: 100\n" if name == "file" else "notes: x\n")
    if name.isupper():
        monkeypatch.setenv(name, "100")
    given = {"log_frequency": 100} if name == "log_frequency" else {}
    config = TrackingConfig.from_file(tmp_path / "c.yaml", **given)
    assert config.intervals == {"high": 1, "medium": 100, "low": 100}
    assert copy.copy(config).intervals == pickle.loads(pickle.dumps(config)).intervals
    assert copy.copy(config).intervals["low"] == 100


def test_the_order_of_patterns_is_kept(tmp_path: Path) -> None:
    """The first pattern that fits decides, so that their order is the user's."""
    patterns = {"z/*": "high", "a/*": "low", "*": "medium"}
    (tmp_path / "c.yaml").write_text("priorities: {z/*: high, a/*: low, '*': medium}\n")
    config = TrackingConfig.from_file(tmp_path / "c.yaml")
    assert list(config.priorities.items()) == list(patterns.items())


def test_mappings_are_the_configurations_own() -> None:
    """Changing the mapping that was passed, or one's own, changes no other configuration."""
    intervals = {"low": np.int64(5)}
    config = TrackingConfig(log_intervals=intervals)  # type: ignore[arg-type]
    intervals["low"] = np.int64(7)
    assert config.log_intervals == {"low": 5}
    assert type(config.log_intervals["low"]) is int
    TrackingConfig().log_intervals["low"] = 3  # type: ignore[index]
    assert TrackingConfig().log_intervals == {}


# The value itself


@pytest.mark.parametrize("name", ["tracking_uri", "registry_uri"])
def test_passwords_are_not_shown(name: str) -> None:
    """What is printed of a configuration may stand in a log; a subclass shows no more."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Ours(TrackingConfig):
        scale: float = 1.0

    uri = "postgresql://team:open-sesame@db:5432/mlflow"
    for kind in (TrackingConfig, Ours):
        config = kind(**{name: uri, "batch_size": 4})
        assert getattr(config, name) == uri
        for shown in (repr(config), str(config), f"{[config]}"):
            assert "open-sesame" not in shown
            assert f"{name}='postgresql://team:***@db:5432/mlflow'" in shown
            assert "batch_size=4" in shown
    assert repr(Ours()).startswith("test_passwords_are_not_shown.<locals>.Ours(experiment_name=")
    assert repr(Ours()).endswith("scale=1.0)")


def test_a_subclass_may_show_itself_its_own_way() -> None:
    """A team's own text goes before ours."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Ours(TrackingConfig):
        def __repr__(self) -> str:
            return "ours"

    assert repr(Ours()) == "ours"


def test_it_can_be_a_key() -> None:
    """Equal configurations are one key of a dict, mappings in them or not."""
    one, same = (TrackingConfig(log_intervals={"low": 5}, batch_size=4) for _ in range(2))
    assert {one: 1, same: 2} == {one: 2}
    assert TrackingConfig() not in {one: 1}


def test_paths_and_numpy_numbers_become_plain_values() -> None:
    """A folder may be a Path and a number NumPy's; what is kept is Python's own."""
    config = TrackingConfig(
        journal_dir=Path("a/b"),  # type: ignore[arg-type]
        batch_size=np.int64(4),  # type: ignore[arg-type]
        learning_rate=np.float32(0.5),  # type: ignore[arg-type]
        drain_timeout_s=3,
    )
    assert config.journal_dir == "a/b"
    assert type(config.batch_size) is int
    assert type(config.learning_rate) is type(config.drain_timeout_s) is float


def test_it_cannot_be_changed() -> None:
    """Neither a field nor an unknown name can be set."""
    config = TrackingConfig()
    for name in ("batch_size", "batchsize"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, 3)
    with pytest.raises(TypeError):
        TrackingConfig("films")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))]
)
def test_a_copy_is_the_same(duplicate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied or sent to another process, it keeps every value, and which of them were given."""
    monkeypatch.setenv("OPUSCLIP_MAX_EPOCHS", "5")
    config = TrackingConfig(batch_size=4, tags={"a": "b"})
    monkeypatch.setenv("OPUSCLIP_MAX_EPOCHS", "6")
    found = duplicate(config)
    assert found == config
    assert found.max_epochs == 5
    assert found.given == {"batch_size", "tags"}


def test_given_are_the_keywords(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A keyword is given even where it says the default; environment and file give nothing."""
    monkeypatch.setenv("OPUSCLIP_MAX_EPOCHS", "5")
    (tmp_path / "c.yaml").write_text("batch_size: 4\n")
    config = TrackingConfig.from_file(tmp_path / "c.yaml", learning_rate=0.001, device="cpu")
    assert config.given == {"learning_rate", "device"}
    assert TrackingConfig().given == frozenset()


def test_a_replaced_field_keeps_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dataclasses.replace` changes one value, whatever the environment says by now."""
    config = TrackingConfig(batch_size=4)
    monkeypatch.setenv("OPUSCLIP_MAX_EPOCHS", "6")
    monkeypatch.setenv("OPUSCLIP_CONFIG", "there-is-none.toml")
    found = dataclasses.replace(config, learning_rate=0.5)
    assert (found.batch_size, found.learning_rate, found.max_epochs) == (4, 0.5, 100)
    assert found.given == {"batch_size", "learning_rate"}
    with pytest.raises(ConfigError):
        dataclasses.replace(config, batch_size=0)


def test_a_subclass_may_have_fields_of_its_own() -> None:
    """A team's own configuration adds fields and keeps the checks of ours."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Ours(TrackingConfig):
        prompts: tuple[str, ...] = ()
        scale: float = 1.0

    config = Ours(prompts=("a kite",), batch_size=4)
    assert (config.prompts, config.scale, config.batch_size) == (("a kite",), 1.0, 4)
    assert config.given == {"prompts", "batch_size"}
    with pytest.raises(ConfigError, match="did you mean 'prompts'"):
        Ours(prompt=("a kite",))  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="batch_size"):
        Ours(batch_size=0)
