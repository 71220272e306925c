"""The drift monitor: quiet without change, quick with one, deaf to broken data."""

from dataclasses import replace

import numpy as np
import pytest

from features.declare import Drift
from ingest.log import TopicPartition
from retrain.drift.cohorts import Answers, Cohorts, Reactions
from retrain.drift.counts import NON_FINITE, Binning, Stream, choose_binning, count
from retrain.drift.detector import DetectorPolicy, baseline, cap, compare, e_values
from retrain.drift.monitor import Monitor, MonitorPolicy, Observations, Phase, WindowVerdict
from retrain.drift.quality import QualityCounts

WINDOW_MS = 5_000
STREAMS = 10
USERS = 300
POLICY = MonitorPolicy(
    window_ms=5_000,
    maturity_ms=5_000,
    lateness_ms=1_000,
    settle_windows=0,
    reference_windows=10,
    detector=DetectorPolicy(warn=20, act=50),
)


def observations(
    rng: np.random.Generator,
    size: int = 400,
    click_rate: float = 0.3,
    shift: float = 0.0,
    version: int = 1,
) -> Observations:
    """Answers of users who differ from one another: clustered, as real ones are."""
    taste = np.random.default_rng(2).normal(size=(USERS, STREAMS))
    half = np.random.default_rng(1).integers(0, 2, USERS)
    user = rng.integers(0, USERS, size)
    columns = [rng.normal(size=size) + 0.7 * taste[user, k] for k in range(STREAMS)]
    columns[0] += shift
    chance = np.clip(click_rate * (1 + 0.5 * taste[user, 0]), 0, 1)
    return Observations(
        columns=tuple(columns),
        half=half[user],
        version=version,
        clicked=rng.random(size) < chance,
        joined=np.ones(size, np.bool_),
        quality=QualityCounts(answers=size, joined=size),
    )


def monitor() -> Monitor:
    streams = [Stream(name=f"f{k}", kind=Drift.NUMERIC) for k in range(STREAMS)]
    return Monitor(streams, POLICY)


def run(
    seed: int, windows: int, changed_from: int, **change: float
) -> tuple[int | None, WindowVerdict]:
    rng = np.random.default_rng(seed)
    watcher, verdict = monitor(), None
    for w in range(windows):
        verdict = watcher.window(
            w * WINDOW_MS, observations(rng, **(change if w >= changed_from else {}))
        )
        if verdict.phase == Phase.ALARMED:
            return w - changed_from, verdict
    assert verdict is not None
    return None, verdict


@pytest.mark.parametrize("seed", range(5))
def test_no_alarm_without_change(seed: int) -> None:
    alarm, verdict = run(seed, windows=110, changed_from=110)
    assert alarm is None
    assert verdict.phase != Phase.ALARMED


@pytest.mark.parametrize("seed", range(5))
def test_half_of_the_clicks_gone_is_an_alarm_within_three_windows(seed: int) -> None:
    delay, verdict = run(seed, windows=40, changed_from=20, click_rate=0.15)
    assert delay is not None
    assert 1 <= delay <= 3, "no single window may fire; three must"
    assert verdict.subject == "label_click"


@pytest.mark.parametrize("seed", range(5))
def test_an_alarm_dates_the_change_by_the_windows_that_show_it(seed: int) -> None:
    _, verdict = run(seed, windows=40, changed_from=20, click_rate=0.1)
    assert 20 * WINDOW_MS <= verdict.since_ms <= 21 * WINDOW_MS


@pytest.mark.parametrize("seed", range(5))
def test_a_shifted_feature_that_harms_nobody_is_named_by_a_warning_alone(seed: int) -> None:
    alarm, verdict = run(seed, windows=60, changed_from=20, shift=0.6)
    assert alarm is None
    assert verdict.phase == Phase.WARNED
    assert verdict.subject == "f0"
    assert verdict.warning > POLICY.detector.warn


