"""`millstream features run`: the pipeline, its publisher and its metrics, here or on a cluster."""

from __future__ import annotations

import gc
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType

from features.catalog import CATALOG
from features.declare import FeatureSet
from features.flink_rest import JobManager
from features.job import JobConfig, job_config, open_store
from features.runner import Runner, RunPlan, job_name, local_server
from features.split import POOL, Split
from ingest.clock import SystemClock
from ingest.prometheus import PrometheusMetrics
from ingest.settings import Settings
from schemas.errors import Misconfigured

# How often a cluster's job is looked at until it has claimed all partitions.
LOOK_S = 0.25
CANCEL_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the command line chooses."""

    plan: RunPlan = field(default_factory=RunPlan)
    metrics_port: int | None = None
    features: FeatureSet = CATALOG
    from_earliest: bool = False
    publish: bool = True


def run_job(settings: Settings, options: RunOptions, on_ready: Callable[[str], None]) -> None:
    """
    Fold until SIGTERM, SIGINT or an error. `on_ready` is told when the partitions are claimed.

    Raises:
        MillstreamError: what ended the job.
    """
    if options.metrics_port is not None and not options.plan.runner.here:
        raise Misconfigured(
            f"--metrics-port: with --runner {options.plan.runner} nothing is folded in this process"
        )
    # Beam warns of Google's clients, which are not wanted here, each time it is loaded.
    logging.getLogger().addFilter(lambda record: "apitools" not in record.getMessage())
    config = job_config(
        settings,
        options.features,
        from_earliest=options.from_earliest,
        publish=options.publish,
    )
    with ExitStack() as ending:
        plan = options.plan
        if plan.runner in (Runner.PRISM, Runner.FLINK) and plan.server is None:
            server = ending.enter_context(local_server(plan.runner, settings))
            plan = replace(plan, server=server)
        if plan.runner.here:
            _fold_here(config, plan, options.metrics_port, on_ready)
        else:
            _fold_there(config, plan, on_ready)


def _fold_here(
    config: JobConfig, plan: RunPlan, metrics_port: int | None, on_ready: Callable[[str], None]
) -> None:
    from features import pipeline  # noqa: PLC0415 - Beam takes seconds to load

    claimed: set[int] = set()

    def opened(split: Split) -> None:
        claimed.update(split.partitions)
        if len(claimed) == len(config.partitions):
            _settled()
            on_ready(f"features of {len(claimed)} partitions")

    with ExitStack() as ending:
        if metrics_port is not None:
            metrics = PrometheusMetrics()
            POOL.metrics = metrics
            ending.enter_context(metrics.served(metrics_port))
        POOL.on_open = opened
        ending.enter_context(_signals(POOL.stop))
        pipeline.run_here(config, plan)


def _fold_there(config: JobConfig, plan: RunPlan, on_ready: Callable[[str], None]) -> None:
    from features import pipeline  # noqa: PLC0415 - Beam takes seconds to load

    stopping = threading.Event()
    with _signals(stopping.set), _alone(config, plan):
        before = _epochs(config)
        job = pipeline.submit(config, plan)
        ready = False
        while not (stopping.is_set() or job.ended(LOOK_S)):
            if not ready and all(now > before[p] for p, now in _epochs(config).items()):
                ready = True
                on_ready(f"features of {len(config.partitions)} partitions on {plan.runner}")
        if stopping.is_set():
            job.cancel()


def _settled() -> None:
    """
    What is loaded by now stays: the search for garbage need not look at it again.

    It is most of what there is (Beam's modules alone), and a search through it holds up the fold
    for 70 to 90 ms.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def _alone(config: JobConfig, plan: RunPlan) -> Iterator[None]:
    """
    No other Flink job of this one's name: none that lost its submitter, and none left behind.

    Two jobs over the same partitions would take them from one another without end.
    """
    master = plan.server.flink_master if plan.server else None
    if master is None:
        yield
        return
    name = job_name(config.settings, config.features.fingerprint)
    flink, clock = JobManager(master), SystemClock()
    flink.cancel(name, CANCEL_S, clock)
    try:
        yield
    finally:
        flink.cancel(name, CANCEL_S, clock)


def _epochs(config: JobConfig) -> dict[int, int]:
    """Of each partition's lease: a worker that claims it makes it larger."""
    store = open_store(config.settings, config.features)
    try:
        found = store.positions(config.partitions)
    finally:
        store.close()
    return {p: 0 if one is None else one.epoch for p, one in found.items()}


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT end the job cleanly."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    former = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
