"""Pictures of any array: panels of channels, real beside sampled."""
