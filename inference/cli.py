"""`millstream serve`, `millstream request`, `millstream release ...`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from inference import early
from inference.backend import Runtime, chosen
from inference.delivery import Delivery
from inference.experiment_cli import experiment_app
from ingest.settings import Settings
from ingest.terminal import Json, err, out, print_json, print_table
from schemas.errors import Misconfigured
from schemas.events import Offset

NETWORK = "Network"  # the part of `serve --help` about it

release_app = typer.Typer(no_args_is_help=True, help="Which version of the model serves.")


def register(app: typer.Typer) -> None:
    """Add this package's commands."""
    app.command()(serve)
    app.command()(request)
    app.add_typer(release_app, name="release")
    app.add_typer(experiment_app, name="experiment")


def serve(
    context: typer.Context,
    *,
    max_batch: Annotated[int, typer.Option(min=1, help="Requests in one model call.")] = 256,
    objective_ms: Annotated[
        float,
        typer.Option(
            min=0, help="In which a request without deadline is to be answered, from its timestamp."
        ),
    ] = 25.0,
    delivery: Annotated[
        Delivery, typer.Option(help="at-least-once: sooner, and a crash repeats some answers.")
    ] = Delivery.EXACTLY_ONCE,
    model_threads: Annotated[
        int, typer.Option(min=0, help="Threads of one model call; 0: half of the processors.")
    ] = 0,
    backend: Annotated[
        Runtime,
        typer.Option(help="What runs models: TensorFlow or LiteRT here, or a server elsewhere."),
    ] = Runtime.SAVED_MODEL,
    remote: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a TensorFlow Serving of the same models, over gRPC."),
    ] = None,
    remote_tls_roots: Annotated[
        Path | None,
        typer.Option(help="Whom to trust there, PEM; without it there is no TLS.", dir_okay=False),
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option(help="TOML file of business rules for what is retrieved.", dir_okay=False),
    ] = None,
    metrics_port: Annotated[int, typer.Option(help="For Prometheus; 0: a free one.")] = 0,
    instance: Annotated[
        str,
        typer.Option(help="Name of this member: unique in its group, the same after a restart."),
    ] = "0",
    http_port: Annotated[
        int | None, typer.Option(help="Serve REST too; 0: a free port.", rich_help_panel=NETWORK)
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="Serve gRPC too; 0: a free port.", rich_help_panel=NETWORK)
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on.", rich_help_panel=NETWORK)
    ] = "127.0.0.1",
    share_ports: Annotated[
        bool,
        typer.Option(
            "--share-ports",
            help="Other processes of this machine may serve the same ports, which are opened once "
            "this one can answer: start the next one, then stop this one.",
            rich_help_panel=NETWORK,
        ),
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate with its chain, PEM.", rich_help_panel=NETWORK)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Its private key, PEM.", rich_help_panel=NETWORK)
    ] = None,
    token_secret: Annotated[
        Path | None,
        typer.Option(help="File with the secret of HS256 tokens.", rich_help_panel=NETWORK),
    ] = None,
    token_jwks: Annotated[
        Path | None,
        typer.Option(
            help="JWKS file with the public keys of RS256, ES256 and EdDSA tokens.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    token_audience: Annotated[
        str, typer.Option(help="For whom tokens must be.", rich_help_panel=NETWORK)
    ] = "millstream",  # noqa: S107 - no password
    token_issuer: Annotated[
        str | None, typer.Option(help="Who must have made tokens.", rich_help_panel=NETWORK)
    ] = None,
    anonymous: Annotated[
        bool,
        typer.Option("--anonymous", help="Let everybody in who connects.", rich_help_panel=NETWORK),
    ] = False,
    quota: Annotated[
        str | None,
        typer.Option(
            help="Calls of one client, such as '100/second; 5000/hour'.", rich_help_panel=NETWORK
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="A web page's origin that may call; repeat.", rich_help_panel=NETWORK),
    ] = None,
    max_body_bytes: Annotated[
        int, typer.Option(min=1, help="Largest call.", rich_help_panel=NETWORK)
    ] = 4 << 20,
) -> None:
    """
    Answer recommendation requests until stopped: those of the log, and over the network if wanted.

    Example: `millstream serve --max-batch 256 --objective-ms 25`

    Example: `millstream serve --http-port 8501 --grpc-port 8500`

    Example: `millstream serve --backend remote --remote models.internal:8500`
    """
    early.collect_rarely()
    early.limit_blas(early.model_threads(model_threads))
    if backend is Runtime.SAVED_MODEL:
        early.map_tensorflow()
    from inference import exposure, server  # noqa: PLC0415 - keeps --help quick
    from inference.rules import read_rules  # noqa: PLC0415

    options = server.Options(
        max_batch=max_batch,
        objective_s=objective_ms / 1000,
        model_threads=model_threads,
        metrics_port=metrics_port,
        instance=instance,
        delivery=delivery,
        rules=read_rules(rules) if rules else (),
        backend=chosen(backend, remote, remote_tls_roots),
        exposure=exposure.Exposure(
            http_port=http_port,
            grpc_port=grpc_port,
            host=host,
            share_ports=share_ports,
            tls_cert=tls_cert,
            tls_key=tls_key,
            secret_file=token_secret,
            jwks_file=token_jwks,
            audience=token_audience,
            issuer=token_issuer,
            anonymous=anonymous,
            quota=quota,
            origins=tuple(cors_origin or ()),
            max_body_bytes=max_body_bytes,
        ),
    )
    server.run(context.obj, options)


