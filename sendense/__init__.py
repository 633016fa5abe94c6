"""Sendense's public face: the wire contract (`sendense.v1`) and the command line (`sendense.cli`)."""

__version__ = "0.1.0"
