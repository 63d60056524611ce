"""Solar forcings: cosine of the solar zenith angle and radiation at the top of the atmosphere.

Low-precision formulas of the Astronomical Almanac (Michalsky 1988, Solar Energy 40: 227-235), with
declination and equation of time within 0.01 degrees from 1950 to 2050.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jitkit.utils.types import Array

SOLAR_CONSTANT = (
    1361.0  # W/m2 at one astronomical unit (Kopp & Lean 2011, doi:10.1029/2010GL045777)
)
J2000 = np.datetime64("2000-01-01T12:00:00", "s")
DAY = 86_400.0
YEAR = 365.2425  # mean days of the Gregorian calendar


def moments(times: Array) -> tuple[Array, Array]:
    """Days since noon of January 1, 2000, and hours since midnight (UTC), of numpy or cftime times.

    In calendars with another year length, seasons follow the fraction of the year.
    """
    if times.dtype.kind == "M":
        seconds = (times.astype("M8[s]") - J2000).astype(np.float64)
        days = seconds / DAY
        return days, (days + 0.5) % 1 * 24
    since, hours = [], []
    for time in np.ravel(times).tolist():
        length = (time.replace(year=time.year + 1, month=1, day=1) - _new_year(time)).days
        fraction = (time - _new_year(time)).total_seconds() / DAY / length
        since.append((time.year + fraction - 2000) * YEAR - 0.5)
        hours.append(time.hour + time.minute / 60 + time.second / 3600)
    return np.reshape(since, times.shape), np.reshape(hours, times.shape)


def _new_year(time: Any) -> Any:
    return time.replace(month=1, day=1, hour=0, minute=0, second=0, microsecond=0)


def cos_zenith(times: Array, latitudes: Array, longitudes: Array) -> Array:
    """Cosine of the solar zenith angle, without refraction, 0 below the horizon.

        cos z = sin(lat) sin(dec) + cos(lat) cos(dec) cos(h)

    with declination dec and hour angle h.

    Args:
        times: (T,), numpy or cftime, UTC.
        latitudes, longitudes: in degrees, broadcasting to the grid.

    Returns:
        (T, grid), float32.
    """
    days, hours = moments(times)
    declination, equation = _sun(days)
    grid = np.broadcast_shapes(np.shape(latitudes), np.shape(longitudes))
    along = (slice(None), *[None] * len(grid))
    hour_angle = np.radians(15 * (hours - 12) + equation)[along] + np.radians(longitudes)
    latitude, declination = np.radians(latitudes), declination[along]
    cosine = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(
        declination
    ) * np.cos(hour_angle)
    return np.maximum(cosine, 0.0).astype(np.float32)


def toa_radiation(times: Array, latitudes: Array, longitudes: Array) -> Array:
    """Solar radiation on a horizontal surface at the top of the atmosphere, W/m2.

    Args, returns: as `cos_zenith`.
    """
    days, _ = moments(times)
    anomaly = np.radians(357.528 + 0.9856003 * days)
    distance = 1.00014 - 0.01671 * np.cos(anomaly) - 0.00014 * np.cos(2 * anomaly)
    cosine = cos_zenith(times, latitudes, longitudes)
    strength = (SOLAR_CONSTANT / distance**2).astype(np.float32)
    return cosine * strength.reshape(-1, *[1] * (cosine.ndim - 1))


def _sun(days: Array) -> tuple[Array, Array]:
    """Declination in radians, and equation of time in degrees, at days since J2000."""
    mean_longitude = 280.460 + 0.9856474 * days
    anomaly = np.radians(357.528 + 0.9856003 * days)
    longitude = np.radians(mean_longitude + 1.915 * np.sin(anomaly) + 0.020 * np.sin(2 * anomaly))
    obliquity = np.radians(23.439 - 4e-7 * days)
    ascension = np.degrees(np.arctan2(np.cos(obliquity) * np.sin(longitude), np.cos(longitude)))
    equation = (mean_longitude - ascension + 180) % 360 - 180
    return np.arcsin(np.sin(obliquity) * np.sin(longitude)), equation
