"""The ticker, for what is not part of the package."""

from psycogreen._ticker import Ticker

__all__ = ["Ticker"]
