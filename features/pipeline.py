"""
The streaming pipeline: Read user-events -> fold into the store. Runs on any Beam runner.

Everything dear is in the pooled split; the DoFn only finds it. The pipeline ends when the pool is
told to stop, or with the first error (crash-only: a restart resumes where the store stands).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.io.unbounded_source import ReadFromUnboundedSource
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from features.counts import Counts
from features.job import JobConfig
from features.source import Element, EventSource
from features.split import POOL

# A bundle's end is a self-checkpoint, of which runners keep something: at most one in 10 s.
BUNDLE_S = 10.0
BUNDLE_ELEMENTS = 1_000_000


class FoldBatches(beam.DoFn):
    """Folds each micro-batch by the split that read it."""

    def process(self, element: Element) -> Iterator[Counts]:
        with POOL.using(element.split) as split:
            yield split.handle(element.batch)


def build(pipeline: beam.Pipeline, config: JobConfig, splits: int = 1) -> beam.PCollection:
    """Read and fold: the counts of each micro-batch."""
    return (
        pipeline
        | "user-events"
        >> ReadFromUnboundedSource(
            EventSource(config, splits),
            poll_interval=0.01,
            max_records_per_bundle=BUNDLE_ELEMENTS,
            max_read_time_seconds=BUNDLE_S,
        )
        | "fold" >> beam.ParDo(FoldBatches())
    )


def run(config: JobConfig, options: Sequence[str] = ()) -> None:
    """
    Fold in this process until `POOL.stop()` or an error.

    Raises:
        MillstreamError: the error that ended it, as it was raised.
    """
    pipeline = beam.Pipeline(
        runner=FnApiRunner(), options=PipelineOptions(list(options), streaming=True)
    )
    build(pipeline, config)
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
