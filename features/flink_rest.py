"""
What a Flink JobManager is asked, over its REST API.

Beam's job server forgets a job that it is told to cancel, while Flink goes on with it: so jobs are
cancelled here.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ingest.clock import Clock
from schemas.errors import ProcessFailed

_ANSWER_TIMEOUT_S = 5.0
_LOOK_S = 0.1
_OVER = ("CANCELED", "FAILED", "FINISHED")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlinkJob:
    """A job as its JobManager sees it."""

    job_id: str
    name: str
    state: str

    @property
    def over(self) -> bool:
        """Whether it will never run again."""
        return self.state in _OVER


class JobManager:
    """The JobManager at host:port. Whatever it does not answer is not known."""

    def __init__(self, address: str) -> None:
        self._address = address

    def answers(self) -> bool:
        """Whether it is there."""
        return self._ask("/overview") is not None

    def task_managers(self) -> list[str]:
        """Names of those that are registered."""
        found = self._ask("/taskmanagers")
        return [one["id"] for one in found["taskmanagers"]] if found else []

    def jobs(self) -> list[FlinkJob]:
        """All that it remembers."""
        found = self._ask("/jobs/overview")
        return [
            FlinkJob(job_id=job["jid"], name=job["name"], state=job["state"])
            for job in (found["jobs"] if found else [])
        ]

    def cancel(self, name: str, timeout_s: float, clock: Clock) -> list[str]:
        """
        End all jobs of that name, and return their ids when they have ended.

        Raises:
            ProcessFailed: one goes on.
        """
        ids = [job.job_id for job in self.jobs() if job.name == name and not job.over]
        for job_id in ids:
            self._ask(f"/jobs/{job_id}?mode=cancel", method="PATCH")
        deadline_s = clock.monotonic_s() + timeout_s
        while going_on := [job for job in self.jobs() if job.job_id in ids and not job.over]:
            if clock.monotonic_s() > deadline_s:
                raise ProcessFailed(f"Flink's job {going_on[0].job_id} could not be cancelled")
            clock.sleep(_LOOK_S)
        return ids

    def _ask(self, path: str, method: str = "GET") -> Mapping[str, Any] | None:
        """The answer; None when there is none, or not the one that was asked for."""
        connection = http.client.HTTPConnection(self._address, timeout=_ANSWER_TIMEOUT_S)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            found: Mapping[str, Any] = json.loads(answer.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return found if answer.status < 300 else None
