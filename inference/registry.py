"""
The model registry: immutable, signed version folders in TensorFlow Serving's layout.

`<root>/<name>/<version>/` holds saved_model.pb, variables/, assets/, warmup.npz, golden.npz and,
written last, manifest.json with the size and SHA-256 of every file, signed. A folder without a
manifest is not a version. Beside the versions lie `.claims/` (numbers ever given away, so that none
is used twice, even after a crash or a deletion) and `.quarantine/` (versions that must not serve).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from inference.signature import Keyring, SigningKey, canonical
from ingest.clock import Clock, SystemClock
from schemas.errors import Refused
from schemas.events import Attribute, Measure

MANIFEST = "manifest.json"
KIND = "model manifest"  # what the signature is bound to
PRODUCTION = "production"
_CHUNK_BYTES = 1 << 20
# What reading something else than a manifest raises. Whatever escapes would end the thread that
# follows the releases.
_NO_MANIFEST = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the publisher knows of a version."""

    name: str
    fingerprint: str
    profile: str  # under which the gate judged it
    created_at: int  # ms
    parent: int = 0  # version that it was trained from or judged against; 0: none
    data: tuple[Attribute, ...] = ()  # what it was trained on: archive manifests, ranges
    metrics: tuple[Measure, ...] = ()
    declaration: str = ""  # of the feature set, see `features.declare.declared`; empty: not said


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a version: its path relative to the folder, with `/`."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelManifest:
    """What a version folder holds, and who said so."""

    version: int
    facts: ModelFacts
    files: tuple[FileEntry, ...]
    key_id: str = ""
    signature: bytes = b""

    def signed_bytes(self) -> bytes:
        """What the signature covers: everything but itself."""
        return canonical(self._described())

    def to_json(self) -> str:
        """The content of manifest.json."""
        signed = {
            **self._described(),
            "key_id": self.key_id,
            "signature": self.signature.hex(),
        }
        return json.dumps(signed, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelManifest:
        """
        Raises:
            ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError: this
                is no manifest.
        """
        found: dict[str, Any] = json.loads(text)
        facts = found["facts"]
        facts["data"] = tuple(Attribute(**one) for one in facts["data"])
        facts["metrics"] = tuple(Measure(**one) for one in facts["metrics"])
        return cls(
            version=int(found["version"]),
            facts=ModelFacts(**facts),
            files=tuple(FileEntry(**one) for one in found["files"]),
            key_id=str(found.get("key_id", "")),
            signature=bytes.fromhex(found.get("signature", "")),
        )

    def _described(self) -> dict[str, Any]:
        facts = asdict(self.facts)
        if not self.facts.declaration:  # signed before there was one
            del facts["declaration"]
        return {
            "version": self.version,
            "facts": facts,
            "files": [asdict(one) for one in self.files],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version as listed. Not verified."""

    version: int
    quarantined: str = ""  # why it must not serve; empty: it may


class ModelRegistry(Protocol):
    """
    Where versions are published and fetched.

    Implementations must pass `tests.contracts.model_registry.ModelRegistryContract`.
    """

    def publish(self, staging: Path, facts: ModelFacts, key: SigningKey) -> int:
        """Copy a folder in as the next version, whole or not at all, and give its number."""

    def fetch(self, name: str, version: int, keys: Keyring) -> Path:
        """
        A verified private copy of a version; the caller removes it.

        Raises:
            Refused: anything about it is not as its signed manifest says.
        """

    def versions(self, name: str) -> list[Version]:
        """All versions in ascending order, the quarantined ones marked."""

    def quarantine(self, name: str, version: int, reason: str) -> None:
        """Mark a version as never to be served again."""


class FolderRegistry:
    """A registry in a folder of a local or shared disk."""

    def __init__(
        self, root: Path, *, profile: str = PRODUCTION, clock: Clock | None = None
    ) -> None:
        self._root = root
        self._profile = profile
        self._clock = clock or SystemClock()

    def publish(self, staging: Path, facts: ModelFacts, key: SigningKey) -> int:
        self._check_profile(facts)
        _check_name(facts.name)
        home = self._root / facts.name
        version = self._claim(home)
        half = home / f".half-{version}"
        try:
            files = tuple(_copied(staging, half, path) for path in _files(staging))
            manifest = _signed(ModelManifest(version=version, facts=facts, files=files), key)
            _write(half / MANIFEST, manifest.to_json().encode())
            for folder in [half, *(p for p in half.rglob("*") if p.is_dir())]:
                _sync_folder(folder)
            half.rename(home / str(version))
            _sync_folder(home)
        finally:
            shutil.rmtree(half, ignore_errors=True)
        return version

    def path(self, name: str, version: int) -> Path:
        """The folder of a version as published. For people; loaders use `fetch`."""
        return self._root / name / str(version)

    def fetch(self, name: str, version: int, keys: Keyring) -> Path:
        source = self.path(name, version)
        manifest, text = self._verified_manifest(name, version, keys)
        extra = {p.as_posix() for p in _files(source)} - {f.path for f in manifest.files}
        if extra - {MANIFEST}:
            raise Refused(
                f"{source}: {min(extra - {MANIFEST})} is not listed in the signed manifest"
            )
        private = Path(tempfile.mkdtemp(prefix=f"millstream-{name}-{version}-"))
        try:
            for entry in manifest.files:
                _copy_verified(source, private, entry)
            _write(private / MANIFEST, text)
        except BaseException:
            shutil.rmtree(private, ignore_errors=True)
            raise
        return private

    def check(self, name: str, version: int, keys: Keyring) -> ModelManifest:
        """
        The manifest of a version whose every byte is as signed.

        Raises:
            Refused: as `fetch`.
        """
        copy = self.fetch(name, version, keys)
        try:
            return read_manifest(copy)
        finally:
            shutil.rmtree(copy)

    def versions(self, name: str) -> list[Version]:
        home = self._root / name
        numbers = sorted(
            int(p.name)
            for p in (home.iterdir() if home.is_dir() else ())
            if p.name.isdecimal() and (p / MANIFEST).is_file()
        )
        return [Version(version=n, quarantined=self._quarantined(name, n)) for n in numbers]

    def manifest(self, name: str, version: int) -> ModelManifest:
        """
        What a version says of itself, unverified. For people and lists.

        Raises:
            Refused: there is no such version, or its manifest does not parse.
        """
        self._check_there(name, version)
        path = self.path(name, version) / MANIFEST
        return _parsed(path, _read(path))

    def quarantine(self, name: str, version: int, reason: str) -> None:
        folder = self._root / name / ".quarantine"
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / str(version), (reason or "no reason given").encode())
        _sync_folder(folder)

    def _check_there(self, name: str, version: int) -> None:
        if not self.path(name, version).is_dir():
            known = ", ".join(str(one.version) for one in self.versions(name)) or "none"
            raise Refused(f"version {version} of {name} is not in the registry; there: {known}")

    def _quarantined(self, name: str, version: int) -> str:
        path = self._root / name / ".quarantine" / str(version)
        return path.read_text() if path.is_file() else ""

    def _verified_manifest(
        self, name: str, version: int, keys: Keyring
    ) -> tuple[ModelManifest, bytes]:
        self._check_there(name, version)
        path = self.path(name, version) / MANIFEST
        if reason := self._quarantined(name, version):
            raise Refused(f"{path.parent} is quarantined: {reason}")
        text = _read(path)
        manifest = _parsed(path, text)
        try:
            keys.verify(
                KIND,
                manifest.signed_bytes(),
                key_id=manifest.key_id,
                signature=manifest.signature,
                now_ms=self._clock.now_ms(),
            )
        except Refused as refused:
            raise Refused(f"{path}: {refused}") from None
        if (manifest.facts.name, manifest.version) != (name, version):
            raise Refused(
                f"{path} is the manifest of {manifest.facts.name} version {manifest.version}"
            )
        self._check_profile(manifest.facts)
        return manifest, text

    def _check_profile(self, facts: ModelFacts) -> None:
        if self._profile == PRODUCTION and facts.profile != PRODUCTION:
            raise Refused(
                f"{facts.name}: gated under the profile {facts.profile!r}; "
                "this registry serves production and takes only versions gated for it"
            )

    def _claim(self, home: Path) -> int:
        """The next number that was never given away."""
        claims = home / ".claims"
        claims.mkdir(parents=True, exist_ok=True)
        while True:
            given = [int(p.name) for p in [*claims.iterdir(), *home.iterdir()] if _numbered(p)]
            version = max(given, default=0) + 1
            try:
                (claims / str(version)).touch(exist_ok=False)
            except FileExistsError:
                continue  # another publisher was faster
            _sync_folder(claims)
            return version


def read_manifest(folder: Path) -> ModelManifest:
    """The manifest of a fetched (verified) copy."""
    return _parsed(folder / MANIFEST, _read(folder / MANIFEST))


def _signed(manifest: ModelManifest, key: SigningKey) -> ModelManifest:
    return ModelManifest(
        version=manifest.version,
        facts=manifest.facts,
        files=manifest.files,
        key_id=key.key_id,
        signature=key.sign(KIND, manifest.signed_bytes()),
    )


def _numbered(path: Path) -> bool:
    return path.name.isdecimal()


def _check_name(name: str) -> None:
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise Refused(f"{name!r} is not a model name")


def _files(folder: Path) -> Iterator[PurePosixPath]:
    """Every file below a folder in name order. Refuses anything but plain files and folders."""
    if not folder.is_dir() or folder.is_symlink():
        raise Refused(f"{folder} is not a folder")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise Refused(f"{path} is not a plain file: links and devices are refused")
        if path.is_file():
            yield PurePosixPath(path.relative_to(folder).as_posix())


def _copied(source: Path, target: Path, path: PurePosixPath) -> FileEntry:
    """Copy one file of a staging folder; the entry describes the bytes written."""
    if path.as_posix() == MANIFEST:
        raise Refused(f"{source / path} is there already; the registry writes it")
    size, digest = _copy(source / path, target / path, limit_bytes=None)
    return FileEntry(path=path.as_posix(), size_bytes=size, sha256=digest)


def _copy_verified(source: Path, target: Path, entry: FileEntry) -> None:
    """Copy one listed file; what was written must be what was signed."""
    path = PurePosixPath(entry.path)
    if path.is_absolute() or ".." in path.parts or path.as_posix() != entry.path:
        raise Refused(f"{source}: {entry.path!r} is not a path inside the version's folder")
    try:
        size, digest = _copy(source / path, target / path, limit_bytes=entry.size_bytes)
    except OSError as error:
        raise Refused(f"{source / path}: {error.strerror}") from error
    if size != entry.size_bytes:
        raise Refused(f"{source / path}: {entry.size_bytes} bytes were signed, it has another size")
    if digest != entry.sha256:
        raise Refused(f"{source / path}: its SHA-256 is not the signed one")


def _copy(source: Path, target: Path, limit_bytes: int | None) -> tuple[int, str]:
    """Copy without following links, fsync; size and SHA-256 of what was written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as read, target.open("xb") as written:
        while chunk := read.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            if limit_bytes is not None and size > limit_bytes:
                break
            written.write(chunk)
        written.flush()
        os.fsync(written.fileno())
    return size, digest.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from error


def _parsed(path: Path, text: bytes) -> ModelManifest:
    try:
        manifest = ModelManifest.from_json(text)
        manifest.signed_bytes()  # it parses, and cannot have been signed: NaN, a lone surrogate
    except _NO_MANIFEST as error:
        raise Refused(f"{path} does not parse as a manifest: {error!r:.300}") from error
    return manifest


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
