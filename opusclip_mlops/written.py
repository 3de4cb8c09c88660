"""A YAML file as it is written: its values with their lines, and nothing made an object of.

A file is one document of mappings, lists and scalars. Tags, anchors, aliases, a key that is there
twice, and what is deeper or longer than any such file needs: each is an error with its line.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import yaml

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.redaction import one_line

MOST_BYTES = 64 * 1024
"""The longest file that is read, in bytes of UTF-8."""

_DEEPEST = 16
_SHOWN_CHARACTERS = 40
_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)
_TRUTH = {"true": True, "false": False}
_NULL = "tag:yaml.org,2002:null"


class PolicyError(OpusclipError, ValueError):
    """A policy that is not understood, or is another model's; the message says which line."""


@dataclass(frozen=True, slots=True)
class Written:
    """One value of the file: its node, and what it is called in messages."""

    source: str
    node: yaml.Node
    line: int
    key_line: int
    title: str = ""
    label: str = ""

    def error(self, problem: str) -> PolicyError:
        """What is wrong with the value, with its line and its name."""
        return self._at(self.line, self._about(problem))

    @property
    def count(self) -> int:
        """How many entries it has, right or wrong; 0 for a scalar."""
        return 0 if isinstance(self.node, yaml.ScalarNode) else len(self.node.value)

    def entries(
        self, known: Collection[str] = (), *, tell: Callable[[PolicyError], None] | None = None
    ) -> dict[str, Written]:
        """A mapping's values by key; with `known`, no other keys.

        With `tell` a key that is wrong is told and passed over; otherwise it is raised.
        """
        if not isinstance(self.node, yaml.MappingNode):
            raise self._is_no("a mapping")
        found: dict[str, Written] = {}
        for key, node in self.node.value:
            if problem := self._fault_of_key(key, known, found):
                fault = self._at(_line_of(key), self._about(problem))
                if tell is None:
                    raise fault
                tell(fault)
            else:
                found[key.value] = self._entry(key.value, _line_of(key), node)
        return found

    def _fault_of_key(
        self, key: yaml.Node, known: Collection[str], found: Mapping[str, Written]
    ) -> str:
        """What is wrong with a key of a mapping; empty for nothing."""
        if not isinstance(key, yaml.ScalarNode) or not key.value.strip():
            return "a key must be a word"
        name = str(key.value)
        if known and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or list(known)
            return f"unknown key {shown(name)}: known is {', '.join(near)}"
        if name in found:
            return f"{shown(name)} is given twice, first in line {found[name].key_line}"
        return ""

    def _entry(self, name: str, key_line: int, node: yaml.Node) -> Written:
        line = _line_of(node) if isinstance(node, yaml.ScalarNode) else key_line
        title = f"{self.label}: {name}" if self.label else name
        return Written(self.source, node, line, key_line, title, name)

    def _about(self, problem: str) -> str:
        return f"{self.title}: {problem}" if self.title else problem

    def items(self) -> list[Written]:
        """A list's values, at least one and no text twice."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self._is_no("a list, as [a, b]")
        found = [
            Written(self.source, node, _line_of(node), self.key_line, self.title, self.label)
            for node in self.node.value
        ]
        if not found:
            raise self.error("the list is empty")
        seen: set[str] = set()
        for one in found:
            if one.text() in seen:
                raise one.error(f"{shown(one.text())} is in the list twice")
            seen.add(one.text())
        return found

    def text(self) -> str:
        """A scalar as it is written, not empty."""
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value.strip():
            raise self._is_no("a text")
        if self.node.tag == _NULL:
            raise self._is_no("a text")
        return str(self.node.value)

    def number(self) -> float:
        """A finite number."""
        value = self._plain() or ""
        if not _NUMBER.fullmatch(value):
            raise self._is_no("a number")
        if not math.isfinite(float(value)):
            raise self.error("it must be a finite number")
        return float(value)

    def whole(self, lowest: int, highest: int) -> int:
        """A whole number of a range."""
        value = self._plain() or ""
        if not _WHOLE.fullmatch(value) or not lowest <= int(value) <= highest:
            raise self._is_no(f"a whole number from {lowest} to {highest}")
        return int(value)

    def truth(self) -> bool:
        """True or false, written so."""
        value = (self._plain() or "").lower()
        if value not in _TRUTH:
            raise self._is_no("true or false")
        return _TRUTH[value]

    def one_of(self, *words: str) -> str:
        """One of some words."""
        if self._scalar() not in words:
            raise self._is_no(" or ".join(words))
        return self.text()

    def only(self, word: str) -> bool:
        """True where the one word stands that may."""
        return bool(self.one_of(word))

    def path(self) -> str:
        """A path that stays below where it begins."""
        value = self.text()
        if value.startswith("/") or any(part in ("", ".", "..") for part in value.split("/")):
            raise self.error(f"{shown(value)} is no path below the version")
        return value

    def _scalar(self) -> str | None:
        return str(self.node.value) if isinstance(self.node, yaml.ScalarNode) else None

    def _plain(self) -> str | None:
        quoted = isinstance(self.node, yaml.ScalarNode) and self.node.style is not None
        return None if quoted else self._scalar()

    def _is_no(self, wanted: str) -> PolicyError:
        about = self.title or "the file"
        return self._at(self.line, f"{about} must be {wanted}, not {self._kind()}")

    def _kind(self) -> str:
        if isinstance(self.node, yaml.MappingNode):
            return "a mapping"
        if not isinstance(self.node, yaml.ScalarNode):
            return "a list"
        if self.node.tag == _NULL or not self.node.value.strip():
            return "empty"
        is_quoted_number = self.node.style and _NUMBER.fullmatch(self.node.value)
        return ("the text " if is_quoted_number else "") + shown(self.node.value)

    def _at(self, line: int, problem: str) -> PolicyError:
        return PolicyError(one_line(f"{self.source}:{line}: {problem}"))


def shown(text: str) -> str:
    """A text in quotes, cut where it is long."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")


