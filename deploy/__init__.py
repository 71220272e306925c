"""How it is run: command line, embedded stack, demo."""


def own_version() -> str:
    """The installed distribution's version; a checkout that was not installed has none."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - keeps --help quick

    try:
        return version("millstream")
    except PackageNotFoundError:
        return "from source"
