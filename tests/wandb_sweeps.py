"""What a W&B server answers about sweeps: it goes through the values of `values` in order."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import yaml

from tests.wandb_store import Document, Store

ENTITY = "team"


class SweepAnswers:
    """Sweeps of `values` and `value`, agents, and the runs that they are told to begin."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def answers(self) -> dict[str, Callable[[Document], Document]]:
        """By the names of operations."""
        return {
            "UpsertSweep": self._upsert,
            "SweepWithRuns": self._with_runs,
            "CreateAgent": self._create_agent,
            "Heartbeat": self._heartbeat,
        }

    def _upsert(self, asked: Document) -> Document:
        name = f"sweep{self._store.count('sweep')}"
        entity, project = asked.get("entityName") or ENTITY, asked["projectName"]
        told = {"name": name, "config": asked["config"], "project": project, "begun": 0}
        self._store.put("sweep", name, told)
        of = {"id": project, "name": project, "entity": {"id": entity, "name": entity}}
        made = {"name": name, "project": of}
        return {"upsertSweep": {"sweep": made, "configValidationWarnings": []}}

    def _with_runs(self, asked: Document) -> Document:
        found = self._store.get("sweep", asked["sweep"])
        sweep = found and {"id": found["name"], **found, "runs": {"edges": []}}
        return {"project": {"sweep": sweep}}

    def _create_agent(self, asked: Document) -> Document:
        name = f"agent{self._store.count('agent')}"
        self._store.put("agent", name, {"id": name, "sweep": asked["sweep"]})
        return {"createAgent": {"agent": {"id": name}}}

    def _heartbeat(self, asked: Document) -> Document:
        """An agent that runs nothing is told to begin the next run, or to end."""
        agent = self._store.get("agent", asked["id"])
        assert agent
        is_busy = json.loads(asked["runState"] or "{}")
        commands = [] if is_busy else [self._next(agent["sweep"])]
        return {"agentHeartbeat": {"agent": {"id": agent["id"]}, "commands": json.dumps(commands)}}

    def _next(self, name: str) -> Document:
        sweep = self._store.get("sweep", name)
        assert sweep
        config = yaml.safe_load(sweep["config"])
        points = list(_points(config["parameters"]))
        number = sweep["begun"]
        if number >= len(points):
            return {"type": "exit"}
        self._store.put("sweep", name, sweep | {"begun": number + 1})
        args = {key: {"value": value} for key, value in points[number].items()}
        run = f"{name}run{number}"
        return {"type": "run", "run_id": run, "args": args, "program": config["program"]}


def _points(parameters: Document) -> Any:
    values = [one.get("values", [one.get("value")]) for one in parameters.values()]
    return (dict(zip(parameters, one, strict=True)) for one in itertools.product(*values))
