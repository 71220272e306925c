"""
Kafka's and Flink's jars: exactly the locked ones, fetched once into a cache by jgo, and verified.

A lock names coordinates and SHA-256 sums, and no registry: where jars come from is jgo's default
and the user's own jgo configuration.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from schemas.errors import Misconfigured

_TIMEOUT_S = 60
_DOWNLOADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class JarSet:
    """What one program needs to run: the jars of its lock file."""

    name: str  # of its folder in the cache
    owner: str  # in messages
    endpoint: str  # coordinates that are resolved when the lock is written
    # Brings the program's log to a file (without a binding slf4j drops every line). Added by
    # itself, not resolved with the endpoint: its bill of materials would move other versions.
    log_binding: str
    lock_file: Path
    remedy: str  # the command that fetches them

    def lock(self) -> str:
        """The lock file's text."""
        return self.lock_file.read_text()


KAFKA = JarSet(
    name="kafka",
    owner="Kafka",
    endpoint="org.apache.kafka:kafka_2.13:4.1.1",
    log_binding="org.apache.logging.log4j:log4j-slf4j-impl:2.24.3",
    lock_file=Path(__file__).with_name("kafka-jars.lock"),
    remedy="millstream doctor --fetch",
)
FLINK = JarSet(
    name="flink",
    owner="Flink",
    # The newest of Beam's Flink runners that resolves completely; Beam's 2.77 SDK runs on it.
    endpoint="org.apache.beam:beam-runners-flink-1.19:2.62.0",
    log_binding="org.slf4j:slf4j-simple:1.7.36",
    lock_file=Path(__file__).with_name("flink-jars.lock"),
    remedy="millstream doctor --runners --fetch",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jar:
    """One locked jar."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def name(self) -> str:
        """The file's name.

        >>> Jar(group="org.lz4", artifact="lz4-java", version="1.8.0", sha256="").name
        'lz4-java-1.8.0.jar'
        """
        return f"{self.artifact}-{self.version}.jar"

    def line(self) -> str:
        """As it stands in the lock file."""
        return f"{self.group}:{self.artifact}:{self.version} sha256:{self.sha256}"


def parse_lock(text: str) -> tuple[Jar, ...]:
    """
    Jars of a lock file's text.

    >>> parse_lock("# a comment\\norg.lz4:lz4-java:1.8.0 sha256:00ff")[0].version
    '1.8.0'
    """
    jars = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        coordinates, _, digest = line.partition(" sha256:")
        group, artifact, version = coordinates.split(":")
        jars.append(Jar(group=group, artifact=artifact, version=version, sha256=digest.strip()))
    return tuple(jars)


def folder(cache_dir: Path, of: JarSet) -> Path:
    """Where the jars lie: another lock has another folder."""
    digest = hashlib.sha256(of.lock().encode()).hexdigest()
    return cache_dir.expanduser() / f"{of.name}-jars-{digest[:12]}"


def fetch(cache_dir: Path, of: JarSet) -> tuple[Path, ...]:
    """
    The verified jars, downloaded if they are not in the cache. Safe to call from many processes.

    Raises:
        Misconfigured: they cannot be downloaded, or one is not the jar that was locked.
    """
    jars = parse_lock(of.lock())
    target = folder(cache_dir, of)
    if not target.is_dir():
        _ensure(target.parent)
        with _held(target.with_suffix(".lock")):
            if not target.is_dir():  # another process may have been first
                _download(of, jars, target)
    verify(of, jars, target)
    return tuple(target / jar.name for jar in jars)


def verify(of: JarSet, jars: Sequence[Jar], directory: Path) -> None:
    """
    Check every jar's SHA-256 sum.

    Raises:
        Misconfigured: naming every jar that is missing or not the locked one, and what to do.
    """
    problems = []
    for jar in jars:
        path = directory / jar.name
        if not path.is_file():
            problems.append(f"{jar.name} is missing")
        elif (found := sha256(path)) != jar.sha256:
            problems.append(f"{jar.name} has sha256 {found[:16]}..., locked {jar.sha256[:16]}...")
    if problems:
        raise Misconfigured(
            f"{of.owner}'s jars in {directory} are not the locked ones: {'; '.join(problems)}. "
            f"Delete {directory} and run `{of.remedy}`"
        )


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ensure(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(
            f"cannot create {directory} ({error}): set MILLSTREAM_CACHE_DIR to a writable folder"
        ) from error


@contextmanager
def _held(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(of: JarSet, jars: Sequence[Jar], target: Path) -> None:
    """Into a folder of its own, verified, then renamed: `target` is whole or absent."""
    staging = Path(tempfile.mkdtemp(prefix=target.name + ".", dir=target.parent))
    try:
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            paths = list(pool.map(lambda jar: resolve(of, jar, staging / "maven"), jars))
        for jar, path in zip(jars, paths, strict=True):
            path.rename(staging / jar.name)
        shutil.rmtree(staging / "maven")
        verify(of, jars, staging)
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def resolve(of: JarSet, jar: Jar, repository: Path) -> Path:
    """
    Download one jar by jgo into `repository` (no POM is read: the lock is complete).

    Raises:
        Misconfigured: it could not be downloaded.
    """
    from jgo.config import GlobalSettings  # noqa: PLC0415 - 0.3 s, needed once a machine
    from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
    from jgo.maven import MavenContext  # noqa: PLC0415

    remotes = {"central": MAVEN_CENTRAL_URL, **GlobalSettings.load().repositories}
    context = MavenContext(repo_cache=repository, remote_repos=remotes, timeout=_TIMEOUT_S)
    component = context.project(jar.group, jar.artifact).at_version(jar.version)
    try:
        return Path(component.artifact().resolve())
    except Exception as error:  # jgo raises whatever requests raises, RuntimeError and OSError
        raise Misconfigured(
            f"{of.owner}'s jars are not in the cache and {jar.name} could not be downloaded "
            f"({type(error).__name__}: {str(error)[:200]}). Check the network (a proxy is taken "
            "from HTTPS_PROXY, another repository from the [repositories] of ~/.config/jgo.conf) "
            f"and run `{of.remedy}`; or copy ~/.cache/millstream from a machine that has it"
        ) from error


def write_lock(of: JarSet) -> int:
    """Resolve the endpoint anew, download, and write the lock. The number of jars."""
    import jgo  # noqa: PLC0415 - only `make lock` needs it

    with tempfile.TemporaryDirectory() as repository:
        found = {}
        coordinates = [(a.groupId, a.artifactId, a.version) for a in jgo.resolve(of.endpoint)]
        for group, artifact, version in [*coordinates, of.log_binding.split(":")]:
            jar = Jar(group=group, artifact=artifact, version=version, sha256="")
            found[jar.name] = replace(jar, sha256=sha256(resolve(of, jar, Path(repository))))
    lines = sorted(jar.line() for jar in found.values())
    of.lock_file.write_text(f"# {of.endpoint} {of.log_binding}\n" + "\n".join(lines) + "\n")
    return len(lines)


if __name__ == "__main__":
    for jar_set in (KAFKA, FLINK):
        write_lock(jar_set)
