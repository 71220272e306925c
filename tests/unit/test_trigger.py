"""The trigger: drift trains only with data, budget and a feed that can be trusted."""

import pytest

from retrain.trigger import Alarm, Hold, Seen, Train, TriggerPolicy, Wait, decide

POLICY = TriggerPolicy(
    cooldown_ms=1_000, budget=2, budget_window_ms=100_000, least_lists=10, least_positives=3
)
ALARM = Alarm(alert_ids=("a1",), changed_at_ms=50_000)


def seen(**changes: object) -> Seen:
    given: dict[str, object] = {
        "now_ms": 60_000,
        "alarm": ALARM,
        "lists_since_change": 10,
        "positives_since_change": 3,
    }
    return Seen(**(given | changes))  # type: ignore[arg-type]


def test_an_alarm_with_enough_data_trains_with_one_key_for_one_alarm() -> None:
    first, second = decide(seen(), POLICY), decide(seen(now_ms=61_000), POLICY)
    assert isinstance(first, Train)
    assert isinstance(second, Train)
    assert first.key == second.key == "drift:a1#0"
    assert first.from_ms < ALARM.changed_at_ms < first.until_ms


def test_an_incident_holds_even_an_operator() -> None:
    assert decide(seen(incident="labels untrusted", operator="ann"), POLICY) == Hold(
        "labels untrusted"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"alarm": None}, "no alarm"),
        ({"lists_since_change": 9}, "9 of 10 lists since the change"),
        ({"positives_since_change": 2}, "2 of 3 positives since the change"),
        ({"trained_at_ms": (59_500,)}, "cooling down for 0 s"),
        ({"trained_at_ms": (58_500,), "rejected_in_row": 2}, "cooling down for 2 s"),
        ({"trained_at_ms": (1_000, 2_000)}, "budget used: 2 of 2 trainings"),
    ],
)
def test_what_is_missing_is_said(change: dict[str, object], reason: str) -> None:
    assert decide(seen(**change), POLICY) == Wait(reason)


def test_an_operator_needs_no_alarm_and_no_budget() -> None:
    decision = decide(seen(alarm=None, operator="ann", trained_at_ms=(59_999,)), POLICY)
    assert isinstance(decision, Train)
    assert decision.reason == "OPERATOR"


def test_old_trainings_leave_the_budget() -> None:
    assert isinstance(decide(seen(trained_at_ms=(-50_000, -49_000)), POLICY), Train)