def test_the_reference_freezes_after_its_windows() -> None:
    rng, watcher = np.random.default_rng(0), monitor()
    togo = []
    for w in range(10):
        togo.append(watcher.windows_to_go)
        verdict = watcher.window(w * 5_000, observations(rng))
    assert togo == list(range(10, 0, -1))
    assert verdict.phase == Phase.WATCHING


def test_another_stable_version_starts_warming_anew() -> None:
    rng, watcher = np.random.default_rng(0), monitor()
    for w in range(12):
        watcher.window(w * 5_000, observations(rng))
    verdict = watcher.window(60_000, observations(rng, version=2))
    assert verdict.phase == Phase.WARMING
    assert verdict.version == 2
    assert watcher.windows_to_go == 9


def test_a_broken_join_is_untrusted_labels_and_not_drift() -> None:
    rng, watcher = np.random.default_rng(0), monitor()
    for w in range(20):
        watcher.window(w * 5_000, observations(rng))
    for w in range(20, 40):
        seen = observations(rng, click_rate=0.0)
        dead = Observations(
            columns=seen.columns,
            half=seen.half,
            version=1,
            clicked=np.zeros(len(seen), np.bool_),
            joined=np.zeros(len(seen), np.bool_),
            quality=QualityCounts(answers=len(seen), joined=0),
        )
        verdict = watcher.window(w * 5_000, dead)
        assert not verdict.labels_trusted
        assert verdict.phase == Phase.WATCHING
        assert [f.name for f in verdict.faults] == ["joined"]


def test_a_stream_that_wandered_in_the_reference_may_wander_on() -> None:
    rng, watcher = np.random.default_rng(0), monitor()
    for w in range(40):
        verdict = watcher.window(w * 5_000, observations(rng, shift=0.4 * w))
    assert verdict.phase == Phase.WATCHING


def test_small_windows_are_merged_forward_and_then_tested() -> None:
    rng, watcher = np.random.default_rng(0), monitor()
    for w in range(10):
        watcher.window(w * 5_000, observations(rng))
    phases = [
        watcher.window((10 + w) * 5_000, observations(rng, size=60, click_rate=0.02)).phase
        for w in range(60)
    ]
    assert phases[0] == Phase.WATCHING
    assert phases[-1] == Phase.ALARMED


def test_the_same_windows_give_the_same_bits_again() -> None:
    first, second = run(3, 40, 20, click_rate=0.2), run(3, 40, 20, click_rate=0.2)
    assert first[0] == second[0]
    assert first[1].evidence == second[1].evidence


def test_counts_of_parts_add_up_to_the_counts_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=1_000)
    values[:5] = np.nan
    half = rng.integers(0, 2, 1_000)
    binning = choose_binning(Drift.NUMERIC, values)
    whole = count((binning,), (values,), half)
    parts = [count((binning,), (values[i::7],), half[i::7]) for i in range(7)]
    assert (sum(parts) == whole).all()
    assert whole[0, :, NON_FINITE].sum() == 5


def test_unseen_categories_share_the_last_bin() -> None:
    binning = choose_binning(Drift.CATEGORICAL, np.array([7, 7, 9], np.int64))
    assert binning.bins_of(np.array([7, 9, 8, 100], np.int64)).tolist() == [0, 1, 2, 2]


def test_a_reference_of_two_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 windows, got 2"):
        baseline(np.zeros((2, 1, 2, 33), np.int64), DetectorPolicy())


def test_p_values_are_calibrated_or_conservative_without_change() -> None:
    rng = np.random.default_rng(5)
    binning = Binning(Drift.NUMERIC, edges=tuple(np.linspace(-2, 2, 31).tolist()))
    half = rng.integers(0, 2, 500)
    windows = np.stack([count((binning,), (rng.normal(size=500),), half) for _ in range(20)])
    base = baseline(windows, DetectorPolicy())
    p = np.array(
        [
            float(compare(count((binning,), (rng.normal(size=500),), half), base).p[0])
            for _ in range(300)
        ]
    )
    assert float(np.mean(p < 0.05)) <= 0.07
    assert float(e_values(p, cap(1, 50, 3)).mean()) <= 1.0


