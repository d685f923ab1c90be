"""The example application, with a ticker beside it that tells of stalls."""

import threading
import time

from flask_app import app
from ticker import Ticker

__all__ = ["app"]

ticker = Ticker(time.sleep)
threading.Thread(target=ticker.run, daemon=True).start()


@app.post("/stall")
def stall() -> dict[str, float]:
    """Tell the longest stall of the loop since the last time, in seconds."""
    longest = ticker.stall()
    ticker.reset()
    return {"seconds": longest}
