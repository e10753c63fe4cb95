# SPDX-License-Identifier: Apache-2.0
"""Where things are in the checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
TOOLS = ROOT / 'tools'
QUICKSTART = ROOT / 'projects' / 'quickstart'
#: What tests compare with.
DATA = ROOT / 'tests' / 'data'
