"""Only the locked jars are run; whatever is wrong with them is said in plain words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy import jars
from schemas.errors import Misconfigured


def set_of(directory: Path, content: bytes) -> tuple[jars.JarSet, jars.Jar]:
    """A locked set of one jar with this content."""
    sample = directory / "sample"
    sample.write_bytes(content)
    jar = jars.Jar(group="org.none", artifact="none", version="1.0", sha256=jars.sha256(sample))
    lock = directory / "test.lock"
    lock.write_text(f"# one jar\n{jar.line()}\n")
    return replace(jars.KAFKA, name="test", lock_file=lock), jar


@pytest.mark.parametrize(
    ("of", "needed"),
    [
        (jars.KAFKA, {"kafka_2.13", "kafka-clients", "kafka-server", "log4j-slf4j-impl"}),
        (jars.FLINK, {"beam-runners-flink-1.19", "flink-runtime", "slf4j-simple"}),
    ],
    ids=["kafka", "flink"],
)
def test_the_lock_is_complete_sorted_and_names_no_registry(
    of: jars.JarSet, needed: set[str]
) -> None:
    text = of.lock()
    locked = jars.parse_lock(text)
    assert [jar.line() for jar in locked] == sorted(jar.line() for jar in locked)
    assert needed <= {jar.artifact for jar in locked}
    assert all(len(jar.sha256) == 64 for jar in locked)
    assert "://" not in text


@pytest.mark.parametrize("of", [jars.KAFKA, jars.FLINK], ids=["kafka", "flink"])
def test_one_version_of_every_artifact_is_locked(of: jars.JarSet) -> None:
    locked = jars.parse_lock(of.lock())
    assert len({(jar.group, jar.artifact) for jar in locked}) == len(locked)
    assert len({jar.version for jar in locked if "jackson" in jar.group}) == 1


def test_a_changed_jar_in_the_cache_is_refused(tmp_path: Path) -> None:
    of, jar = set_of(tmp_path, b"good")
    directory = jars.folder(tmp_path, of)
    directory.mkdir()
    (directory / jar.name).write_bytes(b"good")
    assert jars.fetch(tmp_path, of) == (directory / jar.name,)
    (directory / jar.name).write_bytes(b"evil")
    with pytest.raises(Misconfigured, match=r"none-1\.0\.jar has sha256 .* Delete"):
        jars.fetch(tmp_path, of)


def test_without_cache_and_network_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, _ = set_of(tmp_path, b"good")
    # Nobody listens there: the client's own way of being without a network.
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(Misconfigured, match=r"could not be downloaded .* doctor --fetch"):
        jars.fetch(tmp_path, of)
    assert not jars.folder(tmp_path, of).exists()
    assert list(tmp_path.glob("test-jars-*.*/*")) == []


def test_a_cache_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    of, _ = set_of(tmp_path, b"good")
    with pytest.raises(Misconfigured, match="MILLSTREAM_CACHE_DIR"):
        jars.fetch(tmp_path / "sample" / "cache", of)
