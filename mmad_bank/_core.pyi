# The compiled module; its arguments are described in csrc/bindings*.cpp.
from typing import Any

def __getattr__(name: str) -> Any: ...
