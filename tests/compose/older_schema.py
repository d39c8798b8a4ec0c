"""Runs in MLflow's image, on a data base of its own: one as MLflow 2.0 made it is brought to this MLflow's schema.

    python older_schema.py < /dev/null        # STRIDE_DATABASE names an empty data base

Prints what is found in it afterwards, as one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from alembic import command
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
from sqlalchemy import create_engine, text

from services.tracking.__main__ import main, with_password

ROWS = (
    "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
    "VALUES (1, 'digits', '/kept', 'active')",
    "INSERT INTO runs (run_uuid, name, source_type, user_id, status, start_time, end_time, lifecycle_stage, "
    "artifact_uri, experiment_id) VALUES ('r1', 'older', 'LOCAL', 'me', 'FINISHED', 1, 2, 'active', '/kept/r1', 1)",
    "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) "
    "VALUES ('best/accuracy', 0.97, 2, 'r1', 3, false)",
)

os.environ.update(with_password(os.environ, directory=Path("/tmp")))  # noqa: S108 - the container's own
uri = os.environ["STRIDE_DATABASE"]
engine = create_engine(uri)
Base.metadata.create_all(engine)
command.upgrade(_get_alembic_config(uri), "97727af70f4d")  # type: ignore[no-untyped-call]
with engine.begin() as connection:
    for row in ROWS:
        connection.execute(text(row))

code = main(["migrate"], os.environ)

with engine.connect() as connection:
    metrics = connection.execute(text("SELECT key, value FROM metrics")).all()
    schema = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
engine.dispose()
json.dump({"code": code, "schema": schema, "metrics": [list(metric) for metric in metrics]}, sys.stdout)
