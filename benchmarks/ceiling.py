"""`python -m benchmarks.ceiling`: see `speed/ceiling.py`."""

from benchmarks.speed.ceiling import main

if __name__ == "__main__":
    main()
