"""How it is run: command line, embedded stack, demo."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """The installed distribution's version; a checkout that was not installed has none."""
    try:
        return version("millstream")
    except PackageNotFoundError:
        return "from source"
