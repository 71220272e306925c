"""`millstream release export-litert`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ingest.terminal import Json, err, out, print_json


def register(release_app: typer.Typer) -> None:
    """Add the command to those of `release`."""
    release_app.command("export-litert")(export_litert)


def export_litert(
    context: typer.Context,
    version: Annotated[int, typer.Argument(min=1, help="A version of the registry.")],
    quantise: Annotated[
        bool, typer.Option("--quantise", help="Large weights as int8: smaller, less exact.")
    ] = False,
    as_json: Json = False,
) -> None:
    """
    Publish a version made of this one that LiteRT can serve too. Exit code 3 if it is not close.

    Example: `millstream release export-litert 3 --quantise`
    """
    from inference.registry import FolderRegistry  # noqa: PLC0415 - keeps --help quick
    from ingest.clock import SystemClock  # noqa: PLC0415
    from retrain import derived  # noqa: PLC0415 - loads TensorFlow

    settings = context.obj
    clock = SystemClock()
    registry = FolderRegistry(settings.models_dir, profile=settings.profile, clock=clock)
    with err.status(f"converting version {version}"):
        found = derived.derive(
            registry,
            settings.model_name,
            version,
            quantise=quantise,
            keys_dir=settings.keys_dir,
            clock=clock,
        )
    if as_json:
        print_json(asdict(found))
        return
    out.print(
        f"version {found.version} of version {found.parent}: {found.size_bytes} bytes, scores "
        f"within {found.parity.gap:.2g}, {found.parity.same_items:.1%} of the items the same",
        highlight=False,
    )
