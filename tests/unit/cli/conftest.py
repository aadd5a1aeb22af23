"""Standard output and standard error apart, as tests of commands read them."""

from __future__ import annotations

import inspect
from functools import partialmethod

from click.testing import CliRunner

if "mix_stderr" in inspect.signature(CliRunner).parameters:  # before click 8.2
    CliRunner.__init__ = partialmethod(CliRunner.__init__, mix_stderr=False)  # type: ignore[assignment]
