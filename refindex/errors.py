"""Every exception that refindex raises on purpose.

One root, :class:`RefindexError`, and one class for each thing a caller would do differently. Each
is also the builtin that a caller who does not know refindex would catch. Messages say what, where,
what was found, what was expected, and what to do next.
"""

from __future__ import annotations


class RefindexError(Exception):
    """Root of all errors raised by refindex."""


class FormatError(RefindexError, ValueError):
    """The bytes of a source or of a manifest are not what its format demands: damaged or hostile."""


class UnsupportedError(RefindexError, NotImplementedError):
    """The input is valid, but refindex cannot serve it (yet); the message names the feature."""


class NotFoundError(RefindexError, FileNotFoundError):
    """A source, an archive, a node or a chunk file that should be there is not."""


class ExistsError(RefindexError, FileExistsError):
    """The output exists and overwriting was not asked for."""


class ConflictError(RefindexError, RuntimeError):
    """Another writer committed a version meanwhile; nothing was written. Read the newest version and try again."""


class JoinError(RefindexError, ValueError):
    """Files that cannot be joined; the message lists all that stands in the way, in all of them."""


class SourceError(RefindexError, OSError):
    """A source could not be read: short read, failed request, no permission."""


class StaleSourceError(SourceError):
    """A source is no longer what was scanned: its size, time or etag differs from the record."""


class ManifestError(RefindexError, ValueError):
    """A manifest is damaged, incomplete, or of a format version this refindex does not read."""


class NotAllowedError(RefindexError, PermissionError):
    """References lead to places that nobody has allowed; the message says which, and what allows them."""


class DecodeError(RefindexError, ValueError):
    """The bytes of a chunk do not decode to what its encoding promises (checksum, size, filter)."""
