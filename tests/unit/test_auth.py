"""Tokens: which hold, and why the others do not."""

from __future__ import annotations

import base64
import json
import os

import jwt
import pytest

from inference.auth import Client, Scope, TokenRules, Tokens, hashed
from ingest.clock import ManualClock, SystemClock
from schemas.errors import Forbidden, Misconfigured, Unauthenticated
from tests.tokens import Issuer

NOW_S = SystemClock().now_ms() // 1000


@pytest.fixture(scope="module")
def issuer(tmp_path_factory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def tokens(issuer) -> Tokens:
    return Tokens(issuer.rules(), ManualClock())


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256", "EdDSA"])
def test_a_token_of_each_kind_names_its_client_and_scopes(tokens, issuer, algorithm):
    token = issuer.token(algorithm, scope="predict events")
    client = tokens.client(f"Bearer {token}")
    assert client == Client(client_id="shop", scopes=frozenset({"predict", "events"}))
    client.check(Scope.EVENTS)
    with pytest.raises(Forbidden, match="lacks the scope 'recommend'"):
        client.check(Scope.RECOMMEND)


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        ({"exp": NOW_S - 60}, "expired"),
        ({"exp": None}, 'missing the "exp" claim'),
        ({"nbf": NOW_S + 600}, "not yet valid"),
        ({"aud": "others"}, "Audience"),
        ({"aud": None}, 'missing the "aud" claim'),
        ({"sub": None}, 'missing the "sub" claim'),
        ({"sub": ""}, "0 characters"),
        ({"sub": "x" * 201}, "201 characters"),
        ({"key": b"another secret, just as long as the one"}, "Signature"),
    ],
)
def test_a_token_that_does_not_hold_is_refused_with_the_reason(tokens, issuer, claims, told):
    with pytest.raises(Unauthenticated, match=told):
        tokens.client(issuer.bearer(**claims))


def test_an_issuer_that_is_asked_for_must_be_there(issuer):
    tokens = Tokens(issuer.rules(issuer="us"), ManualClock())
    assert tokens.client(issuer.bearer(iss="us")).client_id == "shop"
    with pytest.raises(Unauthenticated, match="issuer"):
        tokens.client(issuer.bearer(iss="them"))


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "Bearer x.y.z"])
def test_a_header_without_a_token_is_refused(tokens, header):
    with pytest.raises(Unauthenticated):
        tokens.client(header)


@pytest.mark.parametrize(
    "head", [b"[" * 20_000, b"[]", b"null", b'{"alg": []}', b'{"alg": "HS256", "kid": {}}', b"\xff"]
)
def test_a_head_of_an_odd_shape_is_refused(tokens, head):
    piece = base64.urlsafe_b64encode(head).decode().rstrip("=")
    with pytest.raises(Unauthenticated):
        tokens.client(f"Bearer {piece}.e30.c2ln")


@pytest.mark.parametrize("claims", [{"exp": [1]}, {"exp": {}}, {"nbf": []}, {"aud": {"a": 1}}])
def test_claims_of_an_odd_shape_are_refused(tokens, issuer, claims):
    with pytest.raises(Unauthenticated):
        tokens.client(issuer.bearer(**claims))


def test_a_scope_that_is_no_text_allows_nothing(tokens, issuer):
    assert tokens.client(issuer.bearer(scope=["predict"])).scopes == frozenset()


def test_an_unsigned_token_is_refused(tokens, issuer):
    with pytest.raises(Unauthenticated, match="no key of ours"):
        tokens.client(f"Bearer {jwt.encode({'sub': 'x'}, None, algorithm='none')}")


def test_a_public_key_is_no_secret(tokens, issuer):
    """A token signed by HMAC with the published key is refused: keys go with their algorithm."""
    public = json.loads(issuer.jwks_file.read_text())["keys"][0]
    pieces = [{"alg": "HS256", "kid": public["kid"]}, {"sub": "x", "aud": "millstream"}]
    head, body = (base64.urlsafe_b64encode(json.dumps(p).encode()).decode() for p in pieces)
    signed = jwt.api_jws.PyJWS().encode(
        json.dumps(pieces[1]).encode(), public["n"].encode(), algorithm="HS256"
    )
    for token in (signed, f"{head.rstrip('=')}.{body.rstrip('=')}."):
        with pytest.raises(Unauthenticated):
            tokens.client(f"Bearer {token}")


def test_new_keys_are_used_without_a_restart(tmp_path):
    issuer, clock = Issuer(tmp_path), ManualClock()
    tokens = Tokens(issuer.rules(), clock)
    old = issuer.token("EdDSA")
    tokens.client(f"Bearer {old}")
    issuer.new_keys()
    os.utime(issuer.jwks_file, ns=(1, 1))  # whatever the clock of the disk says
    clock.advance(1)
    assert tokens.client(f"Bearer {issuer.token('EdDSA')}").client_id == "shop"
    with pytest.raises(Unauthenticated, match="Signature"):
        tokens.client(f"Bearer {old}")


def test_a_key_file_that_breaks_leaves_the_keys_as_they_were(tmp_path):
    issuer, clock = Issuer(tmp_path), ManualClock()
    tokens = Tokens(issuer.rules(), clock)
    issuer.jwks_file.write_text("{}")
    os.utime(issuer.jwks_file, ns=(1, 1))
    clock.advance(1)
    assert tokens.client(f"Bearer {issuer.token('RS256')}").client_id == "shop"
    issuer.jwks_file.unlink()
    clock.advance(1)
    assert tokens.client(f"Bearer {issuer.token('RS256')}").client_id == "shop"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("secret_file", b"short", "holds 5 bytes"),
        ("secret_file", None, "No such file"),
        ("jwks_file", b"not json", "no JWKS file"),
        ("jwks_file", b"{}", "no JWKS file"),
        ("jwks_file", b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "is HS256, not RS256"),
        ("jwks_file", None, "No such file"),
    ],
)
def test_unusable_keys_are_refused_at_start(tmp_path, name, content, told):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Misconfigured, match=told):
        Tokens(TokenRules(audience="us", **{name: file}), ManualClock())


def test_a_client_is_hashed_whatever_its_name_is():
    names = ["ann", "bob", "", "\ud800", "x" * 200]
    assert len({hashed(name) for name in names}) == len(names)


def test_rules_without_a_key_or_an_audience_are_refused(tmp_path):
    with pytest.raises(Misconfigured, match="secret file, a JWKS file"):
        TokenRules(audience="us")
    with pytest.raises(Misconfigured, match="audience"):
        TokenRules(audience="", secret_file=tmp_path)
