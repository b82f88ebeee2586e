"""The CRC-32 of the spool: that of zlib-ng where it is installed, for a large frame in a twentieth of zlib's time."""

from __future__ import annotations

from zlib import crc32

try:
    from zlib_ng.zlib_ng import crc32 as _faster
except ImportError:  # nothing but time depends on it
    pass
else:
    crc32 = _faster

__all__ = ["crc32"]
