"""Domain weather: states of the atmosphere and the ocean, forecasts, downscaling."""
