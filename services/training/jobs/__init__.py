"""The training service: jobs over HTTP, kept in a data base, run by Ray Jobs. `pipelines/training_service.py` runs it.

HTTP (app.py) -> request.py -> store.py <- runner.py -> Ray's Jobs API (ray_jobs.py) -> launch.py -> `stride`.
A job is what the store says; Ray and the service may both be killed at any moment.
"""
