"""Faults for processes that mcls starts by itself: those in MCLS_FAULTS, before their command begins."""

import json
import os

if "MCLS_FAULTS" in os.environ:
    import faults

    for name, *arguments in json.loads(os.environ["MCLS_FAULTS"]):
        getattr(faults, name)(*arguments)
