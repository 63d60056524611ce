"""Agreement with the authors' code: tensors that it produced, in ``tests/data/jit_tiny.npz``."""
