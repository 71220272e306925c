"""Other feature sets than the catalog's, of entries that the catalog knows."""

from __future__ import annotations

from dataclasses import replace

from features.catalog import CATALOG
from features.declare import FeatureSet, RowPolicy


def without(*names: str, row: RowPolicy = CATALOG.row) -> FeatureSet:
    """The catalog's set before these features were added."""
    return FeatureSet(tuple(f for f in CATALOG.features if f.name not in names), row=row)


# What was folded before: some features fewer, and a shorter history.
OLD = without(
    *("user_tenure", "item_price"),
    *(f.name for f in CATALOG.features if f.name.startswith("history_")),
    row=replace(CATALOG.row, history_length=20),
)
