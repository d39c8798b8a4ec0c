"""The inference service: BentoML hosts, the data plane is ours. Holds no torch."""
