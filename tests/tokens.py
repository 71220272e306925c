"""Keys and tokens of clients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from inference.auth import TokenRules
from ingest.clock import SystemClock

AUDIENCE = "millstream"
SECRET = b"0123456789abcdef0123456789abcdef"
ALL = "predict recommend events"


class Issuer:
    """Makes tokens with a secret and with three private keys, whose public halves are in a file."""

    def __init__(self, folder: Path) -> None:
        self.secret_file = folder / "secret"
        self.secret_file.write_bytes(SECRET + b"\n")
        self.jwks_file = folder / "jwks.json"
        self.new_keys()

    def new_keys(self) -> None:
        """Other keys under the same names."""
        self.keys: dict[str, Any] = {
            "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        }
        writers = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
        public = [
            {**json.loads(writers[a].to_jwk(key.public_key())), "kid": f"key-{a}", "alg": a}
            for a, key in self.keys.items()
        ]
        self.jwks_file.write_text(json.dumps({"keys": public}))

    def rules(self, **given: Any) -> TokenRules:
        """Both kinds of keys."""
        files = {"secret_file": self.secret_file, "jwks_file": self.jwks_file}
        return TokenRules(audience=AUDIENCE, **{**files, **given})

    def token(self, algorithm: str = "HS256", key: Any = None, **claims: Any) -> str:
        """A token that holds; a claim that is None is left out."""
        now_s = SystemClock().now_ms() // 1000
        given = {"sub": "shop", "aud": AUDIENCE, "exp": now_s + 600, "scope": ALL, **claims}
        return jwt.encode(
            {name: value for name, value in given.items() if value is not None},
            key or self.keys.get(algorithm, SECRET),
            algorithm=algorithm,
            headers={"kid": f"key-{algorithm}"} if algorithm in self.keys else {},
        )

    def bearer(self, **claims: Any) -> str:
        """The header's value."""
        return f"Bearer {self.token(**claims)}"