def request(
    context: typer.Context,
    user: Annotated[str, typer.Option("--user", "-u", help="For whom.")],
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    after_offset: Annotated[
        str | None, typer.Option(help="PARTITION:OFFSET of an event the answer must include.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="How long to wait for the answer.")] = 10.0,
    as_json: Json = False,
) -> None:
    """
    Ask for recommendations for a user, and print their titles.

    Example: `millstream request --user 42 -k 5`
    """
    from inference import client  # noqa: PLC0415 - keeps --help quick

    settings: Settings = context.obj
    asked = client.Question(user_id=user, k=k, after_offset=_offset(after_offset))
    with err.status("waiting for the answer"):
        told = client.ask(replace(settings, timeout_s=timeout_s), asked)
    if as_json:
        print_json(
            {
                **asdict(told.answer),
                "titles": {i.item_id: told.titles.get(i.item_id, "") for i in told.answer.items},
                "took_ms": told.took_ms,
                "trace_id": told.trace_id,
            }
        )
        return
    answer = told.answer
    rows = [
        (str(place), item.item_id, told.titles.get(item.item_id, ""), f"{item.score:.3f}")
        for place, item in enumerate(answer.items, 1)
    ]
    print_table(("", "item", "title", "score"), rows)
    told_by = f"{answer.model_name} version {answer.model_version}"
    notes = [
        answer.status.value,
        answer.message or "",
        told_by if answer.model_name else "",
        f"fallback: {answer.fallback_reason}" if answer.fallback_reason else "",
        "stale" if answer.stale else "",
        f"{told.took_ms} ms",
    ]
    out.print(", ".join(note for note in notes if note), highlight=False)


@release_app.command("list")
def list_releases(context: typer.Context, as_json: Json = False) -> None:
    """
    The versions in the registry, and which of them serve.

    Example: `millstream release list`
    """
    from inference import operator  # noqa: PLC0415 - keeps --help quick

    state = operator.state(context.obj)
    if as_json:
        print_json({"release": _plain(state.release), "versions": list(map(_plain, state.rows))})
        return
    if not state.rows and state.release is None:
        err.print("no versions yet: `millstream train` makes one")
        return
    rows = [
        (
            str(row.version),
            row.role,
            row.profile,
            row.created,
            ", ".join(f"{m.name} {m.value:.4g}" for m in row.metrics),
            row.note,
        )
        for row in state.rows
    ]
    print_table(("version", "role", "profile", "created", "metrics", ""), rows)
    if state.release is not None:
        out.print(f"generation {state.release.generation}: {state.release.reason}", highlight=False)


@release_app.command("create-key")
def create_key(context: typer.Context, as_json: Json = False) -> None:
    """
    Make the key pair that signs models and releases, if there is none. Keep the `.key` file secret.

    Example: `millstream release create-key`
    """
    from inference.signature import ensure_key  # noqa: PLC0415 - keeps --help quick

    settings: Settings = context.obj
    key = ensure_key(settings.keys_dir)
    if as_json:
        print_json({"key_id": key.key_id, "keys_dir": str(settings.keys_dir)})
    else:
        out.print(f"key {key.key_id} in {settings.keys_dir}", highlight=False)


@release_app.command()
def promote(
    context: typer.Context,
    version: Annotated[int, typer.Argument(min=1, help="A version of the registry.")],
    reason: Annotated[str, typer.Option(help="Kept in the release and its log.")] = "by operator",
    as_json: Json = False,
) -> None:
    """
    Let a version serve everybody, by a new signed release.

    Example: `millstream release promote 3 --reason "checked by hand"`
    """
    from inference import operator  # noqa: PLC0415 - keeps --help quick

    _print_release(operator.promote(context.obj, version, reason), as_json)


@release_app.command()
def rollback(
    context: typer.Context,
    reason: Annotated[str, typer.Option(help="Kept in the release and its log.")] = "by operator",
    as_json: Json = False,
) -> None:
    """
    Take the newest step back: end the canary, or serve the previous version again.

    Example: `millstream release rollback --reason "clicks fell"`
    """
    from inference import operator  # noqa: PLC0415 - keeps --help quick

    _print_release(operator.rollback(context.obj, reason), as_json)


def _offset(text: str | None) -> Offset | None:
    if text is None:
        return None
    partition, _, offset = text.partition(":")
    try:
        return Offset(partition=int(partition), offset=int(offset))
    except ValueError:
        raise Misconfigured(f"--after-offset is PARTITION:OFFSET, got {text!r}") from None


def _print_release(release: Any, as_json: bool) -> None:
    if as_json:
        print_json(_plain(release))
    else:
        out.print(
            f"generation {release.generation}: stable {release.stable}, "
            f"previous {release.previous or 'none'}, canary {release.canary or 'none'}",
            highlight=False,
        )


def _plain(value: Any) -> Any:
    """A record as JSON can hold it."""
    if value is None:
        return None
    return {
        name: field.hex() if isinstance(field, bytes) else field
        for name, field in asdict(value).items()
    }
