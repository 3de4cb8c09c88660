"""What a run is watched for: one class a kind of rule, and who is told.

`keys` are patterns as shells have them (`training/*`); one fits a key of the machine only where it
begins with `system/` itself.
"""

from typing import ClassVar, Literal

import msgspec

from opusclip_mlops.webhooks import DAY_S

Goal = Literal["minimize", "maximize"]
Severity = Literal["info", "warning", "error"]

STOP, WANDB = "stop", "wandb"
ACTIONS = (STOP, WANDB)
"""What can be done besides telling a webhook, which is called by its own name."""

GPU_KEYS = ("system/*gpu_*_utilization_percentage",)
DISK_KEYS = ("system/*disk_usage_percentage",)


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """What every rule has.

    Args:
        severity: How bad it is: info, warning or error.
        cooldown_s: A rule that has raised an alert raises no other one for so many seconds.
        actions: `stop`, `wandb`, and names of webhooks.
    """

    from_history: ClassVar[bool] = True
    """Whether a run's points alone tell if it was broken."""

    severity: Severity = "warning"
    cooldown_s: float = 600.0
    actions: tuple[str, ...] = ()

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of the keys it is about, none for what is no metric."""
        return getattr(self, "keys", ())

    def fault(self) -> str:
        """Why its parts do not go together; empty where they do."""
        return ""


class Threshold(Rule, frozen=True, kw_only=True, tag="threshold"):
    """A value is above or below a bound, for so many points in a row.

    It has recovered after as many points at `recover_at` or better, the bound itself by default.
    """

    keys: tuple[str, ...]
    above: float | None = None
    below: float | None = None
    points: int = 1
    recover_at: float | None = None

    def fault(self) -> str:
        """One bound, and a recovery on its good side."""
        if (self.above is None) == (self.below is None):
            return "it needs above or below, one of them"
        if self.recover_at is None:
            return ""
        if self.above is not None and self.recover_at > self.above:
            return "recover_at must not be higher than above"
        if self.below is not None and self.recover_at < self.below:
            return "recover_at must not be lower than below"
        return ""


class NotFinite(Rule, frozen=True, kw_only=True, tag="not_finite"):
    """A value is NaN or infinite; recovered after `recover_points` numbers in a row."""

    keys: tuple[str, ...]
    recover_points: int = 10


class Divergence(Rule, frozen=True, kw_only=True, tag="divergence"):
    """A value is more than `factor` times the best or the median of the `window` points before.

    What is broken does not enter the window; recovered halfway back. Where low values are bad,
    `goal: maximize`, it is as far below.
    """

    keys: tuple[str, ...]
    factor: float = 3.0
    window: int = 50
    against: Literal["median", "best"] = "median"
    goal: Goal = "minimize"


class Plateau(Rule, frozen=True, kw_only=True, tag="plateau"):
    """The best value has not become better by more than `min_delta` for so many steps."""

    keys: tuple[str, ...]
    steps: int
    min_delta: float = 0.0
    goal: Goal = "minimize"


class NoProgress(Rule, frozen=True, kw_only=True, tag="no_progress"):
    """No point of any of the keys for so many minutes, while the training goes on."""

    keys: tuple[str, ...] = ("*",)
    minutes: float = 10.0


class WorseThanProduction(Rule, frozen=True, kw_only=True, tag="worse_than_production"):
    """A value is worse by more than `by` than that of the model's version in Production.

    That is the last value of the same key in the run the version was made by.
    """

    keys: tuple[str, ...]
    model: str
    by: float = 0.0
    goal: Goal = "minimize"
    points: int = 1


class GpuIdle(Rule, frozen=True, kw_only=True, tag="gpu_idle"):
    """A GPU is used less than `below_percent` for so many minutes."""

    keys: tuple[str, ...] = GPU_KEYS
    below_percent: float = 5.0
    minutes: float = 10.0


class DiskFilling(Rule, frozen=True, kw_only=True, tag="disk_filling"):
    """The disk of the training's folder, or of the journal's, is fuller than that.

    Recovered two percent below.
    """

    keys: tuple[str, ...] = DISK_KEYS
    above_percent: float = 90.0


class DroppedPoints(Rule, frozen=True, kw_only=True, tag="dropped_points"):
    """So many points were lost or shed; recovered when none was for `quiet_minutes`."""

    from_history: ClassVar[bool] = False

    points: int = 1
    quiet_minutes: float = 10.0


class MirrorLag(Rule, frozen=True, kw_only=True, tag="mirror_lag"):
    """What was logged so many minutes ago has not arrived at MLflow, or in a mirror."""

    from_history: ClassVar[bool] = False

    sinks: tuple[str, ...] = ("*",)
    minutes: float = 10.0


AnyRule = (
    Threshold
    | NotFinite
    | Divergence
    | Plateau
    | NoProgress
    | WorseThanProduction
    | GpuIdle
    | DiskFilling
    | DroppedPoints
    | MirrorLag
)

KINDS: dict[str, type[Rule]] = {
    str(one.__struct_config__.tag): one
    for one in (
        Threshold,
        NotFinite,
        Divergence,
        Plateau,
        NoProgress,
        WorseThanProduction,
        GpuIdle,
        DiskFilling,
        DroppedPoints,
        MirrorLag,
    )
}
"""The kinds of rules by their names in a file."""


class Webhook(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Somebody who is told, by a message a webhook takes.

    Addresses and secrets are said by the names of environment variables of the training.

    Args:
        url: Where messages go; `url_env` names a variable that holds the address instead.
        secret_env: The variable that holds what messages are signed with.
        format: `standard`, or `slack` for a line of text.
        give_up_after_s: How long a message is tried again, in seconds.
        allow_http: Let an address through that is not https.
        allow_private: Let an address through that is inside one's own network.
    """

    url: str = ""
    url_env: str = ""
    secret_env: str = ""
    format: Literal["standard", "slack"] = "standard"
    give_up_after_s: int = DAY_S
    allow_http: bool = False
    allow_private: bool = False

    def fault(self) -> str:
        """One address, kept out of sight where it is a secret, and a signature."""
        if bool(self.url) == bool(self.url_env):
            return "it needs url or url_env, one of them"
        if self.format == "slack":
            return (
                "a chat's address is kept out of sight: name its variable by url_env"
                if self.url
                else ""
            )
        if not self.secret_env:
            return "it needs secret_env, the variable of the secret that signs"
        if "?" in self.url:
            return "what follows a question mark may be a password, so name a variable by url_env"
        return ""


class Alerts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The rules of a run, and who is told.

    Args:
        rules: By their names, small letters, digits, `-` and `_`.
        webhooks: By the names that rules call them by.
        limit_per_hour: So many alerts an hour are raised, over all rules; the rest is counted.
            Rules that stop the run are not held up.
    """

    rules: dict[str, AnyRule]
    webhooks: dict[str, Webhook] = {}
    limit_per_hour: int = 30
