"""The training service: data, networks, the fit loop, tracking."""
