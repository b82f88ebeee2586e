"""Lets ``python -m edge.cli`` stand in for the installed command."""

from edge.cli import main

if __name__ == "__main__":
    main(prog_name="edge")
