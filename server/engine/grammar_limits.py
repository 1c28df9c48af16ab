"""What one grammar may take, wherever it is compiled and followed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from llguidance import LLParserLimits

LIMITS = LLParserLimits(
    max_items_in_row=2000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""About a tenth of a second to begin, 15 ms a mask, and 100 MB for all that an output may meet."""

_STACK_BYTES = 64 << 20


def deep_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Threads with stacks that what a process with one of 8 MB has worked on does not overflow."""
    before = threading.stack_size(_STACK_BYTES)
    try:
        threads = ThreadPoolExecutor(count, name)
        list(threads.map(time.sleep, [0.01] * count))  # a thread has the stack that is set when it starts
    finally:
        threading.stack_size(before)
    return threads
