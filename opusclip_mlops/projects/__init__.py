"""What `mlflow run` starts: two small video models, their data, training and evaluation."""

import os

# Before torch is imported: its idle threads leave the cores to the shipper instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A bar for each file would be all that a terminal shows.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
