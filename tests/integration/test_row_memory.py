"""What a user's row costs in a real store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.bench.row_memory import Crowd, measured

# The budget for a million users is 0.5 GiB. A 32nd of them fills the store's hash tables, which are
# powers of two, as well as a million does: what a user costs is the same.
BUDGET_BYTES = 2**29 / 1_000_000
USERS = 1_000_000 // 32
DATABASE = 7


@pytest.fixture
def empty_database(valkey: object) -> Iterator[str]:
    """A database of the shared store that nobody else uses."""
    url = valkey.url.rpartition("/")[0] + f"/{DATABASE}"  # type: ignore[attr-defined]
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


def test_a_million_users_of_20_interactions_fit_into_half_a_gibibyte(empty_database: str) -> None:
    found = measured(empty_database, Crowd(users=USERS))
    assert found.median_history == 20
    assert found.used_bytes <= BUDGET_BYTES
