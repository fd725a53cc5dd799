from typing import Any


def instruction_windows(tokenizer: Any, paths: Any, length: int) -> Any: ...
