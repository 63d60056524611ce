"""Any array file or store as a kind of data: Zarr, NetCDF, HDF5, NumPy, without code.

Other adapters that read arrays import from here, and from no module inside.
"""

from jitkit.domains.arrays.adapter import Arrays
from jitkit.domains.arrays.conditions import ConditionsSection, part_of_time
from jitkit.domains.arrays.coordinates import (
    Selection,
    coordinate,
    edges,
    extent,
    holes,
    in_seconds,
    is_time,
    label,
    matching,
    runs,
)
from jitkit.domains.arrays.data import MOST_VALUES, Data, open_data, open_store
from jitkit.domains.arrays.inspect.dimensions import closes, even, part_of
from jitkit.domains.arrays.items import ArrayItems, Sample, block_places, read_blocks
from jitkit.domains.arrays.normalize.statistics import Statistics, load_or_measure
from jitkit.domains.arrays.output import Column
from jitkit.domains.arrays.read import Cut, read_channels
from jitkit.domains.arrays.read_plan import Read, copy_of, positions
from jitkit.domains.arrays.section import ArraysSection, Drop
from jitkit.domains.arrays.splits import SplitsSection, split
from jitkit.domains.arrays.write import write_items

__all__ = [
    "ArrayItems",
    "Arrays",
    "ArraysSection",
    "Column",
    "ConditionsSection",
    "Cut",
    "Data",
    "Drop",
    "MOST_VALUES",
    "Read",
    "Sample",
    "Selection",
    "SplitsSection",
    "Statistics",
    "block_places",
    "closes",
    "coordinate",
    "copy_of",
    "edges",
    "even",
    "extent",
    "holes",
    "in_seconds",
    "is_time",
    "label",
    "load_or_measure",
    "matching",
    "open_data",
    "open_store",
    "part_of",
    "part_of_time",
    "positions",
    "read_blocks",
    "read_channels",
    "runs",
    "split",
    "write_items",
]
