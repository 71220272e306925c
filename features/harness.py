"""
A Python worker of a Flink TaskManager: `python -m features.harness --id=1-1 ...`.

A TaskManager starts it (Beam's environment PROCESS) and holds its standard input: when that ends
the TaskManager is gone, however it went, and so goes this process. Nothing is finished then: what
was not written is read again by the next worker.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading

from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
from apache_beam.runners.job import utils as job_utils
from apache_beam.runners.worker import sdk_worker_main
from apache_beam.runners.worker.channel_factory import GRPCChannelFactory

PROVISION_TIMEOUT_S = 30.0
ORPHANED = 9


def main() -> None:
    """Work until the TaskManager lets go."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    given, _ = parser.parse_known_args()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logs, harness, _ = sdk_worker_main.create_harness(
        environment(given.id, given.provision_endpoint)
    )
    code = 0
    try:
        harness.run()
        if logs is not None:
            logs.close()
    except Exception:
        # As when the TaskManager cuts the connection, done with the job.
        logging.exception("the worker ends")
        code = 1
    # Threads of bundles that nobody waits for any more may hold a batch for as long as a store is
    # away: they end here.
    os._exit(code)


def environment(worker_id: str, provision_endpoint: str) -> dict[str, str]:
    """What Beam's container boot program would put into the environment of a worker."""
    with GRPCChannelFactory.insecure_channel(provision_endpoint) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        info = stub.GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            metadata=(("worker_id", worker_id),),
            timeout=PROVISION_TIMEOUT_S,
        ).info
    return {
        "WORKER_ID": worker_id,
        "PIPELINE_OPTIONS": json.dumps(job_utils.struct_to_dict(info.pipeline_options)),
        "CONTROL_API_SERVICE_DESCRIPTOR": _text(info.control_endpoint.url),
        "LOGGING_API_SERVICE_DESCRIPTOR": _text(info.logging_endpoint.url),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }


def _text(url: str) -> str:
    """An endpoint as protobuf writes it in text."""
    return f'url: "{url}"'


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
