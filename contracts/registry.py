"""How a model version in MLflow's registry points at its bundle: what export writes and inference reads.

A registered model version carries two tags. `BUNDLE_URI` is an MLflow artifact URI (`runs:/<run_id>/bundle`);
`BUNDLE_DIGEST` is the sha256 of its bundle.json, which in turn holds the sha256 of every file. A version without both
is not served. The alias `CHAMPION` names the version that is served.
"""

from __future__ import annotations

from typing import Final

CHAMPION: Final = "champion"
BUNDLE_ARTIFACT: Final = "bundle"
"""The directory of the run's artifacts that holds the bundle."""
BUNDLE_URI: Final = "stride.bundle_uri"
BUNDLE_DIGEST: Final = "stride.bundle_sha256"
PROMOTED_AT: Final = "stride.promoted_at"
"""Tag of the registered model: milliseconds since the epoch when its champion last moved. Without a name in the
request or in STRIDE_MODEL, the model whose champion moved last answers."""
