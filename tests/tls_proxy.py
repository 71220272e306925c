"""Certificates of a small authority, and a TLS front before a server that speaks none."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import select
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates for 127.0.0.1; `file` is what a client must trust."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._own = self._built(name, self._key.public_key(), authority=True)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(self._own.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> Identity:
        """A certificate for a server on loopback, or for a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        files = Identity(
            certificate=self._directory / f"{name}.crt", key=self._directory / f"{name}.key"
        )
        made = self._built(name, key.public_key(), authority=False)
        files.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files

    def _built(
        self, name: str, key: ec.EllipticCurvePublicKey, *, authority: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)  # noqa: TID251 - certificates have real dates
        issuer = self._key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )


class TlsFront:
    """A loopback port that speaks TLS, wants a certificate of its clients, and passes all on."""

    def __init__(self, target_port: int, identity: Identity, clients: Authority) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(identity.certificate, identity.key)
        self.context.load_verify_locations(clients.file)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self._target_port = target_port
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """End all connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (self._listener, *self._open):
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the end
            while True:
                raw, _ = self._listener.accept()
                thread = threading.Thread(target=self._carry, args=(raw,))
                self._open.append(raw)
                self._threads.append(thread)
                thread.start()

    def _carry(self, raw: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),  # either side may go at any time: then the other goes too
            self.context.wrap_socket(raw, server_side=True) as near,
            socket.create_connection((LOOPBACK, self._target_port)) as far,
        ):
            self._open.append(near)
            while True:
                ready = [near] if near.pending() else select.select([near, far], [], [])[0]
                for one, other in ((near, far), (far, near)):
                    data = one.recv(65_536) if one in ready else None
                    if data == b"":
                        return
                    other.sendall(data or b"")
