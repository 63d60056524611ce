"""Arrays domain (Zarr, NetCDF, HDF5 and NumPy files, without code): its names for other adapters.

Other adapters that read arrays import from here only.
"""

from jitkit.domains.arrays.adapter import Arrays
from jitkit.domains.arrays.conditions import ConditionsSection, part_of_time
from jitkit.domains.arrays.coordinates import (
    Selection,
    coordinate,
    extent,
    find_gaps,
    in_seconds,
    is_time,
    label,
    matching,
    segments,
    value_bounds,
)
from jitkit.domains.arrays.data import MAX_VALUES, Data, open_data, open_store
from jitkit.domains.arrays.inspect.dimensions import dimension_kind, is_evenly_spaced, is_periodic
from jitkit.domains.arrays.items import ArrayItems, Sample, block_entries, read_blocks
from jitkit.domains.arrays.normalize.statistics import Statistics, load_or_measure
from jitkit.domains.arrays.output import Column
from jitkit.domains.arrays.plan import make_axes
from jitkit.domains.arrays.read import Indexer, read_channels
from jitkit.domains.arrays.read_plan import DownloadRequest, copy_data, needed_positions
from jitkit.domains.arrays.section import ArraysSection, Drop
from jitkit.domains.arrays.splits import SplitsSection, split
from jitkit.domains.arrays.write import write_items

__all__ = [
    "ArrayItems",
    "Arrays",
    "ArraysSection",
    "Column",
    "ConditionsSection",
    "Data",
    "DownloadRequest",
    "Drop",
    "Indexer",
    "MAX_VALUES",
    "Sample",
    "Selection",
    "SplitsSection",
    "Statistics",
    "block_entries",
    "coordinate",
    "copy_data",
    "dimension_kind",
    "extent",
    "find_gaps",
    "in_seconds",
    "is_evenly_spaced",
    "is_periodic",
    "is_time",
    "label",
    "load_or_measure",
    "make_axes",
    "matching",
    "needed_positions",
    "open_data",
    "open_store",
    "part_of_time",
    "read_blocks",
    "read_channels",
    "segments",
    "split",
    "value_bounds",
    "write_items",
]
