"""``python -m unireason_lib``: see :mod:`unireason_lib.cli`."""

from unireason_lib.cli import app

if __name__ == "__main__":
    app(prog_name="python -m unireason_lib")
