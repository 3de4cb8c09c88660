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


LATER = """
from opusclip_mlops.lean_mlflow import load_mlflow
load_mlflow()
import sys, mlflow
assert not {"mlflow.genai.evaluation", "mlflow.genai.judges.base", "fastapi"} & {*sys.modules}
assert not hasattr(mlflow.genai, "__all_that_there_is__")
from mlflow.genai.judges import is_correct
from mlflow.genai.scorers import Correctness, scorer
assert mlflow.genai.judges.is_correct is is_correct
assert mlflow.genai.scorers.Correctness is Correctness
assert mlflow.genai.evaluate and mlflow.genai.make_judge
assert mlflow.genai.scorers.online.OnlineScoringConfig
assert mlflow.gateway.get_gateway_uri
import fastapi
"""


def test_what_is_left_for_later_is_whole_when_it_is_asked_for() -> None:
    """The packages for language models are not opened until then; then they hold what they do."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", LATER], check=True)


def test_a_store_in_a_database_opens_none_of_it(tmp_path: Path) -> None:
    """MLflow's own tables need an entity of theirs, and no more of them."""
    code = (
        "from opusclip_mlops.lean_mlflow import load_mlflow\n"
        "load_mlflow()\n"
        "import sys, mlflow\n"
        "client = mlflow.MlflowClient(sys.argv[1])\n"
        "client.search_experiments(), client.search_registered_models()\n"
        "assert not {'mlflow.genai.evaluation', 'fastapi', 'pandas'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, store(tmp_path)], check=True)


def test_a_process_that_has_it_keeps_it() -> None:
    """Where MLflow and pandas are loaded already, nothing changes."""
    code = (
        "import pandas, mlflow\n"
        "from opusclip_mlops.lean_mlflow import load_mlflow\n"
        "load_mlflow()\n"
        "import sys; assert sys.modules['pandas'] is pandas\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
