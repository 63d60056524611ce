"""Metrics shared by several domains: fields, FID, forecast verification."""
