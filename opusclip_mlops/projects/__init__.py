"""What `mlflow run` starts: two small video models, their data, training and evaluation."""
