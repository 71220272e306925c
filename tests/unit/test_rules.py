"""Rules leave out and put in order; what they leave is what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalog import CATALOG
from features.items import ItemTable
from inference.rules import AtMost, Boost, Candidates, Diverse, Only, applied, read_rules
from schemas.errors import Misconfigured
from schemas.events import Item

GENRES = ("comedy", "crime", "war")


def table(*items: tuple[str, tuple[str, ...], str | None]) -> ItemTable:
    made = ItemTable(CATALOG.fingerprint)
    made.put_items(
        [Item(item_id=i, title=i, categories=genres, creator=who) for i, genres, who in items]
    )
    return made


FILMS = table(
    ("a", ("war",), "ann"),
    ("b", ("war", "crime"), "ann"),
    ("c", ("comedy",), "bob"),
    ("d", ("war",), "ann"),
    ("e", (), None),
    ("f", (), None),
)


def ranked(names: str, *others: str) -> Candidates:
    """One request for each word: its letters, best first, a score apart."""
    words = (names, *others)
    wide = max(map(len, words))
    at = np.full((len(words), wide), -1)
    scores = np.full((len(words), wide), -np.inf, np.float32)
    for row, word in enumerate(words):
        at[row, : len(word)] = [FILMS.by_id(name) for name in word]
        scores[row, : len(word)] = np.arange(len(word), 0, -1)
    return Candidates(at=at, scores=scores, items=FILMS)


def names(candidates: Candidates) -> list[str]:
    return ["".join(FILMS.ids[i] for i in row if i >= 0) for row in candidates.at.tolist()]


def test_blocked_values_are_left_out_and_the_rest_keeps_its_order() -> None:
    block = Only(attribute="category", values=("crime", "comedy"))
    assert names(block(ranked("dcba", "e"), 4)) == ["da", "e"]
    only = Only(attribute="creator", values=("ann",), keep=True)
    assert names(only(ranked("edcba"), 5)) == ["dba"]


def test_a_boost_changes_the_order_and_not_the_scores() -> None:
    boosted = Boost(attribute="category", values=("comedy",), by=2.5)(ranked("abdc"), 4)
    assert names(boosted) == ["acbd"]
    assert boosted.scores.tolist() == [[4, 1, 3, 2]]
    assert names(Boost(attribute="creator", values=("ann",), by=-10)(ranked("abce"), 4)) == ["ceab"]


def test_no_more_than_so_many_of_one_creator() -> None:
    assert names(AtMost(attribute="creator", count=1)(ranked("abcd", "dcef"), 4)) == ["ac", "dcef"]
    assert names(AtMost(attribute="creator", count=2)(ranked("abcd"), 4)) == ["abc"]
    # b is left out for its war, and so takes no place of crime's.
    assert names(AtMost(attribute="category", count=1)(ranked("abcd"), 4)) == ["ac"]


def test_items_without_the_attribute_are_not_alike() -> None:
    assert names(AtMost(attribute="creator", count=1)(ranked("ef"), 2)) == ["ef"]
    assert names(AtMost(attribute="category", count=1)(ranked("ef"), 2)) == ["ef"]


def test_diversity_puts_another_taste_before_more_of_the_same() -> None:
    assert names(Diverse(weight=0)(ranked("adcb"), 4)) == ["adcb"]
    assert names(Diverse(weight=0.7)(ranked("adbce"), 3))[0][:3] == "ace"
    assert names(Diverse(weight=1)(ranked("adc", "c"), 2)) == ["acd", "c"]


def test_rules_follow_each_other() -> None:
    rules = (
        Only(attribute="category", values=("crime",)),
        Diverse(weight=0.7),
        AtMost(attribute="creator", count=1),
    )
    assert names(applied(rules, ranked("bdace"), 3)) == ["dce"]
    assert names(applied((), ranked("bd"), 1)) == ["bd"]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.permutations("abcdef").map("".join), min_size=1, max_size=4),
    cut=st.integers(0, 6),
    weight=st.floats(0, 1),
    count=st.integers(1, 3),
    k=st.integers(1, 6),
)
def test_no_rule_invents_doubles_or_rescores_an_item(rows, cut, weight, count, k):
    candidates = ranked(*(row[:cut] for row in rows))
    for rule in (
        Diverse(weight=weight),
        AtMost(attribute="category", count=count),
        Boost(attribute="category", values=("war",), by=1.5),
        Only(attribute="creator", values=("ann",)),
    ):
        found = rule(candidates, k)
        for row, scores in zip(found.at.tolist(), found.scores.tolist(), strict=True):
            real = [at for at in row if at >= 0]
            assert len(set(real)) == len(real)
            assert row[len(real) :] == [-1] * (len(row) - len(real))
            assert all(np.isneginf(scores[len(real) :]))
        for row, (at, score) in enumerate(zip(found.at, found.scores, strict=True)):
            own = dict(zip(candidates.at[row].tolist(), candidates.scores[row], strict=True))
            assert all(own[a] == s for a, s in zip(at.tolist(), score, strict=True) if a >= 0)


def written(folder: Path, text: str) -> Path:
    path = folder / "rules.toml"
    path.write_text(text)
    return path


def test_rules_are_read_from_a_file(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        [[rule]]
        kind = "block"
        attribute = "category"
        values = ["adult"]

        [[rule]]
        kind = "only"
        attribute = "creator"
        values = ["ann", "bob"]

        [[rule]]
        kind = "boost"
        attribute = "creator"
        values = ["ann"]
        by = -0.5

        [[rule]]
        kind = "at-most"
        attribute = "creator"
        count = 2

        [[rule]]
        kind = "diverse"
        weight = 0.3
        """,
    )
    assert read_rules(path) == (
        Only(attribute="category", values=("adult",)),
        Only(attribute="creator", values=("ann", "bob"), keep=True),
        Boost(attribute="creator", values=("ann",), by=-0.5),
        AtMost(attribute="creator", count=2),
        Diverse(weight=0.3),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected [[rule]] tables"),
        ("rule = 3", "expected [[rule]] tables"),
        ("[[rules]]\nkind = 'diverse'", "expected [[rule]] tables"),
        ("[[rule]]\nkind = 'shuffle'", "rule 1: kind must be one of block, only, boost"),
        ("[[rule]]\nkind = 'diverse'", "diverse takes weight, got nothing"),
        ("[[rule]]\nkind = 'diverse'\nweight = 2", "weight must be between 0 and 1, got 2"),
        ("[[rule]]\nkind = 'diverse'\nweight = true", "weight must be between 0 and 1, got True"),
        (
            "[[rule]]\nkind = 'at-most'\nattribute = 'price'\ncount = 1",
            "attribute must be one of category, creator, got 'price'",
        ),
        (
            "[[rule]]\nkind = 'at-most'\nattribute = 'creator'\ncount = 0",
            "count must be a whole number of at least 1, got 0",
        ),
        (
            "[[rule]]\nkind = 'block'\nattribute = 'creator'\nvalues = 'ann'",
            "values must be a list of texts, got 'ann'",
        ),
        ("rule = [3]", "expected a table, got 3"),
        ("[[rule", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_rules_says_why(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(Misconfigured) as found:
        read_rules(written(tmp_path, text))
    assert told in str(found.value)


def test_all_problems_of_a_file_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, "[[rule]]\nkind = 'x'\n[[rule]]\nkind = 'diverse'\nweight = 'much'")
    with pytest.raises(Misconfigured, match=r"rule 1: .*; rule 2: weight"):
        read_rules(path)
    with pytest.raises(Misconfigured, match="cannot be read"):
        read_rules(tmp_path / "none.toml")
