"""`millstream serve`: everything put together and kept running."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import structlog

from features.catalog import CATALOG, TARGETS
from features.items import ItemTable
from features.redis_store import RedisStore
from features.split import check_rows
from inference.batcher import BatchPolicy
from inference.consumer import Consumer, ConsumerPolicy, Ends
from inference.encoding import AnswerWriter
from inference.exposure import Exposed, Exposure, expose
from inference.fallback import Popular
from inference.items_feed import NEVER_STOP, ItemsFeed
from inference.live import Live
from inference.loading import RegistryLoader
from inference.lookup import RowLookup
from inference.registry import FolderRegistry
from inference.reload import ReleaseFeed, Reloader
from inference.requests import RequestReader
from inference.service import Parts, Service
from inference.signature import Keyring
from inference.titles import Titles
from ingest.clock import SystemClock
from ingest.dead_letter import DeadLetterPolicy, DeadLetters
from ingest.kafka import (
    KafkaGroups,
    KafkaGroupSource,
    KafkaLog,
    KafkaProducer,
    KafkaSource,
    KafkaTransactionalProducer,
)
from ingest.log import TopicPartition
from ingest.metrics import PrometheusMetrics
from ingest.settings import Settings
from ingest.topics import Topics, check_offset, check_partitions, serving_group
from schemas.codec import Codec
from schemas.errors import BrokerUnavailable, PositionMoved, Retryable, StoreUnavailable
from schemas.events import DeadLetter, Recommendation, Release
from schemas.registry import RemoteRegistry

log = structlog.get_logger(__name__)

STORE_TIMEOUT_S = 1.0  # answers wait for the store no longer than this, once
READY_S = 120.0  # how long the first model and the items may take; then serving starts without
SESSION_S = 10.0
RETRY_S = 0.5
SWITCH_S = 0.0005
PRODUCERS = 2  # of one instance, in turn; a third one gains nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of `millstream serve`."""

    max_batch: int = 256
    max_wait_s: float = 0.005
    model_threads: int = 0  # of one model call; 0: half of the processors, at least one
    metrics_port: int = 0
    instance: str = "0"
    exposure: Exposure = field(default_factory=Exposure)

    def batch_sizes(self) -> tuple[int, ...]:
        """Powers of two up to the largest batch: what models are warmed for."""
        doubled = (2**n for n in range(self.max_batch.bit_length()))
        return tuple(sorted({*doubled, self.max_batch}))

    def threads(self) -> int:
        """The others are for everything else, on this side and on the broker's."""
        return self.model_threads or max(1, len(os.sched_getaffinity(0)) // 2)


def run(settings: Settings, options: Options) -> None:
    """
    Serve until SIGTERM or SIGINT.

    Raises:
        Misconfigured: topics are missing or unequal; too many bad requests.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # A commit is a dozen short steps: each would wait 5 ms for the thread that computes.
    sys.setswitchinterval(SWITCH_S)
    with ExitStack() as stack:
        server = Server(settings, options, stack)
        server.expose(stop)
        server.wait_ready(stop)
        server.serve(stop)


class Server:
    """One process's parts, each living as long as `stack`."""

    def __init__(self, settings: Settings, options: Options, stack: ExitStack) -> None:
        self._settings, self._options, self._stack = settings, options, stack
        self._clock = SystemClock()
        self._topics = Topics(settings.topic_prefix)
        self._registry = RemoteRegistry(settings.registry_url, settings.timeout_s)
        self._log = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
        self._partitions = check_partitions(self._log, self._topics)
        self._check_requests()
        self._metrics = PrometheusMetrics()
        self._port = stack.enter_context(self._metrics.served(options.metrics_port))
        self._live = Live(self._clock)
        self._items = ItemTable(CATALOG.fingerprint)
        self._titles = Titles() if options.exposure.http_port is not None else None
        self._feed = self._items_feed()
        self._releases = self._release_feed()
        self._reloader = self._follow_releases()
        self._service = self._made_service()
        self._started = threading.Event()
        self._ports = f"metrics on port {self._port}"

    def expose(self, stop: threading.Event) -> None:
        """
        Open the network API, if one is wanted: it answers from now on.

        Raises:
            Misconfigured: a port is taken, or a certificate or key is not usable.
        """
        exposure = self._options.exposure
        if not exposure.wanted:
            return
        what = Exposed(
            settings=self._settings,
            registry=self._registry,
            # Its own: a caller that waits for its event must not hold up the log's requests.
            service=self._made_service(),
            live=self._live,
            titles=self._titles or Titles(),
            started=self._started,
            clock=self._clock,
            metrics=self._metrics,
        )
        network = expose(what, exposure, self._stack, stop.set)
        opened = {"http": network.http_port, "grpc": network.grpc_port}
        self._ports += "".join(f", {name} on port {port}" for name, port in opened.items() if port)

    def wait_ready(self, stop: threading.Event) -> None:
        """Until the items are read and the released model is in memory, or has been refused."""
        end_s = self._clock.monotonic_s() + READY_S
        while not stop.is_set() and not (self._feed.ready.is_set() and self._reloader.settled()):
            if self._clock.monotonic_s() > end_s:
                log.warning("serve.not_ready", items=self._feed.ready.is_set())
                break
            self._clock.sleep(0.02)
        self._started.set()

    def serve(self, stop: threading.Event) -> None:
        """Live after live of the pipeline, until told to stop."""
        while not stop.is_set():
            try:
                with self._ends() as ends:
                    consumer = Consumer(ends, self._service, self._policy(), self._clock)
                    self._announce(consumer, stop)
                    consumer.run(stop)
            except PositionMoved as error:
                log.warning("serve.moved", error=str(error))
                self._metrics.count("loop.moved", loop="serve")
            except Retryable as error:
                log.warning("serve.unavailable", error=str(error))
                self._metrics.count("loop.retries", loop="serve", error=type(error).__name__)
                self._clock.sleep(RETRY_S)

    def _check_requests(self) -> None:
        """Refuse a group that stands where the log of requests does not reach."""
        group, topic = serving_group(self._settings.topic_prefix), self._topics.requests
        servers = self._settings.bootstrap_servers
        bounds = self._log.bounds(topic)
        mend = (
            f"To answer what the log holds, run: kafka-consumer-groups.sh --bootstrap-server "
            f"{servers} --group {group} --topic {topic} --reset-offsets --to-earliest --execute"
        )
        try:
            offsets = KafkaGroups(servers, self._settings.timeout_s).offsets(group, topic)
        except BrokerUnavailable as error:  # no coordinator yet: joining the group waits for it
            log.warning("serve.unavailable", error=str(error))
            return
        for partition, offset in offsets.items():
            check_offset(TopicPartition(topic, partition), offset, bounds[partition], mend)

    def _policy(self) -> ConsumerPolicy:
        size = self._options.max_batch
        batch = BatchPolicy(
            max_size=size, max_wait_s=self._options.max_wait_s, max_pending=max(1024, 8 * size)
        )
        return ConsumerPolicy(batch=batch)

    def _announce(self, consumer: Consumer, stop: threading.Event) -> None:
        """Print the ready line once the group has dealt us our partitions."""

        def wait() -> None:
            while not stop.is_set():
                if consumer.assigned.wait(0.1):
                    release = self._live.deployment.release
                    serving = f"version {release.stable}" if release else "popular items"
                    text = f"ready: serve {serving}, {self._ports}"
                    print(text, file=sys.stderr, flush=True)  # noqa: T201 - for a supervisor
                    return

        threading.Thread(target=wait, name="announce", daemon=True).start()

    @contextmanager
    def _ends(self) -> Iterator[Ends]:
        """New ends, which fence those of an earlier life of this instance."""
        settings, topics = self._settings, self._topics
        name = f"{settings.topic_prefix}serve-{self._options.instance}"
        with ExitStack() as stack:
            letters = KafkaProducer(settings.bootstrap_servers, timeout_s=settings.timeout_s)
            stack.callback(letters.close)
            producers = [
                KafkaTransactionalProducer(
                    settings.bootstrap_servers,
                    f"{name}-{turn}",
                    timeout_s=settings.timeout_s,
                    max_record_bytes=settings.max_record_bytes,
                )
                for turn in range(PRODUCERS)
            ]
            for producer in producers:
                stack.callback(producer.close)
            source = KafkaGroupSource(
                settings.bootstrap_servers,
                serving_group(settings.topic_prefix),
                timeout_s=settings.timeout_s,
                instance_id=name,
                session_timeout_s=SESSION_S,
            )
            stack.callback(source.close)
            yield Ends(
                source=source,
                producers=producers,
                dead_letters=self._dead_letters(letters),
                reader=RequestReader(self._registry),
                writer=AnswerWriter(
                    Codec(self._registry, Recommendation, topics.recommendations),
                    max_answer_bytes=int(self._settings.max_record_bytes * 0.9),
                ),
                requests_topic=topics.requests,
            )

    def _dead_letters(
        self, producer: KafkaProducer, policy: DeadLetterPolicy | None = None
    ) -> DeadLetters:
        """Not to be shared between threads."""
        topic = self._topics.dead_letters
        codec = Codec(self._registry, DeadLetter, topic)
        return DeadLetters(producer, codec, topic, self._clock, policy, metrics=self._metrics)

    def _made_service(self) -> Service:
        store = RedisStore(
            self._settings.redis_url,
            CATALOG.fingerprint,
            lifetime_ms=CATALOG.row.lifetime_ms,
            timeout_s=STORE_TIMEOUT_S,
        )
        self._stack.callback(store.close)
        try:
            check_rows(store, self._log, self._topics.user_events)
        except StoreUnavailable as error:  # without rows users still get popular items
            log.warning("serve.no_store", error=str(error))
        lookup = RowLookup(
            store,
            partitions=self._partitions,
            fingerprint=CATALOG.fingerprint,
            clock=self._clock,
        )
        popular = Popular(CATALOG.fingerprint, self._items, TARGETS, self._clock)
        parts = Parts(
            features=CATALOG, lookup=lookup, items=self._items, popular=popular, live=self._live
        )
        return Service(parts, self._clock, self._metrics)

    def _items_feed(self) -> ItemsFeed:
        letters = KafkaProducer(
            self._settings.bootstrap_servers, timeout_s=self._settings.timeout_s
        )
        self._stack.callback(letters.close)
        feed = ItemsFeed(
            self._source(),
            self._items,
            self._registry,
            self._topics,
            self._clock,
            self._dead_letters(letters, NEVER_STOP),
        )
        feed.titles = self._titles
        feed.open(self._log)
        self._follow("items", feed.run)
        return feed

    def _release_feed(self) -> ReleaseFeed:
        codec = Codec(self._registry, Release, self._topics.model_releases)
        keys = Keyring.load(self._settings.keys_dir)
        feed = ReleaseFeed(self._source(), codec, self._settings.model_name, keys, self._clock)
        feed.open(self._log)
        return feed

    def _follow_releases(self) -> Reloader:
        keys = Keyring.load(self._settings.keys_dir)
        registry = FolderRegistry(self._settings.models_dir, profile=self._settings.profile)
        sizes = self._options.batch_sizes()
        loader = RegistryLoader(
            registry,
            self._settings.model_name,
            keys,
            CATALOG,
            sizes,
            self._options.threads(),
        )
        reloader = Reloader(self._releases, loader, self._live, self._clock, self._metrics)
        self._follow("releases", reloader.run)
        return reloader

    def _source(self) -> KafkaSource:
        source = KafkaSource(self._settings.bootstrap_servers, timeout_s=self._settings.timeout_s)
        self._stack.callback(source.close)
        return source

    def _follow(self, name: str, work: Callable[[threading.Event], None]) -> None:
        """A thread that is told to stop, and waited for, when the stack unwinds."""
        stop = threading.Event()
        thread = threading.Thread(target=work, args=(stop,), name=name, daemon=True)
        thread.start()
        self._stack.callback(thread.join, 30.0)
        self._stack.callback(stop.set)
