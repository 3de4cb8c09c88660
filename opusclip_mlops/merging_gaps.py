"""What was merged without all ranks, and what came too late: counted by key, said in the run."""

from collections.abc import Iterable, Iterator

import msgspec

KEY = "opusclip/ranks"
"""The key of the text that says it."""

LACKING_TAG = "opusclip.ranks.lacking"
"""The tag that counts the points that were merged without all ranks, where there are any."""

UNHEARD_TAG = "opusclip.ranks.unheard"
"""The tag that names the ranks that never began, or whose end never came."""

MOST_KEYS = 500
_MOST_RANKS = 100
_OTHERS = "(other keys)"
_SAME_KEY = frozenset(("mean", "min", "max", "sum"))


class Gap(msgspec.Struct):
    """Points of a key that lack ranks: how many, at which steps, and how often each rank."""

    points: int = 0
    first_step: int = 2**63 - 1
    last_step: int = -(2**63)
    ranks: dict[str, int] = {}

    def note(self, step: int, ranks: Iterable[int]) -> None:
        """Count one more point."""
        self.points += 1
        self.first_step, self.last_step = min(self.first_step, step), max(self.last_step, step)
        for rank in map(str, ranks):
            name = rank if rank in self.ranks or len(self.ranks) < _MOST_RANKS else "others"
            self.ranks[name] = self.ranks.get(name, 0) + 1


class Gaps(msgspec.Struct):
    """All that was not merged as it was meant: by key and reduction, and by key.

    `forgotten` counts how often values that waited were lost with the file that kept them.
    """

    lacking: dict[str, dict[str, Gap]] = {}
    late: dict[str, int] = {}
    reductions: dict[str, list[str]] = {}
    forgotten: int = 0

    def note_lack(self, key: str, reduce: str, step: int, ranks: Iterable[int]) -> None:
        """Note a point that was made without these ranks."""
        by_reduction = self.lacking.setdefault(_among(self.lacking, key), {})
        by_reduction.setdefault(reduce, Gap()).note(step, ranks)

    def note_late(self, key: str) -> None:
        """Note a value that came when its point was made already."""
        key = _among(self.late, key)
        self.late[key] = self.late.get(key, 0) + 1

    def note_reduction(self, keys: Iterable[str], reduce: str) -> None:
        """Note how keys are merged."""
        for key in keys:
            known = self.reductions.get(key)
            if known is None:
                if len(self.reductions) < MOST_KEYS:
                    self.reductions[key] = [reduce]
            elif reduce not in known:
                known.append(reduce)

    @property
    def points_lacking(self) -> int:
        """How many points were made without all ranks."""
        every = (one.values() for one in self.lacking.values())
        return sum(gap.points for gaps in every for gap in gaps)

    def text(self) -> str:
        """What is to be said, one line each and all of it as JSON; empty where all is well."""
        lines = [*self._forgotten(), *self._lacking(), *self._late(), *self._unlike()]
        return "\n".join([*lines, "", self._as_json()]) if lines else ""

    def _forgotten(self) -> Iterator[str]:
        if self.forgotten:
            yield f"{self.forgotten:,} times the file of what waited for ranks could not be read"

    def _lacking(self) -> Iterator[str]:
        for key, by_reduction in self.lacking.items():
            for reduce, gap in by_reduction.items():
                ranks = ", ".join(sorted(gap.ranks, key=lambda one: (len(one), one)))
                steps = f"steps {gap.first_step} to {gap.last_step}"
                yield f"{key} ({reduce}): {gap.points:,} points lack rank {ranks}, {steps}"

    def _late(self) -> Iterator[str]:
        for key, count in self.late.items():
            yield f"{key}: {count:,} values came after their points were merged and are left out"

    def _unlike(self) -> Iterator[str]:
        for key, known in self._unlike_reductions().items():
            yield f"{key} is merged by {' and by '.join(known)}: give it one reduce on all ranks"

    def _unlike_reductions(self) -> dict[str, list[str]]:
        """Reductions that write to one key, by key."""
        alike = {key: [r for r in all_ if r in _SAME_KEY] for key, all_ in self.reductions.items()}
        return {key: sorted(known) for key, known in alike.items() if len(known) > 1}

    def _as_json(self) -> str:
        unlike = self._unlike_reductions()
        found = {"lacking": self.lacking, "late": self.late, "unlike": unlike}
        found |= {"forgotten": self.forgotten} if self.forgotten else {}
        return msgspec.json.format(msgspec.json.encode(found), indent=2).decode()


def _among(known: dict[str, object] | dict[str, dict[str, Gap]] | dict[str, int], key: str) -> str:
    """The key, or one that stands for all others once there are too many."""
    return key if key in known or len(known) < MOST_KEYS else _OTHERS
