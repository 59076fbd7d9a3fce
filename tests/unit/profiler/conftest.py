from __future__ import annotations

import sys
from pathlib import Path

# Plain classes that tests import.
sys.path.insert(0, str(Path(__file__).parent))
