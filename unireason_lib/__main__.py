"""``python -m unireason_lib``: see :mod:`unireason_lib.cli`."""

from unireason_lib.cli import app


def main() -> None:
    """Run the command line."""
    app(prog_name="python -m unireason_lib")


if __name__ == "__main__":
    main()
