"""Figures of arrays with matplotlib: panels, maps, forecast verification."""
