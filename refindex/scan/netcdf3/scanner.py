"""One NetCDF classic file -> one manifest.

What cannot be served goes into the report with its name and the reason, and never takes the rest of the file with it;
only a header that cannot be trusted does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from refindex.access import urls
from refindex.access.blocks import RemoteBlocks
from refindex.access.files import StorageOptions, open_reader, reading
from refindex.errors import FormatError, UnsupportedError
from refindex.model.manifest import Array, Manifest, Node, ReportEntry, ScanReport, Source, Status
from refindex.model.zarr_v3 import dumps, group_document
from refindex.scan.naming import DimensionNames
from refindex.scan.netcdf3.attributes import read_attributes
from refindex.scan.netcdf3.header import Header, read_header
from refindex.scan.netcdf3.inline import read_inline
from refindex.scan.netcdf3.layout import Layout, Placed, lay_out
from refindex.scan.netcdf3.variable import (
    References,
    check,
    compile_variable,
    is_inline,
    keep,
    nbytes,
    refer,
    status,
)


@dataclass(slots=True, kw_only=True)
class _Scan:
    """One file being scanned; ``where`` is how its URL is written for people."""

    source: Source
    where: str
    arrays: dict[str, Array] = field(default_factory=dict)
    entries: list[ReportEntry] = field(default_factory=list)

    def report(self, path: str, status: Status, reason: str = "") -> None:
        self.entries.append(ReportEntry(source=self.where, path=f"/{path}", status=status, reason=reason))


def scan_netcdf3(
    source: Source,
    *,
    variables: Collection[str] | None = None,
    storage_options: StorageOptions = None,
    blocks: RemoteBlocks | None = None,
) -> Manifest:
    """Index one NetCDF classic file.

    Parameters
    ----------
    source:
        The file's URL and identity.
    variables:
        Names of the variables wanted, with the coordinates of their dimensions; None for all.
    blocks:
        The file, if it is remote and already open.

    Raises
    ------
    FormatError
        If its header is damaged or contradicts itself.
    UnsupportedError
        If its header is larger than any that is written on purpose.
    SourceError
        If it cannot be read.
    """
    name = urls.display(source.url)
    if blocks is None and not urls.is_local(source.url):
        blocks = RemoteBlocks.open(source.url, storage_options)
    reader = open_reader(source.url) if blocks is None else blocks
    with reading(source.url, "reading its header"):
        header = read_header(reader.read, name=name, size=source.size)
    layout = lay_out(header, name=name, size=source.size)
    scan = _Scan(source=source, where=name)
    root = _root(scan, header, layout)
    wanted = _servable(scan, _selected(header, layout, variables))
    dims = _dimension_names(scan, header, wanted)
    kept = [placed for placed, names in zip(wanted, dims, strict=True) if _is_kept(placed, names)]
    data = read_inline(kept, source=source, reader=reader, head=header.head)
    inline = {placed.variable.name: values for placed, values in zip(kept, data, strict=True)}
    for placed, names in zip(wanted, dims, strict=True):
        path = placed.variable.name
        values = inline.get(path, b"")
        _add(scan, placed, names, keep(placed, values) if values or not nbytes(placed) else refer(placed))
    if variables is None:
        _report_dimensions(scan, header)
    if blocks is not None:
        blocks.finish()
    return Manifest(
        groups={"": root},
        arrays=scan.arrays,
        sources=(source,),
        report=ScanReport(entries=tuple(scan.entries)),
    )


def _root(scan: _Scan, header: Header, layout: Layout) -> Node:
    for note in header.notes:
        scan.report("", Status.NOTE, note)
    if header.records is None:
        scan.report(
            "",
            Status.NOTE,
            f"the header leaves the number of records to the size of the file: {layout.records} are complete",
        )
    attributes = read_attributes(header.attributes)
    for note in attributes.notes:
        scan.report("", Status.NOTE, note)
    return Node(path="", document=dumps(group_document(attributes.values)), attribute_types=attributes.types)


def _selected(header: Header, layout: Layout, variables: Collection[str] | None) -> Sequence[Placed]:
    if variables is None:
        return layout.variables
    asked = {name.strip("/") for name in variables}
    chosen = [placed for placed in layout.variables if placed.variable.name in asked]
    axes = {header.dimensions[index].name for placed in chosen for index in placed.variable.dimensions}
    return [placed for placed in layout.variables if placed.variable.name in asked | axes]


def _servable(scan: _Scan, selected: Sequence[Placed]) -> list[Placed]:
    """The variables that can be served; the others are reported."""
    counts = Counter(placed.variable.name for placed in selected)
    servable = []
    for placed in selected:
        name = placed.variable.name
        try:
            if counts[name] > 1:
                raise FormatError(f"{counts[name]} variables have this name")
            # The specification allows neither; no path in a hierarchy can be spelled like that.
            if "/" in name or not name.strip(".") or name == "zarr.json":
                raise UnsupportedError(f"no Zarr node can be called {name!r}")
            check(placed, scan.source.size)
        except UnsupportedError as error:
            scan.report(name, Status.UNSERVED, str(error))
        except FormatError as error:
            scan.report(name, Status.UNSERVED, f"damaged: {error}")
        else:
            servable.append(placed)
    return servable


def _dimension_names(scan: _Scan, header: Header, variables: Sequence[Placed]) -> list[tuple[str, ...]]:
    """Dimension names of the variables; the report says which are not the file's own."""
    chosen = DimensionNames()
    result: dict[int, tuple[str, ...]] = {}
    given = [tuple(header.dimensions[i].name for i in placed.variable.dimensions) for placed in variables]
    # Coordinates decide first what length a name has.
    for number in sorted(range(len(variables)), key=lambda i: given[i] != (variables[i].variable.name,)):
        placed = variables[number]
        axes = zip(given[number], placed.shape, strict=True)
        result[number] = chosen.of("", axes, partial(scan.report, placed.variable.name, Status.NOTE))
    return [result[number] for number in range(len(variables))]


def _is_kept(placed: Placed, dims: tuple[str, ...]) -> bool:
    return is_inline(placed, is_coordinate=dims == (placed.variable.name,))


def _add(scan: _Scan, placed: Placed, dims: tuple[str, ...], references: References) -> None:
    path = placed.variable.name
    attributes = read_attributes(placed.variable.attributes)
    scan.arrays[path] = compile_variable(placed, references, path=path, dims=dims, attributes=attributes)
    scan.report(path, status(references), references.reason)
    for note in attributes.notes:
        scan.report(path, Status.NOTE, note)


def _report_dimensions(scan: _Scan, header: Header) -> None:
    names = {variable.name for variable in header.variables}
    for dimension in header.dimensions:
        if dimension.name not in names:
            scan.report(dimension.name, Status.DIMENSION, "a netCDF dimension without a variable")
