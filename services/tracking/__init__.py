"""MLflow's server: how it is started, and nothing else. Needs no MLflow to be imported."""
