"""The store behind TLS, client certificates, and a user that may do what we do and no more."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
import structlog

from features.declare import declared
from features.feature_sets import FeatureSets
from features.redis_store import RedisStore
from inference.quota import Quotas, parsed
from ingest.clock import SystemClock
from schemas.errors import Misconfigured, QuotaExceeded
from tests.contracts.store import START, update
from tests.feature_sets import OLD
from tests.tls_proxy import Authority, TlsFront

pytestmark = pytest.mark.valkey

PASSWORD = "p@ss/w:rd?"
# All that the store needs (README repeats it): the keys of partitions and of the feature sets, and
# these commands.
NEEDED = (
    "~*:{p*",
    "~feature-sets",
    "-@all",
    *("+watch", "+unwatch", "+multi", "+exec"),
    *("+get", "+set", "+mget", "+mset", "+msetex", "+unlink", "+exists", "+scan"),
    *("+zadd", "+zrange", "+zscore", "+zrem", "+eval"),
    *("+hset", "+hgetall", "+hdel"),
    *("+info", "+command|info", "+cluster|slots", "+asking"),
)


class Front:
    """Where TLS ends, and who may come."""

    def __init__(self, directory: Path, valkey_port: int) -> None:
        self.authority = Authority(directory, "authority")
        self.other = Authority(directory, "another-authority")
        self.ours = self.authority.issue("millstream")
        self.valkey_port = valkey_port
        self.tls = TlsFront(valkey_port, self.authority.issue("store"), self.authority)
        self.port = self.tls.port
        self.user = f"user-{uuid.uuid4().hex[:8]}"

    def url(self, *, trust: Authority | None = None, certified: bool = True, **changed) -> str:
        password = changed.get("password", PASSWORD)
        who = f"{self.user}:{quote(password, safe='')}"
        known = f"ssl_ca_certs={(trust or self.authority).file}"
        ours = f"&ssl_certfile={self.ours.certificate}&ssl_keyfile={self.ours.key}"
        return f"rediss://{who}@127.0.0.1:{self.port}/0?{known}{ours if certified else ''}"

    def grant(self, *rules: str) -> None:
        with redis.Redis(port=self.valkey_port) as client:
            client.execute_command(
                "ACL", "SETUSER", self.user, "reset", "on", f">{PASSWORD}", *rules
            )

    def revoke(self) -> None:
        with redis.Redis(port=self.valkey_port) as client:
            client.execute_command("ACL", "DELUSER", self.user)


@pytest.fixture
def front(valkey, tmp_path: Path) -> Iterator[Front]:
    made = Front(tmp_path, int(valkey.url.rpartition(":")[2].partition("/")[0]))
    made.grant(*NEEDED)
    yield made
    made.revoke()
    made.tls.close()


def everything(store: RedisStore) -> None:
    """Each thing that a store is asked for."""
    lease = store.write(store.claim(0, START), update(1, {"ann": b"A" * 100_000}, {"film": b"F"}))
    assert list(store.read(lease, ["ann"], ["film"]).partials) == [b"F"]
    assert list(store.snapshots({0: ["ann"], 1: ["bob"]})[0].rows) == [b"A" * 100_000]
    assert store.positions([0]) == {0: lease.position}
    waiting = store.unpublished(0, 10)
    store.settle(0, waiting.mark, list(waiting.partials))
    assert store.unpublished(0, 10).partials == {}
    assert store.keys(0).users == {"ann"}
    assert store.clear(lease, position=True) == 2


def test_all_of_it_works_over_tls_with_a_certificate_and_the_least_rights(front: Front) -> None:
    store = RedisStore(front.url(), uuid.uuid4().hex)
    everything(store)
    store.close()


def test_feature_sets_are_declared_with_the_same_rights(front: Front) -> None:
    sets = FeatureSets(front.url())
    sets.declare(OLD)
    assert sets.declarations()[OLD.fingerprint] == declared(OLD)
    sets.forget(OLD.fingerprint)
    assert OLD.fingerprint not in sets.declarations()
    sets.close()


def test_the_readme_names_these_rights() -> None:
    said = " ".join((Path(__file__).parents[2] / "README.md").read_text().split())
    assert f"An ACL user needs `{' '.join(NEEDED)}`" in said


@pytest.mark.parametrize(
    "command", ["watch", "exec", "mget", "msetex", "scan", "eval", "info", "command|info"]
)
def test_a_missing_right_is_named(front: Front, command: str) -> None:
    front.grant(*NEEDED, f"-{command}")
    store = RedisStore(front.url(), uuid.uuid4().hex)
    with pytest.raises(
        Misconfigured, match=rf"'{command.replace('|', '.')}'.*MILLSTREAM_REDIS_URL"
    ):
        everything(store)
    store.close()


# What quotas need beside it.
QUOTAS = ("~*quota:*", "+evalsha", "+script|load", "+pttl", "+incrby", "+rename")


def test_quotas_work_over_tls_with_few_rights_more(front: Front) -> None:
    front.grant(*NEEDED, *QUOTAS)

    async def run() -> list[int]:
        made = [quotas(front.url(), front.user) for _ in range(2)]
        counts = [await let_in(one) for one in made]
        for one in made:
            await one.close()
        return counts

    with structlog.testing.capture_logs() as logs:
        assert asyncio.run(run()) == [3, 0]  # the store counted, not each process
    assert logs == []


def quotas(url: str, prefix: str) -> Quotas:
    return Quotas(parsed("3/hour"), url, SystemClock(), prefix=f"{prefix}-")


async def let_in(of: Quotas) -> int:
    """How many of five calls get in."""
    count = 0
    for _ in range(5):
        with suppress(QuotaExceeded):
            await of.take("a-client")
            count += 1
    return count


def test_without_these_rights_each_process_counts_and_says_so(front: Front) -> None:
    async def run() -> int:
        made = quotas(front.url(), front.user)
        count = await let_in(made)
        await made.close()
        return count

    with structlog.testing.capture_logs() as logs:
        assert asyncio.run(run()) == 3
    assert [one["event"] for one in logs] == ["quota.no_store"]


def test_keys_of_others_are_out_of_reach(front: Front) -> None:
    with (
        redis.Redis.from_url(front.url()) as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.get("somebody-elses")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"trust": "other"}, "certificate is not trusted"),
        ({"certified": False}, "does not take our certificate"),
        ({"password": "wrong"}, "refuses us"),
    ],
    ids=["unknown authority", "no certificate of ours", "wrong password"],
)
def test_what_a_person_must_put_right_is_said(front: Front, changed: dict, said: str) -> None:
    # In TLS 1.3 a client is refused after it has written, and may not even learn why.
    front.tls.context.maximum_version = ssl.TLSVersion.TLSv1_2
    if "trust" in changed:
        changed = {"trust": front.other}
    store = RedisStore(front.url(**changed), uuid.uuid4().hex, timeout_s=2)
    with pytest.raises(Misconfigured, match=said) as caught:
        store.positions([0])
    assert "MILLSTREAM_REDIS_URL" in str(caught.value)
    assert PASSWORD not in str(caught.value)
    store.close()


def test_a_missing_file_is_said_before_anything_connects(front: Front, tmp_path: Path) -> None:
    url = front.url().replace(str(front.ours.key), str(tmp_path / "nowhere.key"))
    with pytest.raises(Misconfigured, match="ssl_keyfile: there is no file") as caught:
        RedisStore(url, "f" * 16)
    assert quote(PASSWORD, safe="") not in str(caught.value)
