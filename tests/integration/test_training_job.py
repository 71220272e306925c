"""A training job from an order to a verdict, over a real archive, registry and key."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features import audit_record
from features.examples import Examples
from features.skew import AuditReport, Skewed
from inference.registry import FolderRegistry
from inference.signature import Keyring, create_key
from ingest.clock import SystemClock
from ingest.settings import Settings
from retrain import job
from retrain.campaign import Accepted, Rejected
from retrain.gate import DEMO_GATE, Accept, Approval, Refuse
from retrain.holdout import EvaluationPolicy
from retrain.later import evaluate_version
from retrain.order import JobOrder, JobResult, Status, order_of
from retrain.publish import publish
from retrain.trainer import ProcessTrainer
from schemas.errors import Misconfigured, Refused
from schemas.events import Measure, RetrainTrigger
from tests.learning import FEATURES, HASHES, SMALL, START_MS, archived, shoppers

pytestmark = pytest.mark.tf

POLICY = job.JobPolicy(
    train=SMALL,
    evaluation=EvaluationPolicy(k=5),
    # Two loaded cores: a p99 over 20 calls says nothing here; its rule has its own tests.
    gate=replace(DEMO_GATE, latency_ratio=100.0),
)
ADA = Approval(by="Ada", why="first model")
UNTIL = START_MS + 10_000_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    create_key(tmp_path / "keys")
    return Settings(
        bootstrap_servers="127.0.0.1:9",  # nobody listens: a child trains on what is archived
        timeout_s=1.0,
        profile="demo",
        archive_dir=tmp_path / "archive",
        models_dir=tmp_path / "models",
        keys_dir=tmp_path / "keys",
    )


@pytest.fixture
def shop(settings: Settings) -> job.Shop:
    return job.Shop(settings=settings, features=FEATURES, policy=POLICY, clock=SystemClock())


def versions(shop: job.Shop) -> list[int]:
    return [one.version for one in shop.registry.versions("recommender")]


def test_an_order_becomes_a_signed_version_once(shop: job.Shop, settings: Settings) -> None:
    archived(settings.archive_dir, shoppers())
    order = JobOrder(key="first", approval=ADA, train_until=UNTIL)
    told: list[str] = []
    done = job.run(order, replace(shop, tell=told.append))
    assert done.reasons == ()
    assert (done.status, done.version, done.profile) == (Status.PUBLISHED, 1, "demo")
    assert job.run(order, shop) == done
    assert versions(shop) == [1]
    assert any("epoch 4 of 4" in line for line in told)

    # What a crash between publishing and the result leaves: the version is found by its key.
    (job.job_folder(settings, "first") / job.RESULT).unlink()
    assert job.run(order, shop).version == 1
    assert versions(shop) == [1]

    copy = shop.registry.fetch("recommender", 1, Keyring.load(settings.keys_dir))
    metrics = json.loads((copy / "metrics.json").read_text())
    assert metrics["candidate"]["hit_rate"] > metrics["popularity"]["hit_rate"] + 0.3
    facts = {a.name: a.value for a in shop.registry.manifest("recommender", 1).facts.data}
    assert facts["approved_by"] == "Ada"
    assert facts["snapshot"] == done.snapshot

    later = evaluate_version(shop, 1)
    assert later.lead.low > 0.3
    assert later.version.overall.mean_ndcg == pytest.approx(metrics["candidate"]["ndcg"])

    _a_worse_challenger_changes_nothing(shop, settings)


def _a_worse_challenger_changes_nothing(shop: job.Shop, settings: Settings) -> None:
    """Runs on the champion of the test above: one training less."""
    dull = replace(POLICY, train=replace(SMALL, epochs=1, learning_rate=1e-6))
    done = job.run(JobOrder(key="dull", train_until=UNTIL), replace(shop, policy=dull))
    assert done.status == Status.REFUSED
    assert {reason.split(":")[0] for reason in done.reasons} >= {"champion", "slice"}
    assert versions(shop) == [1]
    assert not (job.job_folder(settings, "dull") / "staging").exists()


def test_after_a_change_the_retrained_model_replaces_the_old_one(
    shop: job.Shop, settings: Settings
) -> None:
    before = shoppers()
    archived(settings.archive_dir, before)
    assert job.run(JobOrder(key="old", approval=ADA, train_until=UNTIL), shop).version == 1
    changed = int(before.event_time[-1]) + 1_000
    archived(settings.archive_dir, shoppers(each=20, shift=7, start_ms=changed), partition=1)
    order = JobOrder(key="new", train_until=UNTIL, recent_from_ms=changed)
    done = job.run(order, shop)
    found = {m.name: m.value for m in done.measures}
    assert done.reasons == ()
    assert done.version == 2
    assert found["gain_low"] > 0.2
    assert found["requests"] < 0.41 * 20 * 60


def test_without_approval_or_with_skewed_features_nothing_is_published(
    shop: job.Shop, settings: Settings
) -> None:
    archived(settings.archive_dir, shoppers())
    found = AuditReport(fingerprint=FEATURES.fingerprint, since_ms=0)
    skewed = Skewed(reasons=("row: 1 of 2 answers",))
    audit_record.save(settings.models_dir, audit_record.recorded(found, skewed, 1))
    done = job.run(JobOrder(key="alone", train_until=UNTIL), shop)
    assert done.status == Status.REFUSED
    assert [reason.split(":")[0] for reason in done.reasons] == ["audit", "bootstrap"]
    assert versions(shop) == []


def test_too_small_a_holdout_is_insufficient(shop: job.Shop, settings: Settings) -> None:
    archived(settings.archive_dir, shoppers(users=12, each=50))
    done = job.run(JobOrder(key="few", approval=ADA, train_until=UNTIL), shop)
    assert done.status == Status.INSUFFICIENT
    assert "12 of at least 15 users" in done.reasons[0]


def infinite(examples: Examples) -> Examples:
    examples.users.floats[7, -1] = np.inf
    return examples


def unlabelled(examples: Examples) -> Examples:
    return replace(examples, labels=np.zeros_like(examples.labels))


def doubled(examples: Examples) -> Examples:
    return replace(examples, request_id=["r1"] * len(examples), item_hash=HASHES[:1].repeat(600))


def from_tomorrow(examples: Examples) -> Examples:
    return replace(examples, event_time=examples.event_time - START_MS - 1)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (infinite, "events: infinite in 1 examples"),
        (unlabelled, "labels are missing"),
        (doubled, "repeat another's request and item"),
        (from_tomorrow, "event times outside"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_bad_data_is_rejected_before_the_first_step(
    shop: job.Shop, settings: Settings, spoil: Callable[[Examples], Examples], problem: str
) -> None:
    archived(settings.archive_dir, spoil(shoppers(users=15, each=40)))
    order = JobOrder(key="bad", approval=ADA, train_until=UNTIL, train_from=-(10**15))
    done = job.run(order, shop)
    assert done.status == Status.REJECTED_DATA
    assert problem in " ".join(done.reasons)


def test_a_torn_file_is_rejected(shop: job.Shop, settings: Settings) -> None:
    archived(settings.archive_dir, shoppers(users=15, each=40))
    (file,) = settings.archive_dir.rglob("*.tfrecord.gz")
    file.write_bytes(file.read_bytes()[:-10])
    done = job.run(JobOrder(key="torn", train_until=UNTIL), shop)
    assert done.status == Status.REJECTED_DATA
    assert "truncated" in done.reasons[0]


def test_an_empty_archive_is_rejected(shop: job.Shop) -> None:
    assert job.run(JobOrder(key="none"), shop).status == Status.REJECTED_DATA


def test_a_training_that_diverges_publishes_nothing(shop: job.Shop, settings: Settings) -> None:
    archived(settings.archive_dir, shoppers(users=30, each=40))
    wild = replace(POLICY, train=replace(SMALL, learning_rate=1e12, retry_factor=1.0))
    done = job.run(
        JobOrder(key="wild", approval=ADA, train_until=UNTIL), replace(shop, policy=wild)
    )
    assert done.status == Status.FAILED
    assert versions(shop) == []


def test_two_processes_do_not_do_one_job(shop: job.Shop, settings: Settings) -> None:
    folder = job.job_folder(settings, "busy")
    folder.mkdir(parents=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert job.in_work(settings, "busy")
        with pytest.raises(Refused, match="another process"):
            job.run(JobOrder(key="busy"), shop)
    assert not job.in_work(settings, "busy")


def test_only_what_was_accepted_is_published(settings: Settings, tmp_path: Path) -> None:
    registry = FolderRegistry(settings.models_dir, profile="demo")
    with pytest.raises(TypeError, match="only what the gate accepted"):
        publish(Refuse(reasons=(), measures=()), tmp_path, None, registry, settings.keys_dir)
    with pytest.raises(Misconfigured, match="signing key"):
        publish(Accept(measures=()), tmp_path, None, registry, tmp_path / "no keys")


def test_an_order_keeps_what_its_trigger_says() -> None:
    trigger = RetrainTrigger(
        trigger_id="t",
        model_name="m",
        reason="DRIFT",
        idempotency_key="drift:a",
        issued_at=9,
        train_from=3,
        train_until=8,
        profile="demo",
        measures=(Measure(name="changed_at_ms", value=5.0),),
    )
    order = order_of(trigger)
    assert (order.key, order.train_from, order.train_until) == ("drift:a", 3, 8)
    assert order.recent_from_ms == 5


def test_a_result_survives_its_file() -> None:
    result = JobResult(
        key="k",
        status=Status.REFUSED,
        reasons=("a", "b"),
        measures=(Measure(name="n", value=1.5),),
        snapshot="s",
        profile="demo",
    )
    assert JobResult.from_json(result.to_json()) == result


def test_a_training_process_that_ends_without_a_result_is_rejected(settings: Settings) -> None:
    trainer = ProcessTrainer(settings)
    assert trainer.outcome("never started") == Rejected(
        reasons=(
            "the training process ended with unknown; see "
            f"{job.job_folder(settings, 'never started') / 'training.log'}",
        )
    )


def test_a_finished_training_is_not_started_again(settings: Settings) -> None:
    folder = job.job_folder(settings, "done")
    folder.mkdir(parents=True)
    result = JobResult(key="done", status=Status.PUBLISHED, version=4)
    (folder / job.RESULT).write_text(result.to_json())
    trainer = ProcessTrainer(settings)
    trainer.order(JobOrder(key="done"))
    assert not (folder / "order.json").exists()
    assert trainer.outcome("done") == Accepted(version=4)


def test_a_training_runs_in_a_process_of_its_own(settings: Settings) -> None:
    """The archive is empty: the shortest whole way through a child process."""
    trainer, clock = ProcessTrainer(settings), SystemClock()
    trainer.order(JobOrder(key="child", approval=ADA))
    deadline = clock.monotonic_s() + 120
    while (found := trainer.outcome("child")) is None and clock.monotonic_s() < deadline:
        clock.sleep(0.1)
    trainer.close()
    assert isinstance(found, Rejected)
    assert found.reasons[0] == "REJECTED_DATA:"
