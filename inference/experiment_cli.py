"""`millstream experiment ...`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingest.settings import Settings
from ingest.terminal import Json, err, out, print_json, print_table
from schemas.errors import Misconfigured, Refused
from schemas.events import Experiment, ExperimentArm, Release

if TYPE_CHECKING:
    from inference.experiment_report import Report

experiment_app = typer.Typer(no_args_is_help=True, help="Compare versions of the model on users.")

Name = Annotated[str, typer.Argument(help="Salts the choice of users: a new one for a new try.")]
Share = Annotated[
    float, typer.Option(min=0.01, max=100, help="Percent of the users who take part.")
]
Reason = Annotated[str, typer.Option(help="Kept in the release and its log.")]


@experiment_app.command()
def start(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Salts the choice of users: a new one for a new try.")
    ],
    arm: Annotated[
        list[str], typer.Option(help="NAME=VERSION or NAME=VERSION:WEIGHT; repeat. First: control.")
    ],
    share: Share = 100.0,
    reason: Reason = "by operator",
    as_json: Json = False,
) -> None:
    """
    Give each user who takes part one arm, for as long as the experiment runs (A/B).

    Canary users take no part, nor those of an experiment that began earlier.

    Example: `millstream experiment start deeper --arm control=3 --arm deep=4 --share 20`
    """
    arms = tuple(map(_arm, arm))
    experiment = Experiment(name=name, arms=arms, share=_basis_points(share))
    _start(context.obj, experiment, reason, as_json)


@experiment_app.command()
def interleave(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Salts the choice of users: a new one for a new try.")
    ],
    a: Annotated[int, typer.Option(min=1, help="A version.")],
    b: Annotated[int, typer.Option(min=1, help="Another one.")],
    share: Share = 100.0,
    reason: Reason = "by operator",
    as_json: Json = False,
) -> None:
    """
    Draft two versions' items into one list: who is chosen from more is preferred.

    Needs far fewer users than an A/B test to tell which of two rankings is better.

    Example: `millstream experiment interleave quick-look --a 3 --b 4 --share 5`
    """
    arms = (ExperimentArm(name="a", version=a), ExperimentArm(name="b", version=b))
    experiment = Experiment(name=name, arms=arms, share=_basis_points(share), interleaved=True)
    _start(context.obj, experiment, reason, as_json)


@experiment_app.command("list")
def list_experiments(context: typer.Context, as_json: Json = False) -> None:
    """
    The experiments that run, in the order in which they take their users.

    Example: `millstream experiment list`
    """
    running = _running(context.obj)
    if as_json:
        print_json([_plain(one) for one in running])
    elif not running:
        err.print("no experiment runs: `millstream experiment start` begins one")
    else:
        _print_experiments(running)


@experiment_app.command()
def stop(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Of an experiment that runs.")],
    reason: Reason = "by operator",
    as_json: Json = False,
) -> None:
    """
    End an experiment: its users get the stable version again.

    Example: `millstream experiment stop deeper --reason "decided"`
    """
    from inference import operator  # noqa: PLC0415 - keeps --help quick

    _print_release(operator.stop_experiment(context.obj, name, reason), as_json)


@experiment_app.command()
def report(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Of an experiment that runs.")],
    hours: Annotated[
        float, typer.Option(min=0, help="Lists of the last so many hours; 0: since it began.")
    ] = 0.0,
    window_minutes: Annotated[
        float, typer.Option(min=0.01, help="How soon a choice must follow its list.")
    ] = 30.0,
    as_json: Json = False,
) -> None:
    """
    Compare the arms by what users chose of their lists.

    Exit code 3 if users were not split as the weights say: then no number is to be trusted.

    Example: `millstream experiment report deeper --hours 48`
    """
    settings: Settings = context.obj
    with err.status("reading answers and events"):
        found = _report(settings, name, hours, window_minutes)
    if as_json:
        print_json(_told(found))
    else:
        _print_report(found)
    if not found.trusted:
        raise Refused(
            f"experiment {name!r}: users are not split as the weights say (p = "
            f"{found.mismatch_p:.1g}); look for answers that are lost or retried in one arm only"
        )


def _report(settings: Settings, name: str, hours: float, window_minutes: float) -> Report:
    from inference.experiment_log import ExperimentLog  # noqa: PLC0415 - keeps --help quick
    from inference.experiment_report import report as compared  # noqa: PLC0415
    from ingest.clock import SystemClock  # noqa: PLC0415
    from ingest.kafka import GATHERED, KafkaLog, KafkaSource  # noqa: PLC0415
    from ingest.topics import Topics  # noqa: PLC0415
    from schemas.registry import RemoteRegistry  # noqa: PLC0415

    experiment = next((one for one in _running(settings) if one.name == name), None)
    if experiment is None:
        raise Refused(f"no experiment {name!r} runs: `millstream experiment list` shows them")
    since_ms = experiment.started_at
    if hours:
        since_ms = max(since_ms, SystemClock().now_ms() - round(hours * 3_600_000))
    servers, timeout_s = settings.bootstrap_servers, settings.timeout_s
    source = KafkaSource(servers, timeout_s=timeout_s, options=GATHERED)
    try:
        lists, choices = ExperimentLog(
            KafkaLog(servers, timeout_s),
            source,
            RemoteRegistry(settings.registry_url, timeout_s),
            Topics(settings.topic_prefix),
        ).read(experiment, since_ms, round(window_minutes * 60_000))
    finally:
        source.close()
    return compared(experiment, lists, choices)


def _start(settings: Settings, experiment: Experiment, reason: str, as_json: bool) -> None:
    from inference import operator  # noqa: PLC0415 - keeps --help quick

    _print_release(operator.start_experiment(settings, experiment, reason), as_json)


def _running(settings: Settings) -> tuple[Experiment, ...]:
    from inference import operator  # noqa: PLC0415 - keeps --help quick

    release = operator.state(settings).release
    return release.experiments if release else ()


def _arm(text: str) -> ExperimentArm:
    name, _, rest = text.partition("=")
    version, _, weight = rest.partition(":")
    try:
        return ExperimentArm(name=name, version=int(version), weight=int(weight or 1))
    except ValueError:
        raise Misconfigured(f"--arm is NAME=VERSION or NAME=VERSION:WEIGHT, got {text!r}") from None


def _basis_points(percent: float) -> int:
    return round(100 * percent)


def _print_release(release: Release, as_json: bool) -> None:
    if as_json:
        print_json({"generation": release.generation, "experiments": _all(release)})
        return
    out.print(f"generation {release.generation}: {release.reason}", highlight=False)
    _print_experiments(release.experiments)


def _all(release: Release) -> list[dict[str, Any]]:
    return [_plain(one) for one in release.experiments]


def _plain(experiment: Experiment) -> dict[str, Any]:
    return asdict(experiment)


def _print_experiments(experiments: tuple[Experiment, ...]) -> None:
    rows = [
        (
            one.name,
            "interleaved" if one.interleaved else "A/B",
            f"{one.share / 100:g} %",
            ", ".join(
                f"{arm.name}: version {arm.version}"
                + (f" (x {arm.weight})" if arm.weight != 1 else "")
                for arm in one.arms
            ),
        )
        for one in experiments
    ]
    if rows:
        print_table(("experiment", "kind", "users", "arms"), rows)


def _told(found: Report) -> dict[str, Any]:
    return {**asdict(found), "trusted": found.trusted}


def _print_report(found: Report) -> None:
    if found.preference is not None:
        one, (a, b) = found.preference, found.experiment.arms
        print_table(
            ("", "users who prefer it"),
            (
                (f"{a.name}: version {a.version}", str(one.first)),
                (f"{b.name}: version {b.version}", str(one.second)),
                ("neither", str(one.ties)),
            ),
        )
        out.print(
            f"share of votes for {b.name}: {one.share:.1%} [{one.low:.1%}, {one.high:.1%}], "
            f"p = {one.p:.2g}",
            highlight=False,
        )
        return
    rows = [
        (
            one.name,
            str(one.version),
            f"{one.users:,}",
            f"{one.lists:,}",
            f"{one.rate:.2%}",
            f"{one.difference:+.2%} [{one.low:+.2%}, {one.high:+.2%}]" if at else "",
            f"{one.p:.2g}" if at else "",
        )
        for at, one in enumerate(found.arms)
    ]
    titles = ("arm", "version", "users", "lists", "chosen from", "difference, 95 %", "p")
    print_table(titles, rows)
    out.print(f"split of the users: p = {found.mismatch_p:.2g}", highlight=False)
