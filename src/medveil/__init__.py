"""Train a medical-imaging model together, and know what it leaks.

Imports are lazy on purpose: ``import medveil`` must stay cheap (no torch).
"""

from typing import Final

__version__: Final = "0.1.0"
