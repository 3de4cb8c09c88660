"""MLflow without what nothing here uses: lighter, and nothing is missing afterwards."""

import json
import subprocess
import sys
from pathlib import Path

from tests.journeys import store

USE = """
import json, sys
from opusclip_mlops.lean_mlflow import load_mlflow
load_mlflow()
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
run = client.create_run(client.create_experiment("films", sys.argv[2]))
client.log_metric(run.info.run_id, "loss", 0.5, step=3)
spared = sorted({"pandas", "pyarrow", "scipy"} - {*sys.modules})
client.log_table(run.info.run_id, {"a": [1, 2]}, "a.json")
import pandas
print(json.dumps([spared, pandas.DataFrame({"a": [1]}).shape, run.info.run_id]))
"""


def test_what_is_spared_still_works_when_it_is_asked_for(tmp_path: Path) -> None:
    """Points are logged without pandas; a table loads it then, as ever."""
    line = [sys.executable, "-c", USE, store(tmp_path), str(tmp_path / "artifacts")]
    done = subprocess.run(line, stdout=subprocess.PIPE, check=True)
    spared, shape, run_id = json.loads(done.stdout)
    assert spared == ["pandas", "pyarrow", "scipy"]
    assert shape == [1, 1]
    table = next((tmp_path / "artifacts" / run_id).rglob("a.json"))
    assert json.loads(table.read_text())["data"] == [[1], [2]]


def test_a_process_that_has_it_keeps_it() -> None:
    """Where MLflow and pandas are loaded already, nothing changes."""
    code = (
        "import pandas, mlflow\n"
        "from opusclip_mlops.lean_mlflow import load_mlflow\n"
        "load_mlflow()\n"
        "import sys; assert sys.modules['pandas'] is pandas\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
