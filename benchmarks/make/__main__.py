"""Make anew what is shipped, from the kept ancestor: the gene, the pair and the mixture that belong to it, the cards.

    python -m benchmarks.make [--data FOLDER]

The ancestor itself comes of `python -m benchmarks.make.ancestor`. Gene and mixture go on where they were stopped, in
`runs/gene` and `runs/mixture`: remove these to begin anew.
"""

import subprocess
import sys

from benchmarks.common.options import parse


def main() -> None:
    options = parse(__doc__, "data")
    for part in ("gene", "pair", "mixture"):
        subprocess.run([sys.executable, "-m", f"benchmarks.make.{part}", "--data", options.data], check=True)
    subprocess.run([sys.executable, "-m", "benchmarks.make.figure_method"], check=True)
    subprocess.run([sys.executable, "-m", "upload", "render"], check=True)


if __name__ == "__main__":
    main()
