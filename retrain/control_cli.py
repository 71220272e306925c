"""Commands: `millstream monitor` and `millstream control`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from ingest.settings import Settings
    from retrain.campaign import Action
    from retrain.drift.monitor import WindowVerdict
    from retrain.watch import Watch

Surface = Annotated[
    str, typer.Option(help="Watch the answers on this surface only; empty: on all.")
]
_out = Console()
_err = Console(stderr=True)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(monitor)
    app.command()(control)


def monitor(
    context: typer.Context,
    surface: Surface = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a window.")
    ] = False,
) -> None:
    """
    Watch features as served, scores and clicks for drift; raise alerts until stopped.

    Example: `millstream monitor --surface shop-sim`
    """
    with _stopping() as stop, _watch(context.obj, surface) as watch:
        _err.print(f"ready: monitor, {watch.windows_to_go} windows to the reference")
        watch.run(stop, _printer(watch, as_json=as_json))


def control(
    context: typer.Context,
    surface: Surface = "",
) -> None:
    """
    Turn alarms into trainings, and trained versions into releases, step by step, until stopped.

    Example: `millstream control --surface shop-sim`
    """
    from features.catalog import TARGETS  # noqa: PLC0415 - keeps --help quick
    from inference.signature import load_key  # noqa: PLC0415
    from ingest.clock import SystemClock  # noqa: PLC0415
    from ingest.kafka import (  # noqa: PLC0415
        GATHERED,
        KafkaLog,
        KafkaSource,
        KafkaTransactionalProducer,
    )
    from ingest.topics import Topics  # noqa: PLC0415
    from retrain.control import Controller, Wiring  # noqa: PLC0415
    from retrain.profile import profile_of  # noqa: PLC0415
    from retrain.steps import Campaign  # noqa: PLC0415
    from retrain.trainer import ProcessTrainer  # noqa: PLC0415
    from schemas.registry import RemoteRegistry  # noqa: PLC0415

    settings: Settings = context.obj
    servers, timeout_s = settings.bootstrap_servers, settings.timeout_s
    profile = profile_of(settings.profile)
    campaign = Campaign(
        model_name=settings.model_name,
        profile=settings.profile,
        surface=surface,
        targets=TARGETS,
        trigger=profile.trigger,
        rollout=profile.rollout,
    )
    name = f"{settings.topic_prefix}control-{settings.model_name}"
    with (
        _stopping() as stop,
        closing(KafkaSource(servers, timeout_s=timeout_s, options=GATHERED)) as source,
        closing(KafkaTransactionalProducer(servers, name, timeout_s=timeout_s)) as producer,
        closing(ProcessTrainer(settings)) as trainer,
    ):
        wiring = Wiring(
            log=KafkaLog(servers, timeout_s),
            source=source,
            producer=producer,
            registry=RemoteRegistry(settings.registry_url, timeout_s),
            topics=Topics(settings.topic_prefix),
            clock=SystemClock(),
            key=load_key(settings.keys_dir),
            trainer=trainer,
        )
        controller = Controller(wiring, campaign)
        _err.print(f"ready: control of {settings.model_name}")
        controller.run(stop, _tell_action)


def _tell_action(action: Action) -> None:
    _out.print(str(action), highlight=False, markup=False)


@contextmanager
def _watch(settings: Settings, surface: str) -> Iterator[Watch]:
    from features.catalog import CATALOG, TARGETS  # noqa: PLC0415 - keeps --help quick
    from ingest.clock import SystemClock  # noqa: PLC0415
    from ingest.kafka import GATHERED, KafkaLog, KafkaProducer, KafkaSource  # noqa: PLC0415
    from ingest.topics import Topics  # noqa: PLC0415
    from retrain.drift.alerts import Origin  # noqa: PLC0415
    from retrain.profile import profile_of  # noqa: PLC0415
    from retrain.watch import Watch, Wiring  # noqa: PLC0415
    from schemas.registry import RemoteRegistry  # noqa: PLC0415

    servers, timeout_s = settings.bootstrap_servers, settings.timeout_s
    with (
        closing(KafkaSource(servers, timeout_s=timeout_s, options=GATHERED)) as source,
        closing(KafkaSource(servers, timeout_s=timeout_s)) as alerts,
        closing(KafkaProducer(servers, timeout_s=timeout_s)) as producer,
    ):
        wiring = Wiring(
            log=KafkaLog(servers, timeout_s),
            source=source,
            alerts=alerts,
            producer=producer,
            registry=RemoteRegistry(settings.registry_url, timeout_s),
            topics=Topics(settings.topic_prefix),
            clock=SystemClock(),
        )
        origin = Origin(
            model_name=settings.model_name,
            surface=surface,
            profile=settings.profile,
            fingerprint=CATALOG.fingerprint,
        )
        yield Watch(wiring, CATALOG, TARGETS, profile_of(settings.profile).monitor, origin)


def _printer(watch: Watch, *, as_json: bool) -> Callable[[WindowVerdict], None]:
    def as_line(verdict: WindowVerdict) -> None:
        typer.echo(json.dumps(_described(verdict, watch.windows_to_go)))

    def as_text(verdict: WindowVerdict) -> None:
        found = _described(verdict, watch.windows_to_go)
        togo = f" {found['windows_to_go']} to go" if found["windows_to_go"] else ""
        faults = f" faults: {', '.join(found['faults'])}" if found["faults"] else ""
        _out.print(
            f"{verdict.phase:<9}{togo} version {verdict.version}, {verdict.size} answers, "
            f"clicked {verdict.click_rate:.3f} (reference {verdict.reference_click_rate:.3f}), "
            f"evidence to act {verdict.evidence:.1f}, to warn {verdict.warning:.1f} "
            f"{verdict.subject}{faults}",
            highlight=False,
        )

    return as_line if as_json else as_text


def _described(verdict: WindowVerdict, windows_to_go: int) -> dict[str, Any]:
    return {
        "window": verdict.start_ms,
        "end": verdict.end_ms,
        "phase": str(verdict.phase),
        "windows_to_go": windows_to_go,
        "version": verdict.version,
        "answers": verdict.size,
        "evidence": verdict.evidence,
        "warning": verdict.warning,
        "subject": verdict.subject,
        "click_rate": verdict.click_rate,
        "reference_click_rate": verdict.reference_click_rate,
        "faults": [fault.name for fault in verdict.faults],
    }


@contextmanager
def _stopping() -> Iterator[Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [(number, signal.signal(number, lambda *_: stop.set())) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in before:
            signal.signal(number, handler)
