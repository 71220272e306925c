"""
Who calls: JSON Web Tokens (RFC 7519) as bearers, checked by PyJWT. The one importer of `jwt`.

A key belongs to one algorithm, so a token cannot choose how it is checked: HS256 goes with the
secret of a file, RS256, ES256 and EdDSA with the public keys of a JWKS file (RFC 7517). Both files
are read again when they change. Scopes are the words of the claim `scope` (RFC 9068).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import jwt
import structlog

from ingest.clock import Clock
from schemas.errors import Forbidden, Misconfigured, Unauthenticated

log = structlog.get_logger(__name__)

SHARED_ALGORITHM: Final = "HS256"
PUBLIC_ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
MIN_SECRET_BYTES = 32  # RFC 7518, 3.2: at least as long as the hash
LEEWAY_S = 5.0  # clocks of issuers and ours differ
LOOK_S = 1.0  # how often the files are looked at
MAX_CLIENT_ID = 200


class Scope(StrEnum):
    """What a token may allow."""

    PREDICT = "predict"
    RECOMMEND = "recommend"
    EVENTS = "events"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who calls, and what it may do."""

    client_id: str
    scopes: frozenset[str]

    def check(self, scope: Scope) -> None:
        """
        Raises:
            Forbidden: the client's token does not have this scope.
        """
        if scope not in self.scopes:
            raise Forbidden(f"the token lacks the scope {scope.value!r}")


def hashed(client_id: str) -> str:
    """
    A client's name in logs and stores: the same for the same client, and not to be read off.

    >>> hashed("ann") == hashed("ann"), "ann" in hashed("ann")
    (True, False)
    """
    name = client_id.encode(errors="surrogatepass")  # JSON can hold what UTF-8 cannot
    return hashlib.blake2b(name, digest_size=8, person=b"millstream.audit").hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """Where keys are, and for whom tokens must be."""

    audience: str
    issuer: str | None = None  # None: any
    secret_file: Path | None = None
    jwks_file: Path | None = None

    def __post_init__(self) -> None:
        if self.secret_file is None and self.jwks_file is None:
            raise Misconfigured("tokens need a secret file, a JWKS file, or both to be checked by")
        if not self.audience:
            raise Misconfigured("tokens need an audience to be checked against")


@dataclass(frozen=True, slots=True)
class _Keys:
    """Keys as read from the files, and when these had changed."""

    secret: bytes | None
    public: Mapping[str | None, jwt.PyJWK]  # by key id
    changed: tuple[int, ...]


class Tokens:
    """Checks tokens. Token times are compared with the machine's clock, which PyJWT reads."""

    def __init__(self, rules: TokenRules, clock: Clock) -> None:
        """
        Raises:
            Misconfigured: a file is missing, or holds no usable key.
        """
        self._rules = rules
        self._clock = clock
        self._keys = self._read()
        self._looked_s = clock.monotonic_s()

    def client(self, authorization: str | None) -> Client:
        """
        Who the header `Authorization` names.

        Raises:
            Unauthenticated: there is no token, or it does not hold; the message says why.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("a bearer token is needed: Authorization: Bearer <token>")
        self._look()
        try:
            claims = self._claims(token.strip())
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            # The last three: JSON of an odd shape, of which PyJWT does not think.
            raise Unauthenticated(f"the token does not hold: {error!s:.200}") from error
        subject = claims["sub"]
        if not subject or len(subject) > MAX_CLIENT_ID:
            raise Unauthenticated(f"the token's subject has {len(subject)} characters")
        scopes = claims.get("scope", "")
        return Client(
            client_id=subject,
            scopes=frozenset(scopes.split() if isinstance(scopes, str) else ()),
        )

    def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        algorithm = header.get("alg")
        key: bytes | jwt.PyJWK | None
        if algorithm == SHARED_ALGORITHM:
            key = self._keys.secret
        else:
            key = self._keys.public.get(header.get("kid"))
            if key is not None and key.algorithm_name != algorithm:
                key = None
        if key is None:
            raise jwt.InvalidTokenError("no key of ours has its algorithm and key id")
        found: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[str(algorithm)],
            audience=self._rules.audience,
            issuer=self._rules.issuer,
            leeway=LEEWAY_S,
            options={"require": ["exp", "sub", "aud"]},
        )
        return found

    def _look(self) -> None:
        """Read the files again if they changed; what cannot be read leaves the keys as they are."""
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        try:
            if self._changed() != self._keys.changed:
                self._keys = self._read()
                log.info("auth.keys_read", public=len(self._keys.public))
        except Misconfigured as error:
            log.error("auth.keys_kept", error=str(error))  # noqa: TRY400 - the message is the point

    def _read(self) -> _Keys:
        changed = self._changed()
        secret, public = self._rules.secret_file, self._rules.jwks_file
        return _Keys(
            _secret(secret) if secret else None, _public_keys(public) if public else {}, changed
        )

    def _changed(self) -> tuple[int, ...]:
        try:
            return tuple(
                path.stat().st_mtime_ns
                for path in (self._rules.secret_file, self._rules.jwks_file)
                if path is not None
            )
        except OSError as error:
            raise Misconfigured(f"key file: {error}") from error


def _secret(path: Path) -> bytes:
    secret = _bytes(path).strip()
    if len(secret) < MIN_SECRET_BYTES:
        raise Misconfigured(
            f"{path} holds {len(secret)} bytes: a secret for HS256 has at least {MIN_SECRET_BYTES}"
        )
    return secret


def _public_keys(path: Path) -> dict[str | None, jwt.PyJWK]:
    try:
        keys = jwt.PyJWKSet.from_json(_bytes(path).decode()).keys
    except (jwt.PyJWTError, ValueError, AttributeError, TypeError) as error:
        raise Misconfigured(f"{path} is no JWKS file with usable keys: {error}") from error
    for key in keys:
        if key.algorithm_name not in PUBLIC_ALGORITHMS:
            known = ", ".join(PUBLIC_ALGORITHMS)
            raise Misconfigured(f"{path}: key {key.key_id!r} is {key.algorithm_name}, not {known}")
    return {key.key_id: key for key in keys}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Misconfigured(f"key file: {error}") from error
