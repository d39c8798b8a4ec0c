"""mlserver start benchmarks/serving/peers/mlserver

A custom runtime of the Open Inference Protocol: the PNG in base64 in, the tensor of probabilities out. The model runs
in the server's own process (parallel_workers 0), which is the cheaper way on one core.
"""

from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.serving.peers.model import Net, decode


class Classifier(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        self.net = Net()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        files = Base64Codec.decode_input(payload.inputs[0])
        probabilities = self.net.run(np.stack([decode(file) for file in files]))
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", probabilities)]
        )
