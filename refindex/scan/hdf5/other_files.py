"""Other files that an HDF5 file names: external raw data, sources of virtual datasets, external links.

How libhdf5 finds them (``H5F_prefix_open_file`` in H5Fint.c, ``H5D__efl_read`` in H5Defl.c, and tried with 2.0.0):

- Sources of virtual datasets and external links: an absolute name as it is and, where that cannot be opened, its last
  part like a relative name. A relative name below the prefixes of the environment (``HDF5_VDS_PREFIX``,
  ``HDF5_EXT_PREFIX``), in the directory of the naming file, in the current working directory, and in the directory
  of the file that the naming one is a symbolic link to.
- External raw data: an absolute name as it is; a relative one below ``HDF5_EXTFILE_PREFIX``, else in the *current
  working directory*, wherever the HDF5 file is. With the prefix ``${ORIGIN}`` it is the HDF5 file's directory: that
  is where writers put it, and what is done here.

A name may lead anywhere on this machine: what is not in or below the folders that the person who scans has named, or
allowed, is not followed (see :mod:`refindex.access.trust`).

What a name means must not depend on where a scan is started or on the environment: those places are never
looked up, and a name that libhdf5 would find in one of them *instead* is refused.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from refindex.access import urls
from refindex.access.files import StorageOptions, open_reader
from refindex.access.trust import Allowed
from refindex.errors import NotFoundError, UnsupportedError

VDS_PREFIX, LINK_PREFIX, RAW_PREFIX = "HDF5_VDS_PREFIX", "HDF5_EXT_PREFIX", "HDF5_EXTFILE_PREFIX"


def locate(
    name: str,
    origin: str,
    *,
    prefix: str,
    storage_options: StorageOptions = None,
    allowed: Allowed | None = None,
) -> str:
    """The absolute URL of a file that the file at the URL ``origin`` names.

    ``prefix`` is the variable of the environment that would change the meaning; ``allowed`` says where it may be,
    anywhere if None.

    Raises
    ------
    UnsupportedError
        If it is not there, or where it may not be; if libhdf5 would take another one here and now.
    """
    url = _locate(name, origin, prefix=prefix, storage_options=storage_options, allowed=allowed)
    check_place(url, allowed)
    return url


def check_place(url: str, allowed: Allowed | None) -> None:
    """Refuse a file that may not be read.

    Raises
    ------
    UnsupportedError
        Naming it, and what allows it.
    """
    objection = None if allowed is None else allowed.objection(url)
    if objection is not None:
        raise UnsupportedError(objection)


def _locate(name: str, origin: str, *, prefix: str, storage_options: StorageOptions, allowed: Allowed | None) -> str:
    absolute = posixpath.isabs(name)
    if not name or "\0" in name:
        raise UnsupportedError(f"the file name {name!r}")
    if not urls.is_local(origin):
        return _locate_remote(name, origin, prefix=prefix, storage_options=storage_options, allowed=allowed)
    if absolute and Path(name).is_file():
        return urls.absolute(_plain(name))
    if absolute and prefix == RAW_PREFIX:
        raise UnsupportedError(f"the file {name} is not there")
    ambient = os.environ.get(prefix, "")
    if ambient and ambient != "${ORIGIN}":
        raise UnsupportedError(f"which file {name!r} is depends on the environment variable {prefix}: unset it to scan")
    relative = posixpath.basename(name) if absolute else name
    here = urls.local_path(origin)
    candidates = [here.parent / relative]
    if prefix != RAW_PREFIX:
        candidates.append(Path(os.path.realpath(here)).parent / relative)
    found = next((path for path in candidates if path.is_file()), None)
    current = Path.cwd() / relative
    if (found is None or found != candidates[0] or prefix == RAW_PREFIX) and current.is_file() and not ambient:
        # libhdf5 would take the one in the current directory.
        if found is None:
            raise UnsupportedError(
                f"the file {name} is not beside {here}; there is one in the current directory, which libhdf5 would "
                "take, but a manifest must not depend on where it was made: put the file beside the other"
            )
        if not found.samefile(current):
            raise UnsupportedError(
                f"the file {name} is both {found} and, where libhdf5 looks first, {current}: scan elsewhere"
            )
    if found is None:
        raise UnsupportedError(f"the file {name} is not there (looked in {candidates[0].parent})")
    return urls.absolute(_plain(str(found)))


def _plain(path: str) -> str:
    """A path without ``..``: taken out by name alone, it would lead elsewhere behind a symbolic link."""
    if ".." not in path.split("/"):
        return path
    parent, name = os.path.split(path)
    return os.path.join(os.path.realpath(parent), name)  # noqa: PTH118


def _locate_remote(
    name: str, origin: str, *, prefix: str, storage_options: StorageOptions, allowed: Allowed | None
) -> str:
    """Absolute names are paths of the machine that wrote the file: only their last part can be beside it."""
    if posixpath.isabs(name) and prefix == RAW_PREFIX:
        raise UnsupportedError(f"the file {name}: an absolute name in a file that is not on this machine")
    relative = posixpath.basename(name) if posixpath.isabs(name) else name
    links, at = urls.links_of(origin)
    head = links[at]
    protocol, separator, path = head.partition("://")
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(path), relative))
    if joined.startswith(".."):
        raise UnsupportedError(f"the file {name}: outside of {urls.parent(head)}")
    links[at] = f"{protocol}{separator}{joined}"
    url = "::".join(links)
    check_place(url, allowed)  # before anything is asked of a server
    try:
        open_reader(url, storage_options).identity()
    except NotFoundError as error:
        raise UnsupportedError(f"the file {name} is not there (looked for {url})") from error
    return url


def file_key(url: str) -> str:
    """The same for all names of one file, symbolic links included."""
    return os.path.realpath(urls.local_path(url)) if urls.is_local(url) else url
