"""What runs inside the MLflow server: MLflow's own stores, faster and with the guard.

    opusclip+sqlite:///mlflow.db
    opusclip+postgresql+psycopg2://user:password@host/database

The tables are MLflow's: a database that was opened so opens in stock MLflow again, and the other
way round.
"""
