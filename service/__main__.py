"""`python -m service` is the same as `points-reversal`."""

from service.cli import main

if __name__ == "__main__":
    main()
