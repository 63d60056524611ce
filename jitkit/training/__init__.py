"""The training loop: optimizer step, mixed precision, validation, previews, resuming, logging."""
