"""
The streaming pipeline: Read user-events -> fold into the store. Runs on any Beam runner.

Everything dear is in the pooled split; the DoFn only finds it. In this process the pipeline ends
when the pool is told to stop, or with the first error (crash-only: a restart resumes where the
store stands). On a cluster the runner starts what failed again, there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import apache_beam as beam
from apache_beam import coders
from apache_beam.coders.coders import LengthPrefixCoder
from apache_beam.io.unbounded_source import ReadFromUnboundedSource
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineResult, PipelineState

from features.counts import Counts
from features.flink_keys import salt_for
from features.job import JobConfig
from features.runner import Runner, RunPlan, beam_arguments, cause, job_name
from features.source import Element, EventSource
from features.split import POOL
from schemas.errors import Misconfigured

# A bundle's end is a self-checkpoint, of which runners keep something. And it waits until Beam's
# state sampler looks again, up to 200 ms: at most once a minute.
BUNDLE_S = 60.0
BUNDLE_ELEMENTS = 1_000_000


class FoldBatches(beam.DoFn):
    """Folds each micro-batch by the split that read it."""

    def process(self, element: Element) -> Iterator[Counts]:
        with POOL.using(element.split) as split:
            yield split.handle(element.batches)


def sources(config: JobConfig, plan: RunPlan) -> list[EventSource]:
    """
    The reads of a plan: one that is split, or, on Flink, one for each partition.

    Flink gives all splits of one read to the same subtask.
    """
    if plan.runner is not Runner.FLINK:
        return [EventSource(config, plan.parallelism)]
    shares = config.split(len(config.partitions))
    return [_placed(share, at, plan.parallelism) for at, share in enumerate(shares)]


def build(pipeline: beam.Pipeline, config: JobConfig, plan: RunPlan) -> None:
    """Read and fold, for each source."""
    for source in sources(config, plan):
        name = "-".join(map(str, source.config.partitions))
        counts = (
            pipeline
            | f"user-events-{name}"
            >> ReadFromUnboundedSource(
                source,
                poll_interval=0.01,
                max_records_per_bundle=BUNDLE_ELEMENTS,
                max_read_time_seconds=BUNDLE_S,
            )
            | f"fold-{name}" >> beam.ParDo(FoldBatches())
        )
        counts.element_type = Counts


def planned(config: JobConfig, plan: RunPlan) -> beam.Pipeline:
    """
    The pipeline of a plan, not yet run.

    Raises:
        Misconfigured: Beam does not take the options, or lacks what the runner needs.
    """
    arguments = beam_arguments(plan, job_name(config.settings, config.features.fingerprint))
    match plan.runner:
        case Runner.FNAPI:
            runner = FnApiRunner()
        case Runner.PRISM | Runner.FLINK:
            runner = PortableRunner()
        case Runner.DATAFLOW:
            runner = None  # Beam finds it by its name among the options
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(arguments))
    build(pipeline, config, plan)
    return pipeline


def run_here(config: JobConfig, plan: RunPlan) -> None:
    """
    Fold in this process until `POOL.stop()` or an error.

    Raises:
        MillstreamError: the error that ended it, as it was raised.
    """
    pipeline = planned(config, plan)
    try:
        pipeline.run().wait_until_finish()
    except Exception:
        if POOL.failure is None:
            raise
    finally:
        failure = POOL.failure  # the runner keeps only its text
        POOL.reset()
    if failure is not None:
        raise failure


class Submitted:
    """A job on a cluster, followed by a thread of its own."""

    def __init__(self, result: PipelineResult) -> None:
        self._result = result
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name="job", daemon=True)
        self._thread.start()

    def ended(self, timeout_s: float) -> bool:
        """
        Whether the job has ended within that time.

        Raises:
            MillstreamError: it failed.
        """
        if not self._ended.wait(timeout_s):
            return False
        if self._error is not None:
            raise cause(str(self._error)) from self._error
        return True

    def cancel(self) -> None:
        """Let the job server forget the job."""
        self._result.cancel()

    def _follow(self) -> None:
        try:
            if self._result.wait_until_finish() == PipelineState.FAILED:
                self._error = RuntimeError("no reason was given")
        except Exception as error:  # noqa: BLE001 - told by `ended`
            self._error = error
        finally:
            self._ended.set()


def submit(config: JobConfig, plan: RunPlan) -> Submitted:
    """
    Hand the pipeline to a cluster.

    Raises:
        Misconfigured: what this runner's client needs is not installed.
        MillstreamError: the job was not taken.
    """
    pipeline = planned(config, plan)
    try:
        return Submitted(pipeline.run())
    except ImportError as error:
        raise Misconfigured(f"--runner {plan.runner}: {error}") from error
    except Exception as error:  # gRPC's, and whatever the job server's text became
        raise cause(f"{type(error).__name__}: {error}") from error


def _placed(share: JobConfig, at: int, parallelism: int) -> EventSource:
    """The read of one partition, which falls into the subtask whose turn it is."""

    def key(salt: int) -> bytes:
        return element_key(EventSource(share, salt=salt))

    return EventSource(share, salt=salt_for(at % parallelism, parallelism, key))


def element_key(source: EventSource) -> bytes:
    """What Flink deals a read out by: its element as a worker encodes it, with its length."""
    coder = coders.registry.get_coder(EventSource)
    seen = coder.decode(coder.encode(source))
    return bytes(LengthPrefixCoder(coder).encode(seen))
