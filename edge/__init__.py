"""The edge gateway: takes analytics events over HTTP, stores them durably, delivers them to sinks."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("edge-gateway")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
