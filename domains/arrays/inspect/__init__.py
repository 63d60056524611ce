"""`jitkit inspect`: look at an unknown array file and propose a recipe."""
