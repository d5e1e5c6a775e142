"""`python -m benchmarks.speed`: see `compare.py`."""

from benchmarks.speed.compare import main

if __name__ == "__main__":
    main()
