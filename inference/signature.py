"""
Who said so: Ed25519 signatures over canonical bytes, and the keys that make and check them.

A key pair is two files in one folder: `<name>.key` (private, PEM, mode 0600) and `<name>.pub`
(JSON: id, public key, end of validity). A loader needs the `.pub` files alone. What is signed is
bound to its kind, so that a signature of one kind of record is worth nothing on another.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from schemas.errors import Misconfigured, Refused

GATE = "gate"  # the name of the key pair that signs models and releases


def canonical(value: Mapping[str, Any]) -> bytes:
    """
    The one byte form of a JSON-like value: sorted names, no spaces, ASCII, no NaN.

    >>> canonical({"b": 1, "a": "é"})
    b'{"a":"\\\\u00e9","b":1}'
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyKey:
    """A public key and until when it is trusted (`not_after_ms` 0: without end)."""

    key_id: str
    public: bytes  # 32 bytes
    not_after_ms: int = 0

    def __post_init__(self) -> None:
        if self.key_id != _key_id(self.public):
            raise ValueError(f"key {self.key_id} does not have the id of its own bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A private key. Never printed."""

    key_id: str
    _private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key from the system's randomness."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def _of(cls, private: Ed25519PrivateKey) -> SigningKey:
        return cls(key_id=_key_id(private.public_key().public_bytes_raw()), _private=private)

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"

    def sign(self, kind: str, message: bytes) -> bytes:
        """Signature (64 bytes) over `message` as a record of this kind."""
        return self._private.sign(_bound(kind, message))

    def verify_key(self, not_after_ms: int = 0) -> VerifyKey:
        """The public half."""
        public = self._private.public_key().public_bytes_raw()
        return VerifyKey(key_id=self.key_id, public=public, not_after_ms=not_after_ms)

    def pem(self) -> bytes:
        """The private key as PKCS 8, not encrypted."""
        return self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


class Keyring:
    """The keys that a loader trusts."""

    def __init__(self, keys: Iterable[VerifyKey]) -> None:
        self._keys = {key.key_id: key for key in keys}

    @classmethod
    def load(cls, folder: Path) -> Keyring:
        """Every `.pub` file of a folder; an empty or missing folder trusts nobody."""
        return cls(_read_public(path) for path in sorted(folder.glob("*.pub")))

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._keys

    def verify(  # one argument for each part of what is checked
        self, kind: str, message: bytes, *, key_id: str, signature: bytes, now_ms: int
    ) -> None:
        """
        Return if a trusted, unexpired key signed exactly this.

        Raises:
            Refused: the message says which: unsigned, unknown key, expired, or not its signature.
        """
        if not signature or not key_id:
            raise Refused(f"{kind} is unsigned")
        key = self._keys.get(key_id)
        if key is None:
            raise Refused(f"{kind} is signed by key {key_id}, which is not among the trusted keys")
        if key.not_after_ms and now_ms > key.not_after_ms:
            raise Refused(f"{kind} is signed by key {key_id}, which has expired")
        try:
            Ed25519PublicKey.from_public_bytes(key.public).verify(signature, _bound(kind, message))
        except InvalidSignature:
            raise Refused(f"{kind}: the signature of key {key_id} does not match") from None


def create_key(folder: Path, name: str = GATE, *, not_after_ms: int = 0) -> SigningKey:
    """
    A new key pair in `folder`; an existing one is never overwritten.

    Raises:
        Misconfigured: the private key file is there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = SigningKey.generate()
    path = folder / f"{name}.key"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Misconfigured(f"{path} exists; a key is never overwritten") from None
    with os.fdopen(handle, "wb") as file:
        file.write(key.pem())
    _write_public(folder / f"{name}.pub", key.verify_key(not_after_ms))
    return key


def load_key(folder: Path, name: str = GATE) -> SigningKey:
    """
    The private key `<name>.key` of a folder.

    Raises:
        Misconfigured: it is not there or is not an Ed25519 key.
    """
    path = folder / f"{name}.key"
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise Misconfigured(
            f"signing key {path} cannot be read: {error}; `millstream release create-key` makes one"
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise Misconfigured(f"signing key {path} is not an Ed25519 key")
    return SigningKey._of(private)


def ensure_key(folder: Path, name: str = GATE) -> SigningKey:
    """The key pair of that name, created when it is not there yet."""
    if not (folder / f"{name}.key").exists():
        return create_key(folder, name)
    return load_key(folder, name)


def _bound(kind: str, message: bytes) -> bytes:
    return b"millstream\0" + kind.encode() + b"\0" + message


def _key_id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]


def _write_public(path: Path, key: VerifyKey) -> None:
    described = {
        "key_id": key.key_id,
        "public": base64.b64encode(key.public).decode(),
        "not_after_ms": key.not_after_ms,
    }
    path.write_text(json.dumps(described, indent=1) + "\n")


def _read_public(path: Path) -> VerifyKey:
    try:
        described = json.loads(path.read_text())
        return VerifyKey(
            key_id=str(described["key_id"]),
            public=base64.b64decode(described["public"], validate=True),
            not_after_ms=int(described.get("not_after_ms", 0)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Misconfigured(f"public key {path} cannot be read: {error}") from error
