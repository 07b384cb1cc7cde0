"""Filter pipelines of HDF5 datasets (file format specification IV.A.2.l)."""

from __future__ import annotations

from h5py import h5p

from refindex.model.encoding import BITSHUFFLE, NBIT, SCALEOFFSET, SZIP, Filter

_OWN = {NBIT: (0, 0), SZIP: (0, 2), SCALEOFFSET: (0, 2), BITSHUFFLE: (3, 5)}
"""Which of the client data values are the user's: a filter's set-up adds the others."""


def read_pipeline(creation: h5p.PropDCID) -> tuple[Filter, ...]:
    """The filters of a dataset, in the order in which they are applied on writing."""
    filters = []
    for i in range(creation.get_nfilters()):
        number, _, values, _ = creation.get_filter(i)
        # libhdf5 adds values of its own to these when the dataset is made, and makes them again when it decodes.
        first, last = _OWN.get(number, (0, len(values)))
        filters.append(Filter(id=number, values=tuple(int(v) for v in values[first:last])))
    return tuple(filters)


def applied(pipeline: tuple[Filter, ...], mask: int) -> tuple[Filter, ...]:
    """The filters that a chunk with this filter mask went through: a set bit means skipped."""
    return tuple(f for i, f in enumerate(pipeline) if not mask >> i & 1)
