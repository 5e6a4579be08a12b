"""`python -m mmlg_hf` is the command `mmlg`."""

from .cli import main

if __name__ == "__main__":
    main()
