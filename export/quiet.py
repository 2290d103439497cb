"""Keep the chatter of libraries off the user's terminal. Exceptions pass through untouched."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what libraries print to stdout, warn about, or log below CRITICAL.

    stderr stays as it is, so that a progress bar of ours which draws from its own thread keeps drawing.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
