"""Type aliases of numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
"""A numpy array of any shape and type."""
Floats = np.ndarray[Any, np.dtype[np.float64]]
"""A numpy array of float64."""
