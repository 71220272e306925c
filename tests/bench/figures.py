"""What a benchmark says: one figure beside its aim, its peer and its limit, all of one run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FIELDS = (
    *("name", "value", "unit", "aim", "ok", "peer", "peer_value", "ratio", "limit", "detail"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """
    One measured number.

    aim:    the figure to reach; None: none was set.
    ok:     whether the aim is met; None without an aim.
    peer:   who else does the same, measured in the same run; `ratio` is value / peer_value.
    limit:  the nearest bound in the same unit, measured in the same run; all of them are in
            `detail["limits"]`.
    """

    name: str
    value: float | None  # None: it could not be measured; `detail["error"]` says why
    unit: str
    aim: float | None = None
    ok: bool | None = None
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    limit: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


def figure(
    name: str,
    value: float,
    unit: str,
    *,
    aim: float | None = None,
    smaller_is_better: bool = False,
    peer: tuple[str, float] | None = None,
    limits: Mapping[str, float] | None = None,
    **detail: Any,
) -> Figure:
    """
    A figure with what follows from it.

    >>> made = figure("decode", 300.0, "events/s", aim=200, peer=("p", 100.0), limits={"l": 400.0})
    >>> made.ok, made.ratio, made.limit
    (True, 3.0, 400.0)
    >>> figure("wait", 60.0, "ms", aim=50, smaller_is_better=True).ok
    False
    """
    limits = limits or {}
    nearest = max if smaller_is_better else min
    return Figure(
        name=name,
        value=value,
        unit=unit,
        aim=aim,
        ok=None if aim is None else value <= aim if smaller_is_better else value >= aim,
        peer=peer[0] if peer else None,
        peer_value=peer[1] if peer else None,
        ratio=value / peer[1] if peer and peer[1] else None,
        limit=nearest(limits.values()) if limits else None,
        detail={**({"limits": dict(limits)} if limits else {}), **detail},
    )


def failed(name: str, error: BaseException) -> Figure:
    """What stands for a part that broke."""
    said = f"{type(error).__name__}: {error!s:.500}"
    return Figure(name=name, value=None, unit="", ok=False, detail={"error": said})


def problems(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why a list of figures is not what readers of `out/bench/*.json` expect; empty: it is."""
    said = []
    for at, one in enumerate(found):
        if tuple(one) != FIELDS:
            said.append(f"figure {at} has fields {list(one)}")
        elif (one["aim"] is None) != (one["ok"] is None) and one["value"] is not None:
            said.append(f"{one['name']}: aim {one['aim']} but ok {one['ok']}")
        elif not isinstance(one["detail"], Mapping):
            said.append(f"{one['name']}: detail is no object")
    names = [one.get("name") for one in found]
    said += [f"{name} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    return said


def to_json(figures: Iterable[Figure]) -> str:
    """
    The list as it is written.

    Raises:
        ValueError: it would not be what readers expect.
    """
    plain = [{name: asdict(one)[name] for name in FIELDS} for one in figures]
    if said := problems(plain):
        raise ValueError("; ".join(said))
    return json.dumps(plain, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, figures: Iterable[Figure]) -> None:
    """Write the list whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(to_json(figures))
    new.replace(path)


def number(value: float | None) -> str:
    """
    Three digits that say something.

    >>> number(1_843_212.0), number(3.14159), number(421.6), number(None)
    ('1,840,000', '3.14', '422', '')
    """
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{round(value, 2 - len(str(int(abs(value)))) + 1):,.0f}"
    return f"{value:.3g}"


COLUMNS = ("figure", "value", "unit", "aim", "met", "limit", "of limit", "peer")


def rows(figures: Iterable[Figure]) -> list[tuple[str, ...]]:
    """The lines of a table under COLUMNS."""
    return [
        (
            one.name,
            number(one.value) or "failed",
            one.unit,
            number(one.aim),
            {True: "yes", False: "NO", None: ""}[one.ok],
            number(one.limit),
            f"{one.value / one.limit:.0%}" if one.value is not None and one.limit else "",
            f"{one.peer}: {number(one.peer_value)} (x {number(one.ratio)})" if one.peer else "",
        )
        for one in figures
    ]


def markdown(figures: Iterable[Figure]) -> str:
    """The table in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows(figures)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
