"""The metrics package declares what torch-fidelity needs to be imported, so it comes before any test module."""

import scorefield.metrics  # noqa: F401