A, B = TopicPartition("recommendations", 0), TopicPartition("user-events", 0)


def answers(ids: list[str], times: list[int]) -> Answers:
    n = len(ids)
    no = np.zeros(n, np.bool_)
    return Answers(
        request_ids=ids,
        event_time_ms=np.array(times, np.int64),
        users=np.arange(n, dtype=np.uint64),
        version=np.ones(n, np.int64),
        columns=(np.zeros(n),),
        fallback=no,
        without_row=no,
        stale=no,
    )


def reactions(ids: list[str], times: list[int]) -> Reactions:
    n = len(ids)
    yes = np.ones(n, np.bool_)
    return Reactions(
        request_ids=ids, event_time_ms=np.array(times, np.int64), positive=yes, impression=yes
    )


def test_a_window_waits_for_every_source_and_for_its_labels() -> None:
    cohorts = Cohorts(POLICY, [A, B])
    cohorts.answers(A, answers(["a", "b", "later"], [1_000, 2_000, 60_000]))
    assert list(cohorts.ripe()) == []
    cohorts.reactions(B, reactions(["a", "other"], [3_000, 10_900]))
    assert list(cohorts.ripe()) == [], "end 5 s + maturity 5 s + lateness 1 s is not passed yet"
    cohorts.reactions(B, reactions(["other"], [11_000]))
    [(start, seen)] = list(cohorts.ripe())
    assert start == 0
    assert seen.clicked.tolist() == [True, False]


def test_clicks_before_or_long_after_the_answer_do_not_count() -> None:
    cohorts = Cohorts(POLICY, [A, B])
    cohorts.reactions(B, reactions(["early", "slow", "x"], [900, 6_100, 60_000]))
    cohorts.answers(A, answers(["early", "slow", "x"], [1_000, 1_001, 60_000]))
    _, seen = next(iter(cohorts.ripe()))
    assert seen.clicked.tolist() == [False, False]


def test_an_idle_source_is_not_waited_for() -> None:
    cohorts = Cohorts(POLICY, [A, B])
    cohorts.answers(A, answers(["a", "z"], [1_000, 60_000]))
    assert list(cohorts.ripe()) == []
    cohorts.idle({B})
    assert next(iter(cohorts.ripe()))[0] == 0


def test_a_late_record_is_counted_and_changes_nothing() -> None:
    cohorts = Cohorts(POLICY, [A, B])
    cohorts.answers(A, answers(["a", "late"], [60_000, 58_000]))
    assert cohorts.late == 1


def test_reading_order_between_topics_does_not_matter() -> None:
    def observed(first_answers: bool) -> list[bool]:
        cohorts = Cohorts(POLICY, [A, B])
        steps = [
            lambda: cohorts.answers(A, answers(["a", "b", "z"], [0, 1, 60_000])),
            lambda: cohorts.reactions(B, reactions(["b", "z"], [4_000, 60_000])),
        ]
        for step in steps if first_answers else reversed(steps):
            step()
        return next(iter(cohorts.ripe()))[1].clicked.tolist()

    assert observed(True) == observed(False) == [False, True]


def test_the_first_windows_under_a_model_count_for_nothing() -> None:
    settling = replace(POLICY, settle_windows=3)
    rng, watcher = np.random.default_rng(0), Monitor(monitor().streams[:-1], settling)
    togo = []
    for w in range(13):
        togo.append(watcher.windows_to_go)
        # While it settles nobody clicks: a reference with that in it would see nothing later.
        watcher.window(w * 5_000, observations(rng, click_rate=0.0 if w < 3 else 0.3))
    assert togo == list(range(13, 0, -1))
    assert watcher.reference is not None
    assert watcher.reference.windows == 10
    assert watcher.reference.click_rate > 0.2
