"""`python -m pgc3d`."""

from pgc3d.cli import main

if __name__ == "__main__":
    main()
