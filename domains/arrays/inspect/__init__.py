"""`jitkit inspect`: scan an unknown array file and propose a recipe."""
