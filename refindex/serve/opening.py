"""How an archive is opened, as a value: what stores and filesystems carry to other processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refindex.access import urls
from refindex.access.files import Stale
from refindex.access.remembered import remembered
from refindex.access.trust import Allow, Allowed
from refindex.errors import NotFoundError
from refindex.model.manifest import Manifest
from refindex.scan import is_source, scan_source
from refindex.serve.keys import ManifestKeys
from refindex.serve.resolver import Resolver
from refindex.storage import ManifestReader, MemoryReader, find_reader


@dataclass(frozen=True, kw_only=True)
class Opening:
    """An archive and how to open it.

    Parameters
    ----------
    url:
        Absolute URL of a manifest, or of a source that is scanned on the spot.
    version:
        Snapshot of a stored manifest; filled in when it is first opened, so that copies in other processes
        read the same.
    manifest:
        A manifest in memory, instead of a stored one.
    storage_options:
        Options for fsspec.
    stale:
        What to do when a source is not what was scanned.
    allow:
        Prefixes, besides the folder that holds it, that the archive may read. What the user has named for it before
        is added, so that copies in other processes, and on other machines, read the same.
    """

    url: str = ""
    version: int | None = None
    manifest: Manifest | None = field(default=None, repr=False)
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    stale: Stale = "error"
    allow: Allow | Allowed = None

    def __post_init__(self) -> None:
        allowed = self.allow if isinstance(self.allow, Allowed) else Allowed.of(self.allow)
        if self.url and self.manifest is None:
            allowed = allowed.adding(remembered(self.url))
        object.__setattr__(self, "allow", allowed)

    @property
    def allowed(self) -> Allowed | None:
        """Where the archive may read; None for a manifest in memory, which may read anything."""
        if self.manifest is not None or not isinstance(self.allow, Allowed):
            return None
        return self.allow.beside(self.url)

    def __str__(self) -> str:
        return urls.display(self.url) if self.url else "memory"

    def __hash__(self) -> int:
        return hash((self.url, self.version, self.stale, id(self.manifest)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Opening):
            return NotImplemented
        return (self.url, self.version, self.stale, self.allow, dict(self.storage_options)) == (
            other.url,
            other.version,
            other.stale,
            other.allow,
            dict(other.storage_options),
        ) and _same_manifest(self.manifest, other.manifest)

    def reader(self, *, check: bool = True) -> ManifestReader:
        """Open the manifest.

        ``check=False`` leaves it to the caller to hold it to what it may read, before anything of that is read.

        Raises
        ------
        NotFoundError
            If there is neither a manifest nor a source.
        NotAllowedError
            If it refers to files that it may not read.
        """
        if self.manifest is not None:
            return MemoryReader(self.manifest, url="")
        found = find_reader(self.url, version=self.version, storage_options=self.storage_options)
        if found is not None:
            if check:
                self._check(found)
            return found
        if not is_source(self.url, self.storage_options):
            if urls.is_local(self.url) and urls.local_path(self.url).is_dir():
                raise NotFoundError(
                    f"{self}: a folder, but neither a refindex archive (it has no _delta_log) nor a Zarr store"
                )
            raise NotFoundError(f"{self}: neither a refindex archive nor an HDF5, NetCDF or Zarr source")
        return MemoryReader(scan_source(self.url, storage_options=self.storage_options, allowed=self.allowed))

    def _check(self, reader: ManifestReader) -> None:
        """Hold a stored manifest to what it may read, before anybody has it."""
        allowed = self.allowed
        if allowed is None or allowed.everything:
            return
        try:
            allowed.check((source.url for source in reader.sources), str(self))
        except BaseException:
            reader.close()
            raise


def _same_manifest(one: Manifest | None, other: Manifest | None) -> bool:
    if one is other:
        return True
    if one is None or other is None or one.sources != other.sources:
        return False
    if {p: n.document for p, n in one.nodes.items()} != {p: n.document for p, n in other.nodes.items()}:
        return False
    return all(a.chunks.same_references(other.arrays[p].chunks) for p, a in one.arrays.items())


def open_keys(archive: Opening) -> ManifestKeys:
    """The keys of an archive."""
    return ManifestKeys(open_resolver(archive, archive.reader()))


def open_resolver(archive: Opening, reader: ManifestReader) -> Resolver:
    """What reads chunks of an archive that is open."""
    # What was scanned in this process may read what the scan has found.
    allowed = None if isinstance(reader, MemoryReader) else archive.allowed
    return Resolver(reader, storage_options=archive.storage_options, stale=archive.stale, allowed=allowed)
