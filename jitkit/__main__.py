"""Entry point of ``python -m jitkit`` and ``torchrun -m jitkit``."""

from jitkit.cli import main

if __name__ == "__main__":
    main()
