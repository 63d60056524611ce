"""FID, Inception score, KID, precision and recall on features of a network."""
