"""
Backfill as a Beam batch pipeline, on any runner: what a partition needs is done where it is sent.

Work is shared out by partition, which is the unit of order. A recording is read in order by
whoever gets its partition; tables are read wherever, their events meet by partition in a
`GroupByKey` as columns, and are put in order there. No element is an event.

The DoFns are shells: `features.batch_fold` and `features.batch_examples` do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import apache_beam as beam
import polars as pl
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from features.batch_reports import Reports
from features.event_tables import EventTable, Tables, parted, table_recording
from features.recording import Recording

# Ours beside Beam's own names.
RUNNERS: Final = {"prism": "PrismRunner", "flink": "FlinkRunner", "dataflow": "DataflowRunner"}

# One partition of a recording, and all that came out of a step before, become small elements.
Step = Callable[[Recording, int, Sequence[Any]], Iterable[Any]]


class _OfRecording(beam.DoFn):
    """A step on a partition of a recording that everybody can read."""

    def __init__(self, recording: Recording, step: Step) -> None:
        self._recording, self._step = recording, step

    def process(self, partition: int, before: Any = ()) -> Iterator[Any]:
        yield from self._step(self._recording, partition, before)


class _OfGroup(beam.DoFn):
    """A step on a partition of tables, put in order here."""

    def __init__(self, partitions: int, step: Step) -> None:
        self._partitions, self._step = partitions, step

    def process(self, element: tuple[int, Any], before: Any = ()) -> Iterator[Any]:
        partition, pieces = element
        recording = table_recording(partition, self._partitions, pieces)
        yield from self._step(recording, partition, before)


class _ReadTable(beam.DoFn):
    """A table's events, some at a time, by partition."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions

    def process(self, table: EventTable) -> Iterator[tuple[int, pl.DataFrame]]:
        for frame in table.frames():
            yield from parted(frame, self._partitions)


@dataclass(frozen=True, slots=True)
class Parts:
    """The partitions of an input, on which steps can be done one after the other."""

    elements: beam.PCollection
    over: Callable[[Step], beam.DoFn]

    def then(
        self, name: str, step: Step, before: beam.PCollection | None = None
    ) -> beam.PCollection:
        """Do a step on every partition, with all that came out of the step `before`."""
        side = () if before is None else (beam.pvalue.AsList(before),)
        return self.elements | name >> beam.ParDo(self.over(step), *side)


def parts_of(pipeline: beam.Pipeline, given: Recording | Tables) -> Parts:
    """The partitions of a recording, or of tables."""
    if isinstance(given, Tables):
        partitions = given.partitions
        grouped = (
            pipeline
            | "tables" >> beam.Create(list(given.tables))
            | "share out" >> beam.Reshuffle()
            | "read" >> beam.ParDo(_ReadTable(partitions)).with_output_types(tuple[int, Any])
            | "by partition" >> beam.GroupByKey()
        )
        return Parts(grouped, lambda step: _OfGroup(partitions, step))
    numbers = (
        pipeline
        | "partitions" >> beam.Create(sorted(given.origin.bounds))
        | "share out" >> beam.Reshuffle()
    )
    return Parts(numbers, lambda step: _OfRecording(given, step))


def run(
    build: Callable[[beam.Pipeline], object],
    reports: Reports,
    runner: str = "fnapi",
    options: Sequence[str] = (),
) -> None:
    """
    Build a pipeline, run it, and wait until it has ended.

    Args:
        runner: `fnapi` (in this process), `prism`, or any name that Beam knows.

    Raises:
        MillstreamError: the error that a worker met, as it was raised there.
    """
    chosen = FnApiRunner() if runner == "fnapi" else RUNNERS.get(runner, runner)
    pipeline = beam.Pipeline(runner=chosen, options=PipelineOptions(list(options)))
    build(pipeline)
    try:
        pipeline.run().wait_until_finish()
    except Exception:
        failure = reports.failure()  # the runner keeps only its text
        if failure is None:
            raise
        raise failure from None
