"""Measurements that name their conditions and can fail."""
