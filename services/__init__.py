"""The services: `training` (torch, MLflow), `inference` (BentoML, onnxruntime), `tracking` (MLflow's server)."""
