"""`millstream serve`: everything put together and kept running."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import structlog

from features.catalog import CATALOG
from inference.answer_memory import AnswerMemory, DeliveredAnswers
from inference.at_least_once import AtLeastOnce
from inference.backend import Backend
from inference.batcher import BatchPolicy
from inference.commits import Ends
from inference.consumer import Consumer, ConsumerPolicy, Costs
from inference.cost_model import TogetherCost
from inference.delivery import Delivery
from inference.early import model_threads
from inference.encoding import AnswerWriter
from inference.exposure import Exposed, Exposure, expose
from inference.live import Live
from inference.loading import CallPolicy, RegistryLoader
from inference.registry import FolderRegistry
from inference.reload import ReleaseFeed, Reloader
from inference.requests import RequestReader
from inference.rules import Rule
from inference.set_parts import SetParts, Surroundings, follow, opened_set
from inference.set_router import SetRouter, SetServices
from inference.signature import Keyring
from inference.titles import Titles
from inference.trail import Names, Trail
from ingest.clock import SystemClock
from ingest.kafka import (
    KafkaGroups,
    KafkaGroupSource,
    KafkaLog,
    KafkaProducer,
    KafkaTransactionalProducer,
)
from ingest.log import GroupSource, TopicPartition, TransactionalProducer
from ingest.prometheus import PrometheusMetrics
from ingest.settings import Settings
from ingest.topics import Topics, check_offset, check_partitions, serving_group
from ingest.tracing import open_tracer
from schemas.codec import Codec
from schemas.errors import BrokerUnavailable, PositionMoved, Retryable
from schemas.events import Recommendation, Release
from schemas.registry import RemoteRegistry

if TYPE_CHECKING:
    from types import ModuleType

log = structlog.get_logger(__name__)

READY_S = 120.0  # how long the first model and the items may take; then serving starts without
SESSION_S = 10.0
RETRY_S = 0.5
SWITCH_S = 0.0005
# Steps from one batch size to its double, where a call takes longer than it takes to begin. More
# would not fit in what oneDNN keeps ready: 1,024 pairs of a product and its shape.
FINER, STEPS = 16, 8
PRODUCERS = 2  # of one instance, in turn; a third one gains nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of `millstream serve`."""

    max_batch: int = 256
    objective_s: float = 0.025
    model_threads: int = 0  # of one model call; 0: half of the processors, at least one
    metrics_port: int = 0
    instance: str = "0"
    delivery: Delivery = Delivery.EXACTLY_ONCE
    backend: Backend = field(default_factory=Backend)
    exposure: Exposure = field(default_factory=Exposure)
    rules: tuple[Rule, ...] = ()

    def batch_sizes(self) -> tuple[int, ...]:
        """
        With how many rows models are called, up to the largest batch.

        Powers of two, and from 16 on eighths between them: a batch that is padded to the next size
        costs what a full one does.

        >>> Options(max_batch=40).batch_sizes()
        (1, 2, 4, 8, 16, 18, 20, 22, 24, 26, 28, 30, 32, 36, 40)
        """
        doubled = [2**n for n in range(self.max_batch.bit_length())]
        finer = [
            size + size * step // STEPS
            for size in doubled
            if size >= FINER
            for step in range(STEPS)
        ]
        sizes = {*doubled, *finer, self.max_batch}
        return tuple(sorted(size for size in sizes if size <= self.max_batch))

    def threads(self) -> int:
        """Of one model call."""
        return model_threads(self.model_threads)


