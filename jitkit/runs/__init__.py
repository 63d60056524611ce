"""Run folders and checkpoints: written, found, loaded; official JiT weights imported."""
