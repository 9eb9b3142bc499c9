"""What `scripts/bad_calls.py` and `scripts/memory_growth.py` call and with what."""

import sys
from pathlib import Path

# The operators' and functions' valid calls are those of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests" / "ops"))
