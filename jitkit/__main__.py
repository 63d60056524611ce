"""So that ``python -m jitkit`` and ``torchrun -m jitkit`` work."""

from jitkit.cli import main

if __name__ == "__main__":
    main()
