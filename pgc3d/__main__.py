"""`python -m pgc3d`."""

from pgc3d.cli.app import main

if __name__ == "__main__":
    main()
