"""`python -m diffleak`, for `accelerate launch -m diffleak ...`."""

from diffleak.cli import main

if __name__ == "__main__":
    main()
