from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from ingest.simulator import Faults, Script, Simulator, SimulatorPolicy
from ingest.tastes import World, WorldPolicy
from schemas.events import (
    EventType,
    Item,
    Recommendation,
    RecommendationRequest,
    ScoredItem,
    Status,
    UserEvent,
)

START_MS = 1_700_000_000_000
CALM = Faults(duplicate=0, late=0, malformed=0)
BUSY = SimulatorPolicy(
    world=WorldPolicy(shoppers=60), sessions_per_hour=120, dwell_s=2, day_s=240, faults=CALM
)
Rank = Callable[[Simulator, RecommendationRequest], list[str]]


def policy(**changes: object) -> SimulatorPolicy:
    values = {name: getattr(BUSY, name) for name in BUSY.__dataclass_fields__}
    return SimulatorPolicy(**{**values, **changes})  # type: ignore[arg-type]


def answer(request: RecommendationRequest, items: list[str]) -> Recommendation:
    return Recommendation(
        request_id=request.request_id,
        user_id=request.user_id,
        event_time=request.event_time or 0,
        status=Status.OK,
        items=tuple(ScoredItem(item_id=item, score=0.0) for item in items),
    )


def best(simulator: Simulator, request: RecommendationRequest) -> list[str]:
    return simulator.world.best_items(request.user_id, request.k)


def first(simulator: Simulator, request: RecommendationRequest) -> list[str]:
    return [item.item_id for item in simulator.world.items[: request.k]]


def run(
    simulator: Simulator,
    seconds: int,
    rank: Rank = best,
    *,
    backwards: bool = False,
    step_s: int = 1,
) -> list[UserEvent]:
    events: list[UserEvent] = []
    for now_ms in range(START_MS, START_MS + seconds * 1000, step_s * 1000):
        actions = simulator.step(now_ms)
        events += actions.events
        requests = actions.requests[::-1] if backwards else actions.requests
        for request in requests:
            events += simulator.shown(answer(request, rank(simulator, request)), now_ms)
    return events


def click_rate(events: list[UserEvent]) -> float:
    kinds = Counter(e.event_type for e in events if e.request_id is not None)
    return kinds[EventType.CLICK] / kinds[EventType.IMPRESSION]


def test_the_same_seed_gives_the_same_events() -> None:
    one, two = (run(Simulator(BUSY, START_MS), 60) for _ in range(2))
    assert one == two
    assert one != run(Simulator(policy(world=WorldPolicy(shoppers=60, seed=2)), START_MS), 60)


def test_the_order_of_answers_changes_no_event() -> None:
    one = run(Simulator(BUSY, START_MS), 60)
    two = run(Simulator(BUSY, START_MS), 60, backwards=True)
    assert {e.event_id: e for e in one} == {e.event_id: e for e in two}


def test_everything_is_on_its_surface_and_no_id_comes_twice() -> None:
    events = run(Simulator(BUSY, START_MS), 120)
    assert {e.surface for e in events} == {"shop-sim"}
    assert len({e.event_id for e in events}) == len(events)
    assert {e.event_type.name for e in events} == {
        "PROFILE", "IMPRESSION", "CLICK", "CART", "PURCHASE",
    }  # fmt: skip


def test_nothing_happens_before_its_time() -> None:
    simulator = Simulator(BUSY, START_MS)
    for now_ms in range(START_MS, START_MS + 60_000, 500):
        actions = simulator.step(now_ms)
        assert all(e.event_time <= now_ms for e in actions.events)
        assert all(now_ms - 500 < (r.event_time or 0) <= now_ms for r in actions.requests)


def test_clicks_depend_on_taste_and_on_position() -> None:
    good = run(Simulator(BUSY, START_MS), 240)
    assert click_rate(good) > 2 * click_rate(run(Simulator(BUSY, START_MS), 240, first))
    clicks = Counter(
        e.position for e in good if e.event_type is EventType.CLICK and e.position is not None
    )
    assert clicks[0] > 1.5 * clicks[9]


def test_a_repeated_or_foreign_answer_shows_nothing() -> None:
    simulator = Simulator(BUSY, START_MS)
    requests = simulator.step(START_MS + 30_000).requests
    reply = answer(requests[0], best(simulator, requests[0]))
    assert len(simulator.shown(reply, START_MS + 30_000)) == 10
    assert simulator.shown(reply, START_MS + 30_100) == []
    other = RecommendationRequest(request_id="other", user_id="u")
    assert simulator.shown(answer(other, ["x"]), START_MS + 30_100) == []


def test_an_unknown_item_is_shown_and_never_clicked() -> None:
    events = run(Simulator(BUSY, START_MS), 60, lambda _, r: [f"film-{i}" for i in range(r.k)])
    assert click_rate(events) == 0


