"""Which weft this is."""

from importlib.metadata import PackageNotFoundError, version


def weft_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("weft")
    except PackageNotFoundError:  # run from a source tree that nobody has installed
        return "0+source"
