"""Figures of arrays: panels, maps, forecasts."""
