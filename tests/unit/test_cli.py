"""Exit codes and messages of the command line."""

from __future__ import annotations

import json

import pytest
import structlog
import typer

from deploy import cli
from ingest.terminal import print_json
from schemas.errors import Misconfigured, ProcessFailed, Refused


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (Misconfigured("set it"), 2),
        (Refused("the gate said no"), 3),
        (ProcessFailed("it stopped [here]"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_error_has_its_exit_code_and_its_text(
    raised: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise raised

    app = typer.Typer()
    app.command()(fail)
    assert cli.run([], app) == code
    assert str(raised) in capsys.readouterr().err


def test_a_bad_setting_is_told_with_all_others_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MILLSTREAM_TIMEOUT_S", "soon")
    monkeypatch.setenv("MILLSTREAM_NONSENSE", "1")
    assert cli.run(["stack", "status"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "MILLSTREAM_TIMEOUT_S='soon' is not a float" in told
    assert "MILLSTREAM_NONSENSE is not a setting" in told


def test_version_needs_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("millstream ")


def test_log_events_go_to_standard_error_and_leave_json_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def tell() -> None:
        logger = structlog.get_logger("kafka")
        logger.debug("not.told")
        logger.warning("broker.slow", waited_s=3)
        print_json({"rows": 1})

    app = typer.Typer()
    app.command()(tell)
    assert cli.run([], app) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"rows": 1}
    assert "broker.slow waited_s=3" in err
    assert "not.told" not in err


def test_log_lines_are_objects_if_wanted_without_the_variables_of_an_exception(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.log_to_standard_error("json")
    try:
        logger = structlog.get_logger("x")
        logger.warning("serve.slow", trace_id="ab", waited_s=3, where=print)
        try:
            private = "ann"
            raise ValueError(private[:0] or "broke")
        except ValueError:
            logger.exception("serve.broke")
    finally:
        cli.log_to_standard_error()
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["event"], first["level"], first["trace_id"]) == ("serve.slow", "warning", "ab")
    assert first["waited_s"] == 3
    assert second["exception"][0]["exc_value"] == "broke"
    assert "private" not in json.dumps(second)


def test_the_setting_of_the_log_s_form_reaches_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MILLSTREAM_LOG_FORMAT", "json")
    try:
        cli.run(["topics", "--help"])
        structlog.get_logger("x").warning("told")
        assert json.loads(capsys.readouterr().err.splitlines()[-1])["event"] == "told"
    finally:
        cli.log_to_standard_error()
