"""Quotas in a real store, shared by instances; and without it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from deploy.ports import reserve
from inference.quota import Quotas, parsed
from ingest.clock import SystemClock
from schemas.errors import Misconfigured, QuotaExceeded

pytestmark = pytest.mark.valkey


def quotas(url: str, prefix: str, text: str = "3/hour") -> Quotas:
    return Quotas(parsed(text), url, SystemClock(), prefix=prefix)


async def taken(of: Quotas, client: str, times: int = 10) -> int:
    """How many calls of so many get in."""
    count = 0
    for _ in range(times):
        with suppress(QuotaExceeded):
            await of.take(client)
            count += 1
    return count


def test_instances_share_a_client_s_quota_and_clients_do_not(valkey, unique_name):
    async def run() -> tuple[int, int, int]:
        prefix = unique_name("quota")
        one, other = quotas(valkey.url, prefix), quotas(valkey.url, prefix)
        found = (await taken(one, "a", 2), await taken(other, "a"), await taken(other, "b"))
        await one.close()
        await other.close()
        return found

    assert asyncio.run(run()) == (2, 1, 3)


def test_a_cluster_counts_as_well(valkey_cluster, unique_name):
    async def run() -> int:
        made = quotas(valkey_cluster.url, unique_name("quota"))
        found = await taken(made, "a")
        await made.close()
        return found

    assert asyncio.run(run()) == 3


def test_without_the_store_the_process_counts_by_itself(unique_name):
    async def run() -> int:
        with reserve(1) as reserved:
            made = quotas(f"redis://127.0.0.1:{reserved.numbers[0]}/0", unique_name("quota"))
            found = await taken(made, "a")
            await made.close()
        return found

    assert asyncio.run(run()) == 3


def test_every_quota_counts(valkey, unique_name):
    async def run() -> int:
        made = quotas(valkey.url, unique_name("quota"), "100/hour; 3/hour")
        found = await taken(made, "a")
        await made.close()
        return found

    assert asyncio.run(run()) == 3


def test_a_client_over_its_quota_hears_which_and_when_to_come_back(valkey, unique_name):
    async def run() -> None:
        made = quotas(valkey.url, unique_name("quota"))
        await taken(made, "a")
        try:
            await made.take("a")
        finally:
            await made.close()

    with pytest.raises(QuotaExceeded, match="3 per 1 hour") as told:
        asyncio.run(run())
    assert 0 < told.value.retry_after_s <= 7200


@pytest.mark.parametrize("text", ["", "fast", "3", "3/fortnight"])
def test_what_is_no_quota_is_refused(text):
    with pytest.raises(Misconfigured, match="is no quota such as"):
        parsed(text)


@pytest.mark.parametrize("url", ["http://x", "redis+cluster://host"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(Misconfigured, match="no store for quotas"):
        quotas(url, "p")
