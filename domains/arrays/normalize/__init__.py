"""Statistics of each channel of the training data, and the transforms that normalize by them."""