def run(settings: Settings, options: Options) -> None:
    """
    Serve until SIGTERM or SIGINT.

    Raises:
        Misconfigured: topics are missing or unequal; too many bad requests.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # TensorFlow imports Keras, which takes half as long again. Models are run here, not made.
    sys.modules.setdefault("keras", cast("ModuleType", None))
    # A commit is a dozen short steps: each would wait 5 ms for the thread that computes.
    sys.setswitchinterval(SWITCH_S)
    with ExitStack() as stack:
        server = Server(settings, options, stack)
        server.expose(stop)
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
        self._tracer = open_tracer(
            settings, f"serve-{options.instance}", self._clock, self._metrics
        )
        stack.callback(self._tracer.close)
        self._live = Live(self._clock)
        self._costs = costs = Costs.unknown(options.batch_sizes())
        self._titles = Titles() if options.exposure.http_port is not None else None
        self._around = Surroundings(
            settings=settings,
            registry=self._registry,
            log=self._log,
            partitions=self._partitions,
            live=self._live,
            clock=self._clock,
            metrics=self._metrics,
            score_cost=costs.score,
            answer_cost=TogetherCost(costs.score, costs.finish, costs.deliver),
            titles=self._titles,
            rules=options.rules,
        )
        self._own = SetParts(CATALOG, self._around)
        stack.callback(self._own.close)
        self._sets = SetServices(self._own, lambda features: opened_set(features, self._around))
        stack.callback(self._sets.close)
        self._releases = self._release_feed()
        self._reloader = self._follow_releases()
        self._steps = SetRouter(self._sets, self._live)
        self._started = threading.Event()
        self._ports = f"metrics on port {self._port}"

    def expose(self, stop: threading.Event) -> None:
        """
        Open the network API, if one is wanted: it answers from now on. Where others may share its
        ports, once this process can answer as well as they do.

        Raises:
            Misconfigured: a port is taken, or a certificate or key is not usable.
        """
        exposure = self._options.exposure
        if not exposure.wanted:
            return
        if exposure.share_ports:
            self._wait_ready(stop)
        what = Exposed(
            settings=self._settings,
            registry=self._registry,
            # Services of its own: a caller that waits for its event must not hold up the log's.
            steps=SetRouter(self._sets, self._live, lambda one: one.beside),
            live=self._live,
            titles=self._titles or Titles(),
            started=self._started,
            clock=self._clock,
            metrics=self._metrics,
            tracer=self._tracer,
            trail=self._trail(),
        )
        network = expose(what, exposure, self._stack, stop.set)
        opened = {"http": network.http_port, "grpc": network.grpc_port}
        self._ports += "".join(f", {name} on port {port}" for name, port in opened.items() if port)

    def serve(self, stop: threading.Event) -> None:
        """
        Live after live of the pipeline, until told to stop.

        Its ends find their broker while the model is loaded; the group is joined after that, so
        that no other instance gives up partitions to one that cannot answer yet.
        """
        # In a thread: the network answers, and says that it is ready, without any ends too.
        waiting = threading.Thread(target=self._wait_ready, args=(stop,), name="ready", daemon=True)
        waiting.start()
        while not stop.is_set():
            try:
                with self._ends() as ends:
                    waiting.join()
                    consumer = Consumer(
                        ends, self._steps, self._policy(), self._clock, self._costs, self._metrics
                    )
                    self._announce(consumer, stop)
                    consumer.run(stop)
            except PositionMoved as error:
                log.warning("serve.moved", error=str(error))
                self._metrics.count("loop.moved", loop="serve")
            except Retryable as error:
                log.warning("serve.unavailable", error=str(error))
                self._metrics.count("loop.retries", loop="serve", error=type(error).__name__)
                self._clock.sleep(RETRY_S)

    def _wait_ready(self, stop: threading.Event) -> None:
        """Until the items are read and the released model is in memory, or has been refused."""
        if self._started.is_set():  # waited for before the ports were opened
            return
        end_s, items = self._clock.monotonic_s() + READY_S, self._own.items_ready
        while not stop.is_set() and not (items.is_set() and self._reloader.settled()):
            if self._clock.monotonic_s() > end_s:
                log.warning("serve.not_ready", items=items.is_set())
                break
            self._clock.sleep(0.02)
        self._started.set()

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
            max_size=size, objective_s=self._options.objective_s, max_pending=max(1024, 8 * size)
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
            source = KafkaGroupSource(
                settings.bootstrap_servers,
                serving_group(settings.topic_prefix),
                timeout_s=settings.timeout_s,
                instance_id=name,
                session_timeout_s=SESSION_S,
            )
            stack.callback(source.close)
            producers = self._producers(name, source)
            for producer in producers:
                stack.callback(producer.close)
            yield Ends(
                source=source,
                producers=producers,
                memory=self._memory(stack),
                dead_letters=self._around.dead_letters(letters),
                reader=RequestReader(self._registry, self._tracer),
                writer=AnswerWriter(
                    Codec(self._registry, Recommendation, topics.recommendations),
                    max_answer_bytes=int(self._settings.max_record_bytes * 0.9),
                ),
                requests_topic=topics.requests,
                trail=self._trail(serving_group(settings.topic_prefix)),
            )

    def _trail(self, group: str = "") -> Trail:
        """Of a pipeline of the log's `group`, or of the network's."""
        names = Names(group=group, answers_topic=self._topics.recommendations)
        padded = self._costs.score.padded
        return Trail(self._clock, self._metrics, self._tracer, names, padded)

    def _producers(self, name: str, source: GroupSource) -> list[TransactionalProducer]:
        settings = self._settings
        if self._options.delivery is Delivery.AT_LEAST_ONCE:
            plain = KafkaProducer(
                settings.bootstrap_servers,
                timeout_s=settings.timeout_s,
                max_record_bytes=settings.max_record_bytes,
            )
            return [AtLeastOnce(plain, source, settings.timeout_s)]
        return [
            KafkaTransactionalProducer(
                settings.bootstrap_servers,
                f"{name}-{turn}",
                timeout_s=settings.timeout_s,
                max_record_bytes=settings.max_record_bytes,
            )
            for turn in range(PRODUCERS)
        ]

    def _memory(self, stack: ExitStack) -> AnswerMemory | None:
        if self._options.delivery is Delivery.EXACTLY_ONCE:
            return None
        source = self._around.source()
        stack.callback(source.close)
        topic = self._topics.recommendations
        return AnswerMemory(DeliveredAnswers(self._log, source, self._registry, topic))

    def _release_feed(self) -> ReleaseFeed:
        codec = Codec(self._registry, Release, self._topics.model_releases)
        keys = Keyring.load(self._settings.keys_dir)
        source = self._around.source()
        self._stack.callback(source.close)
        feed = ReleaseFeed(source, codec, self._settings.model_name, keys, self._clock)
        feed.open(self._log)
        return feed

    def _follow_releases(self) -> Reloader:
        keys = Keyring.load(self._settings.keys_dir)
        registry = FolderRegistry(self._settings.models_dir, profile=self._settings.profile)
        options = self._options
        calls = CallPolicy(
            batch_sizes=options.batch_sizes(), threads=options.threads(), backend=options.backend
        )
        loader = RegistryLoader(
            registry,
            self._settings.model_name,
            keys,
            self._sets,
            calls,
            self._clock,
            self._metrics,
        )
        reloader = Reloader(self._releases, loader, self._live, self._clock, self._metrics)
        follow("releases", reloader.run, self._stack)
        return reloader
