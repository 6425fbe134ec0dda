"""The same selection, search and scoring on several processes or machines, on Ray (the extra ``ray``).

Importing the package is light; Ray is needed for work only.
"""

from __future__ import annotations
