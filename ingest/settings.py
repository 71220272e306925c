"""Settings: `MILLSTREAM_*` environment variables over one TOML file, read once."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from schemas.errors import Misconfigured

PREFIX = "MILLSTREAM_"
LOG_FORMATS = ("console", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where everything is. The defaults are the addresses of `millstream stack up`."""

    bootstrap_servers: str = "127.0.0.1:19092"
    registry_url: str = "http://127.0.0.1:18081"
    redis_url: str = "redis://127.0.0.1:16379/0"  # its forms: `features.redis_link`
    topic_prefix: str = ""  # before every topic name and consumer group: isolates runs
    profile: str = "production"  # constants of windows, minimums and budgets
    model_name: str = "recommender"
    archive_dir: Path | str = Path("out/stack/archive")  # or a URL: s3://bucket/folder
    models_dir: Path = Path("out/stack/models")
    keys_dir: Path = Path("out/stack/keys")
    data_dir: Path = Path("out/data")  # downloaded data sets
    stack_dir: Path = Path("out/stack")  # data and logs of `millstream stack`
    cache_dir: Path = Path("~/.cache/millstream")  # Kafka's jars, shared by all checkouts
    timeout_s: float = 10.0  # of every external call
    max_record_bytes: int = 1_000_000
    log_format: str = "console"  # of lines on standard error: console or json
    otlp_endpoint: str = ""  # of a collector of traces, http://host:4318; empty: no traces
    trace_ratio: float = 0.0  # of requests whose caller brings no trace: followed all the same
    trace_per_s: float = 100.0  # followed at most: each costs 0.2 ms of a processor

    @classmethod
    def load(
        cls, environment: Mapping[str, str] | None = None, file: Path | None = None
    ) -> Settings:
        """
        Environment over file over defaults.

        The file is `file`, or the one MILLSTREAM_CONFIG names, or `millstream.toml` if it exists.

        Raises:
            Misconfigured: every problem found, in one message.

        >>> Settings.load({"MILLSTREAM_TIMEOUT_S": "soon"})
        Traceback (most recent call last):
        schemas.errors.Misconfigured: MILLSTREAM_TIMEOUT_S='soon' is not a float
        """
        env = dict(os.environ if environment is None else environment)  # noqa: TID251
        given, problems = _from_file(file, env)
        found: dict[str, Any] = {}
        for f in fields(cls):
            name = PREFIX + f.name.upper()
            text = env.get(name, given.pop(f.name, None))
            if text is None:
                continue
            try:
                found[f.name] = _converted(text, str(f.type))
            except ValueError:
                problems.append(
                    f"{name}={text!r} is not a{'n' if f.type == 'int' else ''} {f.type}"
                )
        problems += [f"unknown setting {name!r} in the settings file" for name in sorted(given)]
        known = {PREFIX + f.name.upper() for f in fields(cls)} | {PREFIX + "CONFIG"}
        problems += [
            f"{name} is not a setting"
            for name in sorted(env)
            if name.startswith(PREFIX) and name not in known
        ]
        settings = cls(**found)
        problems += settings._problems()
        if problems:
            raise Misconfigured("; ".join(problems))
        return settings

    def _problems(self) -> list[str]:
        """Values of the right type that mean nothing."""
        found = {
            "LOG_FORMAT": (self.log_format in LOG_FORMATS, f"one of {', '.join(LOG_FORMATS)}"),
            "OTLP_ENDPOINT": (
                not self.otlp_endpoint or self.otlp_endpoint.startswith(("http://", "https://")),
                "a URL with http:// or https://",
            ),
            "TRACE_PER_S": (self.trace_per_s >= 1, "at least 1"),
            "TRACE_RATIO": (0 <= self.trace_ratio <= 1, "between 0 and 1"),
        }
        return [
            f"{PREFIX}{name}={getattr(self, name.lower())!r} is not {expected}"
            for name, (fine, expected) in found.items()
            if not fine
        ]


def masked(url: str) -> str:
    """
    An address as it may be shown: without its password.

    >>> masked("rediss://app:se@cret@store:6379/0")
    'rediss://app:***@store:6379/0'
    """
    return re.sub(r"(://[^:/?]*:).*(?=@)", r"\1***", url)


def _from_file(file: Path | None, env: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    path = file or Path(env.get(PREFIX + "CONFIG", "millstream.toml"))
    if not path.exists():
        asked = file is not None or PREFIX + "CONFIG" in env
        return {}, [f"settings file {path} does not exist"] if asked else []
    try:
        return tomllib.loads(path.read_text()), []
    except tomllib.TOMLDecodeError as error:
        return {}, [f"settings file {path}: {error}"]


def _converted(value: object, kind: str) -> object:
    match kind:
        case "int":
            return int(str(value))
        case "float":
            return float(str(value))
        case "Path":
            return Path(str(value))
        case "Path | str":
            return str(value) if "://" in str(value) else Path(str(value))
        case _:
            return str(value)
