"""Only the locked jars are run; whatever is wrong with them is said in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import jars
from schemas.errors import Misconfigured


def lock_of(directory: Path, content: bytes) -> tuple[Path, jars.Jar]:
    """A lock of one jar with this content, already in a cache under `directory`."""
    sample = directory / "sample"
    sample.write_bytes(content)
    jar = jars.Jar(group="org.none", artifact="none", version="1.0", sha256=jars.sha256(sample))
    lock = directory / "test.lock"
    lock.write_text(f"# one jar\n{jar.line()}\n")
    return lock, jar


def test_the_lock_is_complete_sorted_and_names_no_registry() -> None:
    text = jars.LOCK_FILE.read_text()
    locked = jars.parse_lock(text)
    assert [jar.line() for jar in locked] == sorted(jar.line() for jar in locked)
    assert {"kafka_2.13", "kafka-clients", "kafka-server", "log4j-slf4j-impl"} <= {
        jar.artifact for jar in locked
    }
    assert all(len(jar.sha256) == 64 for jar in locked)
    assert "://" not in text


def test_one_version_of_every_artifact_is_locked() -> None:
    locked = jars.parse_lock(jars.LOCK_FILE.read_text())
    assert len({(jar.group, jar.artifact) for jar in locked}) == len(locked)
    assert len({jar.version for jar in locked if "jackson" in jar.group}) == 1


def test_a_changed_jar_in_the_cache_is_refused(tmp_path: Path) -> None:
    lock, jar = lock_of(tmp_path, b"good")
    directory = jars.folder(tmp_path, lock.read_text())
    directory.mkdir()
    (directory / jar.name).write_bytes(b"good")
    assert jars.fetch(tmp_path, lock) == (directory / jar.name,)
    (directory / jar.name).write_bytes(b"evil")
    with pytest.raises(Misconfigured, match=r"none-1\.0\.jar has sha256 .* Delete"):
        jars.fetch(tmp_path, lock)


def test_without_cache_and_network_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, _ = lock_of(tmp_path, b"good")
    # Nobody listens there: the client's own way of being without a network.
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(Misconfigured, match=r"could not be downloaded .* doctor --fetch"):
        jars.fetch(tmp_path, lock)
    assert not jars.folder(tmp_path, lock.read_text()).exists()
    assert list(tmp_path.glob("kafka-jars-*.*/*")) == []


def test_a_cache_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    lock, _ = lock_of(tmp_path, b"good")
    with pytest.raises(Misconfigured, match="MILLSTREAM_CACHE_DIR"):
        jars.fetch(tmp_path / "sample" / "cache", lock)
