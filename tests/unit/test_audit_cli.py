"""`millstream audit`: what it takes, how it repeats itself, and the record that it leaves."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy import cli
from features import audit_cli, audit_record
from features.audit_record import AuditRecord
from features.skew import AuditReport, Insufficient, Pass, Skewed
from ingest.prometheus import PrometheusMetrics
from schemas.errors import Misconfigured

REPORT = AuditReport(fingerprint="0123456789abcdef", since_ms=0, users=3, answers=7, entries=70)


@pytest.fixture
def signals() -> Iterator[None]:
    """The handlers of before, afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_record_of_the_last_audit_is_the_one_that_is_read(tmp_path: Path) -> None:
    assert audit_record.load(tmp_path, REPORT.fingerprint) is None
    verdicts = [Pass(), Skewed(reasons=("row: 1 of 7",)), Insufficient(reasons=("few",))]
    for at_ms, verdict in enumerate(verdicts):
        record = audit_record.recorded(REPORT, verdict, at_ms)
        path = audit_record.save(tmp_path, record)
        assert audit_record.load(tmp_path, REPORT.fingerprint) == record
    assert list(path.parent.iterdir()) == [path]
    assert audit_record.load(tmp_path, "another set") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fingerprint": "f", "reasons": []}'])
def test_a_file_that_is_no_record_is_no_pass(tmp_path: Path, text: str) -> None:
    path = audit_record.save(tmp_path, audit_record.recorded(REPORT, Pass(), 1))
    path.write_text(text)
    with pytest.raises(Misconfigured, match="run `millstream audit` again"):
        audit_record.load(tmp_path, REPORT.fingerprint)


@pytest.mark.usefixtures("signals")
def test_it_audits_again_and_again_until_it_is_told_to_stop() -> None:
    calls: list[PrometheusMetrics] = []

    def once(metrics: PrometheusMetrics) -> AuditRecord:
        calls.append(metrics)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return audit_record.recorded(REPORT, Pass(), len(calls))

    last = audit_cli._again_and_again(once, 0.001, metrics_port=0)
    assert last.at_ms == len(calls) == 3
    assert len(set(map(id, calls))) == 1  # one set of numbers, to be scraped


def test_once_is_enough_without_a_pause() -> None:
    record = audit_record.recorded(REPORT, Pass(), 1)
    assert audit_cli._again_and_again(lambda _: replace(record, at_ms=2), 0, None).at_ms == 2


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--since", "tomorrow"], "a date or time"),
        (["--users-share", "0"], "chooses nobody"),
    ],
)
def test_what_chooses_nothing_is_told(option: list[str], said: str) -> None:
    result = CliRunner().invoke(cli.build(), ["audit", *option])
    assert isinstance(result.exception, Misconfigured)
    assert said in str(result.exception)


def test_a_time_without_a_zone_is_in_utc() -> None:
    assert audit_cli._ms("1970-01-02") == 86_400_000
    assert audit_cli._ms("1970-01-01T02:00+01:00") == 3_600_000


def test_what_was_not_compared_is_told_to_machines_as_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = replace(REPORT, skipped={"items changed since": 2})
    audit_cli._print(report, audit_record.recorded(report, Pass(), 1), as_json=True)
    assert json.loads(capsys.readouterr().out)["skipped"] == {"items changed since": 2}
