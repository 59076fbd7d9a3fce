from __future__ import annotations

import sys
from pathlib import Path

# The programs are plain functions and strategies that several test files import.
sys.path.insert(0, str(Path(__file__).parent))
