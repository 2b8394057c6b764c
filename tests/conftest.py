"""Makes the scripts importable from the tests, and keeps each test process on one core."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
torch.set_num_threads(1)
