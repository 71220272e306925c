"""`millstream features run`: the pipeline, its publisher and its metrics in one process."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType

from features.job import JobConfig, job_config, open_publisher
from features.publish import PublisherThread
from features.split import POOL, Split
from ingest.metrics import PrometheusMetrics
from ingest.settings import Settings

STOP_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the command line chooses."""

    metrics_port: int | None = None
    from_earliest: bool = False
    publish: bool = True


def run_job(settings: Settings, options: RunOptions, on_ready: Callable[[str], None]) -> None:
    """
    Fold until SIGTERM, SIGINT or an error. `on_ready` is told when the partitions are claimed.

    Raises:
        MillstreamError: what ended the job.
    """
    # Beam warns of Google's clients, which are not wanted here, each time it is loaded.
    logging.getLogger().addFilter(lambda record: "apitools" not in record.getMessage())
    from features import pipeline  # noqa: PLC0415 - Beam takes seconds to load

    config = job_config(settings, from_earliest=options.from_earliest)
    with ExitStack() as ending:
        if options.metrics_port is not None:
            metrics = PrometheusMetrics()
            POOL.metrics = metrics
            ending.enter_context(metrics.served(options.metrics_port))

        def opened(split: Split) -> None:
            # Only now are the partitions ours: an older publisher of theirs may be fenced.
            if options.publish:
                ending.enter_context(_publishing(config, split))
            on_ready(f"features of {len(config.partitions)} partitions")

        POOL.on_open = opened
        ending.enter_context(_signals())
        pipeline.run(config)


@contextmanager
def _publishing(config: JobConfig, split: Split) -> Iterator[None]:
    publisher = open_publisher(config.settings, split.owns)
    thread = PublisherThread(publisher, config.partitions, POOL.fail)
    thread.start()
    try:
        yield
    finally:
        thread.stop(STOP_S)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGINT end the job cleanly."""

    def stop(number: int, frame: FrameType | None) -> None:
        POOL.stop()

    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
