"""The example's modules lie flat in its folder, as a user runs them: put it, the package and the tests on the path."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "examples" / "event_classification")]