def learned(events: list[UserEvent], world: World) -> dict[int, list[str]]:
    """Each segment's most clicked items: the simplest model there is."""
    clicks: dict[int, Counter[str]] = {}
    for e in events:
        if e.event_type is EventType.CLICK and e.item_id is not None:
            segment = int(world.segments[world.number(e.user_id)])
            clicks.setdefault(segment, Counter())[e.item_id] += 1
    return {s: [item for item, _ in found.most_common(10)] for s, found in clicks.items()}


def test_after_the_flip_an_old_model_is_clearly_worse_than_a_new_one() -> None:
    simulator = Simulator(policy(script=Script(flip_at_s=300)), START_MS)
    rng = np.random.default_rng(1)
    items = [item.item_id for item in simulator.world.items]

    def explore(_: Simulator, request: RecommendationRequest) -> list[str]:
        return [str(i) for i in rng.choice(items, request.k, replace=False)]

    events = run(simulator, 600, explore)
    flip_ms = START_MS + 300_000
    old = learned([e for e in events if e.event_time < flip_ms], simulator.world)
    new = learned([e for e in events if e.event_time >= flip_ms], simulator.world)

    def truth(model: dict[int, list[str]]) -> float:
        return float(
            np.mean(
                [
                    simulator.world.taste(user, item)
                    for i, user in enumerate(simulator.world.users)
                    for item in model[int(simulator.world.segments[i])]
                ]
            )
        )

    assert truth(new) > 4 * truth(old)


def test_a_new_catalogue_retires_the_old_items() -> None:
    simulator = Simulator(policy(script=Script(catalogue_at_s=10)), START_MS)
    before = simulator.step(START_MS).items
    after = simulator.step(START_MS + 10_000).items
    assert len(before) == 300
    assert [i.item_id for i in after[:300]] == [i.item_id for i in before]
    assert not any(i.available for i in after[:300])
    assert all(i.available for i in after[300:])
    assert simulator.world.taste(simulator.world.users[0], before[0].item_id) == 0


def test_an_outage_silences_the_surface_and_label_loss_what_follows_a_list() -> None:
    simulator = Simulator(
        policy(script=Script(outage=(20, 40), label_loss=(60, 80)), cart=0), START_MS
    )
    events = run(simulator, 120)

    def kinds(start_s: int, stop_s: int) -> set[tuple[EventType, bool]]:
        return {
            (e.event_type, e.request_id is not None)
            for e in events
            if start_s <= (e.event_time - START_MS) / 1000 < stop_s
        }

    assert kinds(20, 40) == set()
    assert kinds(60, 80) - {(EventType.PROFILE, False)} == {
        (EventType.IMPRESSION, True),
        (EventType.CLICK, False),
    }
    assert simulator.tally.withheld.total() > 0
    assert simulator.tally.events.total() == len(events)


def test_faults_come_at_their_rates_and_are_counted() -> None:
    faults = Faults(duplicate=0.05, late=0.1, late_s=20, malformed=0.02)
    simulator = Simulator(policy(faults=faults), START_MS)
    events = run(simulator, 300)
    count = simulator.tally.events.total()
    ids = Counter(e.event_id for e in events)
    assert len(ids) == count
    assert sum(n - 1 for n in ids.values()) == simulator.tally.duplicates
    assert simulator.tally.duplicates == pytest.approx(0.05 * count, rel=0.2)
    assert simulator.tally.late == pytest.approx(0.1 * count, rel=0.2)
    assert simulator.tally.malformed == pytest.approx(0.02 * count, rel=0.3)


def test_the_day_has_a_rhythm() -> None:
    simulator = Simulator(policy(day_s=240, rhythm=0.9), START_MS)
    asked: Counter[bool] = Counter()
    for now_ms in range(START_MS, START_MS + 960_000, 1000):
        for request in simulator.step(now_ms).requests:
            asked[simulator.intensity((request.event_time or 0) / 1000) > 1] += 1
    assert asked[True] > 1.5 * asked[False]


def test_given_items_can_be_shopped_for() -> None:
    films = [
        Item(item_id=f"f{i}", title=f"Film {i}", categories=(("Comedy", "Drama")[i % 2],))
        for i in range(40)
    ]
    simulator = Simulator(BUSY, START_MS, films)
    events = run(simulator, 60)
    assert {e.item_id for e in events if e.item_id} <= {f.item_id for f in films}
    with pytest.raises(ValueError, match="cannot be renewed"):
        simulator.world.renew(START_MS)


@pytest.mark.parametrize("wrong", [{"k": 0}, {"dwell_s": 0.0}, {"day_s": -1.0}])
def test_a_policy_without_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        policy(**wrong)
