"""The demo's course: bootstrap, live MovieLens traffic, shoppers, a change, and what follows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from deploy.demo.movielens import MovieLensTraffic
from deploy.demo.observe import Freshness, Observer, Seen, WindowLog
from deploy.demo.plan import DemoPlan
from deploy.demo.shop import ShopPast, send_past
from deploy.demo.workers import Crew, demo_settings
from deploy.supervise import Supervisor
from features.catalog import CATALOG
from features.redis_store import RedisStore
from inference.signature import ensure_key
from ingest.clock import Clock
from ingest.datasets import open_dataset
from ingest.kafka import KafkaLog, KafkaProducer, KafkaSource
from ingest.replay import Replay, ReplayPlan
from ingest.settings import Settings
from ingest.simulator import SURFACE
from ingest.topics import Topics
from schemas.errors import ProcessFailed
from schemas.registry import RemoteRegistry

T = TypeVar("T")

ROOT = Path("out/demo")
WAIT_S = 60.0
TICK_S = 0.25
# Workers that need no model: they start while the first one is trained.
BESIDE: Final = {
    "join": ("features", "join", "--rotate-s", "4"),
    "archive": ("features", "archive", "--rotate-s", "10"),
    "monitor": ("monitor", "--surface", SURFACE, "--json"),
    "control": ("control", "--surface", SURFACE),
}


@dataclass(slots=True)
class Course:
    """Where the run stands; read by the view and the report."""

    phase: str = "starting"
    started_ms: int = 0
    phases_s: dict[str, float] = field(default_factory=dict)  # phase -> seconds since the start
    bootstrap_events: int = 0
    live_from_ms: int = 0  # when live traffic began
    shoppers_from_ms: int = 0
    flip_at_ms: int = 0
    ended_ms: int = 0


class Demo:
    """One run. Everything it starts ends with it."""

    def __init__(
        self,
        base: Settings,
        plan: DemoPlan,
        clock: Clock,
        on_tick: Callable[[Demo], None],
    ) -> None:
        shutil.rmtree(ROOT, ignore_errors=True)
        ROOT.mkdir(parents=True)
        self.plan, self.clock = plan, clock
        self.settings = demo_settings(base, ROOT)
        self.topics = Topics(self.settings.topic_prefix)
        self.course = Course(started_ms=clock.now_ms())
        self.windows = WindowLog(ROOT / "logs" / "monitor.log")
        self.seen = Seen()
        self.traffic: MovieLensTraffic | None = None
        self._on_tick = on_tick
        self._started_s = clock.monotonic_s()
        self._observer: Observer | None = None
        self._first_row = 0  # of MovieLens, that is sent live

    def run(self, audit: Callable[[Demo], T]) -> T:
        """
        The whole course; what `audit` says at its end, with everything still up.

        Raises:
            ProcessFailed: one of the processes ended.
        """
        with self._crew() as crew:
            self._phase("starting Kafka, Valkey and the registry")
            crew.start_stack(self.plan.partitions)
            ensure_key(self.settings.keys_dir)
            crew.worker("features", "features", "run")
            with self._clients() as (log, producer, registry, store):
                self._bootstrap(crew, log, producer, registry, store)
                self._serve(crew, log, registry)
                self._movielens(crew, store)
                self._shoppers(crew)
                self._settle(crew, log, store)
                self._phase("auditing")
                return audit(self)

    @contextmanager
    def _crew(self) -> Iterator[Crew]:
        with Supervisor(self.clock) as supervisor:
            yield Crew(settings=self.settings, supervisor=supervisor, logs=ROOT / "logs")

    @contextmanager
    def _clients(
        self,
    ) -> Iterator[tuple[KafkaLog, KafkaProducer, RemoteRegistry, RedisStore]]:
        settings = self.settings
        servers, timeout_s = settings.bootstrap_servers, settings.timeout_s
        registry = RemoteRegistry(settings.registry_url, timeout_s)
        with ExitStack() as open_:
            producer = open_.enter_context(closing(KafkaProducer(servers, timeout_s=timeout_s)))
            store = open_.enter_context(
                closing(RedisStore(settings.redis_url, CATALOG.fingerprint, timeout_s=timeout_s))
            )
            yield KafkaLog(servers, timeout_s), producer, registry, store

    def _bootstrap(
        self,
        crew: Crew,
        log: KafkaLog,
        producer: KafkaProducer,
        registry: RemoteRegistry,
        store: RedisStore,
    ) -> None:
        """History through Kafka into rows and archive; the first model from the archive."""
        self._phase("replaying history")
        dataset = open_dataset("movielens-100k", None, self.settings.data_dir)
        end_ms = self.course.started_ms
        plan = ReplayPlan(end_ms=end_ms, until_fraction=self.plan.history)
        sent = Replay(dataset, producer, registry, self.topics, self.clock).run(plan)
        first_row = plan.rows(len(dataset))[1]
        # The shop's past ends where live traffic begins: within a partition time must not jump.
        first_live = next(dataset.chunks(first_row, first_row + 1)).events[-1]
        cut_ms = first_live.event_time + end_ms - dataset.last_ms
        past = ShopPast(shoppers=self.plan.shoppers, catalogue=self.plan.catalogue)
        _, shop_events = send_past(past, cut_ms, producer, registry, self.topics)
        self.course.bootstrap_events = sent.events.total() + shop_events
        self._wait_folded(crew, log, store)
        for name, arguments in BESIDE.items():
            crew.begin(name, *arguments)
        self._phase("backfilling examples")
        crew.finished("backfill", "features", "backfill", "--interactions")
        self._phase("training the first model")
        crew.finished("train", "train", "--key", "bootstrap", "--approve", "millstream demo")
        crew.finished(
            "promote", "release", "promote", "1", "--reason", "first model, approved by the demo"
        )
        self.traffic = MovieLensTraffic(
            dataset, end_ms - dataset.last_ms, producer, registry, self.topics, self.clock
        )
        self.traffic.learn_history(first_row)
        self._first_row = first_row

    def _serve(self, crew: Crew, log: KafkaLog, registry: RemoteRegistry) -> None:
        """The workers of live traffic, and the observer."""
        self._phase("starting the workers")
        crew.worker("serve", "serve", "--objective-ms", "80")
        for name in BESIDE:
            crew.supervisor.wait(name)
        assert self.traffic is not None
        source = KafkaSource(self.settings.bootstrap_servers, timeout_s=self.settings.timeout_s)
        self._observer = Observer(
            log, source, registry, self.topics, self.clock, self.traffic.answered
        )
        self.seen = self._observer.seen
        self._observer.start()

    def _movielens(self, crew: Crew, store: RedisStore) -> None:
        """The rest of MovieLens as live traffic."""
        self._phase("live MovieLens traffic")
        assert self.traffic is not None
        self.course.live_from_ms = self.clock.now_ms()
        freshness = Freshness(store, self.clock, self.seen)
        freshness.start()
        try:
            for _ in self.traffic.run(self._first_row, self.plan.replay_s, freshness.probe):
                self._tick(crew)
            self._wait(crew, lambda: self.traffic is not None and self.traffic.waiting == 0)
        finally:
            freshness.stop()

    def _shoppers(self, crew: Crew) -> None:
        """Shoppers, ordinary and then changed, until the retrained model has served a while."""
        self._phase("shoppers arrive")
        plan, start_ms = self.plan, self.clock.now_ms()
        crew.worker(
            "shoppers",
            "simulate",
            "--shoppers",
            str(plan.shoppers),
            "--catalogue",
            str(plan.catalogue),
            "--sessions-per-hour",
            str(plan.sessions_per_hour),
            "--click",
            str(plan.click),
            "--rhythm",
            "0",
            "--minutes",
            str(plan.limit_s / 60),
            "--flip-at",
            str(plan.flip_at_s),
        )
        self.course.shoppers_from_ms = start_ms
        self.course.flip_at_ms = self.clock.now_ms() + round(plan.flip_at_s * 1000)
        self._wait(crew, self._flipped, plan.flip_at_s + 5)
        self._phase("tastes have flipped")
        self._wait(crew, lambda: self._stable_version() > 1, self._left_s())
        self._phase("the retrained model serves")
        until_s = self.clock.monotonic_s() + plan.after_release_s
        self._wait(crew, lambda: self.clock.monotonic_s() >= until_s, plan.after_release_s + 5)
        crew.supervisor.stop("shoppers")

    def _settle(self, crew: Crew, log: KafkaLog, store: RedisStore) -> None:
        """Wait until everything sent is folded and answered, then stop the observer."""
        self._phase("settling")
        self._wait_folded(crew, log, store)
        assert self._observer is not None
        quiet_s = self.clock.monotonic_s() + 2.0
        self._wait(crew, lambda: self.clock.monotonic_s() > quiet_s)
        self._observer.stop()
        self.course.ended_ms = self.clock.now_ms()

    def _flipped(self) -> bool:
        return self.clock.now_ms() >= self.course.flip_at_ms

    def _stable_version(self) -> int:
        return self.seen.releases[-1][1].stable if self.seen.releases else 0

    def _left_s(self) -> float:
        """What is left of the run for the loop to close."""
        passed = self.clock.monotonic_s() - self._started_s
        return max(1.0, self.plan.limit_s - passed - self.plan.after_release_s - 15.0)

    def _wait_folded(self, crew: Crew, log: KafkaLog, store: RedisStore) -> None:
        ends = {p: end for p, (_, end) in log.bounds(self.topics.user_events).items()}

        def folded() -> bool:
            found = store.positions(list(ends))
            return all(
                position is not None and position.next_offset >= ends[p]
                for p, position in found.items()
            )

        self._wait(crew, folded)

    def _wait(self, crew: Crew, done: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Tick until `done`, at most `timeout_s`: what was not reached is the report's to say."""
        deadline_s = self.clock.monotonic_s() + timeout_s
        while not done() and self.clock.monotonic_s() < deadline_s:
            self._tick(crew)
            self.clock.sleep(TICK_S)

    def _tick(self, crew: Crew) -> None:
        dead = [child.name for child in crew.supervisor.children() if not child.alive()]
        if dead:
            raise ProcessFailed(f"{', '.join(dead)} ended; see {ROOT / 'logs'}")
        if self._observer is not None:
            self._observer.check()
        self.windows.read()
        self._on_tick(self)

    def _phase(self, name: str) -> None:
        self.course.phase = name
        self.course.phases_s[name] = round(self.clock.monotonic_s() - self._started_s, 1)
        self._on_tick(self)
