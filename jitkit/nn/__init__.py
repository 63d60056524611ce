"""The transformer and its parts: patches, rotary embedding, conditioning, CPU kernels, costs."""
