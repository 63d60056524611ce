"""Run folders and checkpoints: write, find, load; import official JiT checkpoints."""
