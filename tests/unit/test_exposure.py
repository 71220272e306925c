"""What may be exposed: checked as a whole, before anything is opened."""

from __future__ import annotations

import socket

import pytest

from inference.exposure import Exposure
from inference.http import HttpServer
from inference.listen import HttpOptions
from ingest.clock import ManualClock
from schemas.errors import Misconfigured
from tests.tls_proxy import Authority
from tests.tokens import Issuer


def test_nothing_is_exposed_unless_a_port_is_given():
    assert not Exposure().wanted
    assert Exposure(http_port=0).wanted
    assert Exposure(grpc_port=0).network().http is None


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "shop.example"])
def test_what_others_can_reach_needs_tokens_or_a_plain_word(host, tmp_path):
    with pytest.raises(Misconfigured, match="can be reached from elsewhere"):
        Exposure(http_port=0, host=host)
    Exposure(http_port=0, host=host, anonymous=True)
    Exposure(http_port=0, host=host, secret_file=tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_alone_needs_none(host):
    assert Exposure(http_port=0, host=host).tokens(ManualClock()) is None


def test_all_problems_are_told_together(tmp_path):
    with pytest.raises(Misconfigured) as told:
        Exposure(tls_cert=tmp_path, anonymous=True, jwks_file=tmp_path)
    assert "--tls-cert and --tls-key go together" in str(told.value)
    assert "--anonymous" in str(told.value)


def test_keys_become_what_checks_tokens(tmp_path):
    issuer = Issuer(tmp_path)
    exposure = Exposure(http_port=0, secret_file=issuer.secret_file, issuer="us")
    tokens = exposure.tokens(ManualClock())
    assert tokens is not None
    assert tokens.client(issuer.bearer(iss="us")).client_id == "shop"


def test_certificates_and_bounds_reach_both_protocols(tmp_path):
    identity = Authority(tmp_path, "authority").issue("serve")
    exposure = Exposure(
        http_port=0,
        grpc_port=0,
        tls_cert=identity.certificate,
        tls_key=identity.key,
        max_body_bytes=1000,
    )
    options = exposure.network()
    assert options.http is not None
    assert options.grpc is not None
    assert options.http.tls is not None
    assert options.http.tls == options.grpc.tls
    assert (options.rest.max_body_bytes, options.grpc.max_message_bytes) == (1000, 1000)


def test_a_socket_names_its_protocol_so_that_answers_are_not_held_back():
    """asyncio turns Nagle's algorithm off only on those that do."""
    server = HttpServer(lambda: None, HttpOptions(), lambda *_: None)
    assert server._socket.proto == socket.IPPROTO_TCP
    server._socket.close()


@pytest.mark.parametrize("given", [{}, {"http_port": 0}, {"http_port": 8501, "grpc_port": 0}])
def test_ports_to_be_shared_must_be_known(given):
    with pytest.raises(Misconfigured, match="--share-ports needs to know them"):
        Exposure(share_ports=True, **given)
    network = Exposure(share_ports=True, http_port=8501, grpc_port=8500).network()
    assert network.http.shared
    assert network.grpc.shared
    assert not Exposure(http_port=8501).network().http.shared
