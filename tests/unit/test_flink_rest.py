"""A Flink JobManager's REST API, as far as it is used, against a small one that speaks it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from features.flink_rest import JobManager
from ingest.clock import ManualClock
from schemas.errors import ProcessFailed


class Handler(BaseHTTPRequestHandler):
    """Knows three jobs; notes which are cancelled."""

    cancelled: list[str]
    deaf = False
    jobs: list[dict[str, str]]

    def do_GET(self) -> None:
        self._answer(200, {"jobs": self.jobs})

    def do_PATCH(self) -> None:
        self.cancelled.append(self.path)
        if not self.deaf:
            self.jobs[0]["state"] = "CANCELED"
        self._answer(202, {})

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""

    def _answer(self, status: int, body: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


@pytest.fixture
def job_manager() -> Iterator[JobManager]:
    Handler.cancelled, Handler.deaf = [], False
    Handler.jobs = [
        {"jid": "a", "name": "x-features", "state": "RUNNING"},
        {"jid": "b", "name": "x-features", "state": "CANCELED"},
        {"jid": "c", "name": "x-features-too", "state": "RUNNING"},
    ]
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield JobManager(f"127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def test_only_a_running_job_of_the_same_name_is_cancelled(job_manager: JobManager) -> None:
    assert job_manager.cancel("x-features", 5, ManualClock()) == ["a"]
    assert Handler.cancelled == ["/jobs/a?mode=cancel"]
    assert job_manager.cancel("x-features", 5, ManualClock()) == []


def test_a_job_that_goes_on_is_told(job_manager: JobManager) -> None:
    Handler.deaf = True
    with pytest.raises(ProcessFailed, match="job a could not be cancelled"):
        job_manager.cancel("x-features", 0.5, ManualClock())


def test_where_nobody_answers_nothing_is_known() -> None:
    nobody = JobManager("127.0.0.1:9")
    assert (nobody.answers(), nobody.task_managers(), nobody.jobs()) == (False, [], [])
    assert nobody.cancel("x-features", 5, ManualClock()) == []
