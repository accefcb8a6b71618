"""`python -m penstock` and the `penstock` command: hands over to the command line."""

from __future__ import annotations

from penstock.cli import penstock


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    penstock(prog_name="penstock")


if __name__ == "__main__":
    main()