def read_yaml(text: str, *, source: str) -> Written:
    """The file's one document; `source` is what messages call it.

    Raises:
        PolicyError: it is no such file; the message begins with `source:line:`.
    """
    if len(text) > MOST_BYTES or len(text.encode(errors="replace")) > MOST_BYTES:
        raise PolicyError(one_line(f"{source}:1: the file has more than {MOST_BYTES} bytes"))
    try:
        _check_events(text, source)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise PolicyError(one_line(f"{source}:{line}: a character that YAML forbids")) from error
    except yaml.MarkedYAMLError as error:
        raise PolicyError(one_line(f"{source}:{_line(error)}: {_problem(error)}")) from error
    except PolicyError:
        raise
    except (ValueError, OverflowError) as error:
        # PyYAML takes an escape like \UFFFFFFFF for a character, and says no line.
        line = text.count("\n", 0, text.find("\\U")) + 1
        raise PolicyError(one_line(f"{source}:{line}: an escape that is no character")) from error
    if node is None:
        raise PolicyError(one_line(f"{source}:1: the file is empty"))
    return Written(source, node, _line_of(node), _line_of(node))


def _check_events(text: str, source: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        problem = ""
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if isinstance(event, yaml.NodeEvent) and event.anchor:
            problem = "anchors and aliases (& and *) are not taken: write the value out"
        elif tag := getattr(event, "tag", None):
            problem = f"{shown(tag)} is not taken: write the value without a tag"
        elif depth > _DEEPEST:
            problem = f"it is more than {_DEEPEST} levels deep"
        if problem:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise PolicyError(one_line(f"{source}:{line}: {problem}"))


def _line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1 if node.start_mark else 1


def _line(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return int(mark.line) + 1 if mark else 1


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem or error.context or "it is no YAML")
    if r"'\t'" in problem:
        return "a tab: YAML is indented with spaces"
    if "another document" in problem or "single document" in str(error.context):
        return "a second document (---): a policy is one"
    return f"it is no YAML: {problem}"
