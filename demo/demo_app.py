"""The example application with a ticker that measures stalls of the loop."""

import threading
import time

from flask_app import app
from ticker import Ticker

__all__ = ["app"]

ticker = Ticker(time.sleep)
threading.Thread(target=ticker.run, daemon=True).start()


@app.post("/stall")
def stall() -> dict[str, float]:
    """Return the longest stall of the loop since the last call, in seconds."""
    longest = ticker.stall()
    ticker.reset()
    return {"seconds": longest}
