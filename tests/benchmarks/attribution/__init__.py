"""Attribution against the peer that does it too, and against its own bounds: `python -m` this package."""
