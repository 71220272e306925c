"""Settings are read once, and all problems are told together."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.settings import Settings
from schemas.errors import Misconfigured


def test_the_environment_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "millstream.toml"
    file.write_text('redis_url = "redis://file"\ntimeout_s = 3\narchive_dir = "a/b"\n')
    settings = Settings.load({"MILLSTREAM_REDIS_URL": "redis://env"}, file)
    assert settings.redis_url == "redis://env"
    assert settings.timeout_s == 3.0
    assert settings.archive_dir == Path("a/b")
    assert settings.registry_url == Settings().registry_url


def test_an_archive_is_a_folder_or_a_url() -> None:
    for given, found in (("a//b", Path("a/b")), ("s3://bucket/a", "s3://bucket/a")):
        assert Settings.load({"MILLSTREAM_ARCHIVE_DIR": given}).archive_dir == found


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text('topic_prefix = "x-"\n')
    assert Settings.load({"MILLSTREAM_CONFIG": str(file)}).topic_prefix == "x-"


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    file = tmp_path / "millstream.toml"
    file.write_text("colour = 1\n")
    environment = {
        "MILLSTREAM_TIMEOUT_S": "soon",
        "MILLSTREAM_MAX_RECORD_BYTES": "1e6",
        "MILLSTREAM_REDIS_ULR": "redis://typo",
    }
    with pytest.raises(Misconfigured) as error:
        Settings.load(environment, file)
    assert str(error.value).split("; ") == [
        "MILLSTREAM_TIMEOUT_S='soon' is not a float",
        "MILLSTREAM_MAX_RECORD_BYTES='1e6' is not an int",
        "unknown setting 'colour' in the settings file",
        "MILLSTREAM_REDIS_ULR is not a setting",
    ]


def test_values_of_the_right_type_that_mean_nothing_are_problems_too() -> None:
    environment = {
        "MILLSTREAM_LOG_FORMAT": "xml",
        "MILLSTREAM_OTLP_ENDPOINT": "collector:4318",
        "MILLSTREAM_TRACE_RATIO": "1.5",
    }
    with pytest.raises(Misconfigured) as error:
        Settings.load(environment)
    assert str(error.value).split("; ") == [
        "MILLSTREAM_LOG_FORMAT='xml' is not one of console, json",
        "MILLSTREAM_OTLP_ENDPOINT='collector:4318' is not a URL with http:// or https://",
        "MILLSTREAM_TRACE_RATIO=1.5 is not between 0 and 1",
    ]


def test_a_file_that_was_asked_for_must_be_there_and_readable(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"gone\.toml does not exist"):
        Settings.load({}, tmp_path / "gone.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("= 1")
    with pytest.raises(Misconfigured, match=r"broken\.toml: Invalid"):
        Settings.load({}, broken)


def test_variables_of_others_are_left_alone() -> None:
    assert Settings.load({"PATH": "/bin", "HOME": "/root"}) == Settings()
