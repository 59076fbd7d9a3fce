from __future__ import annotations

import sys
from pathlib import Path

# The builders are plain functions that several test files import.
sys.path.insert(0, str(Path(__file__).parent))
