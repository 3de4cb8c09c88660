"""Launching: one configuration for torchrun here, on a Slurm cluster, and on Kubernetes.

`mlflow run . -b torchrun -c backend.json` comes in by `backend`. What runs where the work is done
(`agent`, `local`, `job`) knows nothing of who submitted it.
"""
