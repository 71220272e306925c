"""LitServe: one worker, its dynamic batching."""

from __future__ import annotations

import sys
from typing import Any

import litserve as ls

from tests.bench.peers.saved import MAX_BATCH, WAIT_MS, Saved, told


class Recommender(ls.LitAPI):
    """Rows of single calls, gathered by the framework."""

    def setup(self, device: str) -> None:
        self._saved = Saved()

    def decode_request(self, request) -> Any:  # an annotation would describe the body
        return request["instances"][0]

    def batch(self, inputs: list[Any]) -> list[Any]:
        return list(inputs)

    def predict(self, x: list[Any]) -> list[Any]:
        return self._saved.answered(x)

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"predictions": [output]}


if __name__ == "__main__":
    api = Recommender(max_batch_size=MAX_BATCH, batch_timeout=float(told(WAIT_MS)) / 1000)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
