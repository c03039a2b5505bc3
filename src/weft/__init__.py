"""weft: a service mesh for people who write services. See ARCHITECTURE.md for the way in."""

__version__ = "0.1.0"
