from ingest.clock import ManualClock
from ingest.log import Outgoing, TopicPartition
from ingest.memory import MemoryLog, MemoryProducer, MemorySource
from ingest.simulation import TICK_S, Live, Simulation
from ingest.simulator import Faults, Simulator, SimulatorPolicy
from ingest.tastes import WorldPolicy
from ingest.topics import Topics
from schemas.codec import Codec, Decoder
from schemas.columns import ColumnReader
from schemas.events import Recommendation, RecommendationRequest, ScoredItem, Status, UserEvent
from schemas.registry import MemoryRegistry

TOPICS = Topics("s-")
PARTITIONS = 2


class Shop:
    """A shop in memory that answers every request with what the shopper likes best."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.log = MemoryLog()
        for name in TOPICS.names():
            self.log.create_topic(name, PARTITIONS)
        self.registry = MemoryRegistry()
        policy = SimulatorPolicy(
            world=WorldPolicy(shoppers=20),
            sessions_per_hour=600,
            dwell_s=1,
            faults=Faults(malformed=0.05),
        )
        self.simulator = Simulator(policy, self.clock.now_ms())
        self.producer = MemoryProducer(self.log)
        self.simulation = Simulation(
            self.simulator,
            Live(
                log=self.log,
                source=MemorySource(self.log),
                producer=self.producer,
                registry=self.registry,
                topics=TOPICS,
                clock=self.clock,
            ),
        )
        self.requests = MemorySource(self.log)
        self.requests.assign({TopicPartition(TOPICS.requests, p): 0 for p in range(PARTITIONS)})

    def serve(self) -> None:
        codec = Codec(self.registry, Recommendation, TOPICS.recommendations)
        decoder = Decoder(self.registry, RecommendationRequest)
        while (batch := self.requests.poll(100, 0)) is not None:
            for request in map(decoder.decode, batch.values):
                best = self.simulator.world.best_items(request.user_id, request.k)
                reply = Recommendation(
                    request_id=request.request_id,
                    user_id=request.user_id,
                    event_time=request.event_time or 0,
                    status=Status.OK,
                    items=tuple(ScoredItem(item_id=i, score=1.0) for i in best),
                    surface=request.surface,
                )
                self.producer.send(
                    Outgoing(
                        topic=TOPICS.recommendations,
                        key=request.user_id.encode(),
                        value=codec.encode(reply),
                    )
                )


def test_shoppers_ask_are_answered_and_react() -> None:
    shop = Shop()
    for _ in range(1200):
        shop.simulation.turn(0)
        shop.serve()
        shop.clock.advance(TICK_S)
    tally = shop.simulator.tally
    assert tally.requests - tally.answered < 20
    assert tally.answered > 50
    source = MemorySource(shop.log)
    source.assign({TopicPartition(TOPICS.user_events, p): 0 for p in range(PARTITIONS)})
    values: list[bytes | None] = []
    while (batch := source.poll(10_000, 0)) is not None:
        values += batch.values
    decoded = ColumnReader(shop.registry, UserEvent).read(values)
    assert len(decoded.frame) == tally.events.total() + tally.duplicates
    assert len(decoded.bad) == tally.malformed > 0
    assert decoded.frame["event_id"].n_unique() == tally.events.total()
