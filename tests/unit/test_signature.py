"""Keys and signatures."""

from __future__ import annotations

import stat

import pytest

from inference.signature import (
    Keyring,
    SigningKey,
    VerifyKey,
    canonical,
    create_key,
    ensure_key,
    load_key,
)
from schemas.errors import Misconfigured, Refused

NOW = 1_000


def check(keys: Keyring, key: SigningKey, signature: bytes, *, kind: str = "note") -> None:
    keys.verify(kind, b"text", key_id=key.key_id, signature=signature, now_ms=NOW)


def test_a_trusted_signature_passes():
    key = SigningKey.generate()
    check(Keyring([key.verify_key()]), key, key.sign("note", b"text"))


def test_each_refusal_says_which():
    key, other = SigningKey.generate(), SigningKey.generate()
    keys = Keyring([key.verify_key()])
    with pytest.raises(Refused, match="note is unsigned"):
        check(keys, key, b"")
    with pytest.raises(Refused, match=f"{other.key_id}, which is not among the trusted keys"):
        check(keys, other, other.sign("note", b"text"))
    with pytest.raises(Refused, match=f"signature of key {key.key_id} does not match"):
        check(keys, key, key.sign("note", b"other text"))
    expired = Keyring([key.verify_key(not_after_ms=NOW - 1)])
    with pytest.raises(Refused, match=f"{key.key_id}, which has expired"):
        check(expired, key, key.sign("note", b"text"))


def test_a_signature_is_worth_nothing_on_another_kind():
    key = SigningKey.generate()
    with pytest.raises(Refused, match="does not match"):
        check(Keyring([key.verify_key()]), key, key.sign("note", b"text"), kind="order")


def test_a_key_pair_survives_its_files(tmp_path):
    key = create_key(tmp_path, not_after_ms=NOW + 1)
    again = load_key(tmp_path)
    assert again.key_id == key.key_id
    check(Keyring.load(tmp_path), again, again.sign("note", b"text"))
    assert stat.S_IMODE((tmp_path / "gate.key").stat().st_mode) == 0o600


def test_a_key_is_never_overwritten(tmp_path):
    first = ensure_key(tmp_path)
    assert ensure_key(tmp_path).key_id == first.key_id
    with pytest.raises(Misconfigured, match="never overwritten"):
        create_key(tmp_path)


def test_a_private_key_is_not_printed():
    key = SigningKey.generate()
    assert repr(key) == f"SigningKey({key.key_id})"


def test_an_id_that_is_not_of_its_key_is_refused():
    with pytest.raises(ValueError, match="own bytes"):
        VerifyKey(key_id="0" * 16, public=SigningKey.generate().verify_key().public)


@pytest.mark.parametrize("text", ["", "{}", '{"key_id": "x", "public": "?"}'])
def test_a_broken_public_key_file_is_named(tmp_path, text):
    (tmp_path / "gate.pub").write_text(text)
    with pytest.raises(Misconfigured, match=r"gate\.pub"):
        Keyring.load(tmp_path)


def test_a_missing_private_key_is_named(tmp_path):
    with pytest.raises(Misconfigured, match=r"gate\.key"):
        load_key(tmp_path)


def test_an_empty_folder_trusts_nobody(tmp_path):
    key = SigningKey.generate()
    with pytest.raises(Refused, match="not among the trusted"):
        check(Keyring.load(tmp_path / "missing"), key, key.sign("note", b"text"))


def test_canonical_bytes_do_not_depend_on_order():
    assert canonical({"a": 1, "b": [1.5]}) == canonical({"b": [1.5], "a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        canonical({"a": float("nan")})
