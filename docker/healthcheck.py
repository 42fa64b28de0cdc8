"""The container's health: 0 if /readyz says ready, 1 with its reason otherwise. Needs Python alone.

It asks on UNPERTURB_PORT, so set the port there and not by `serve --port`.
"""

import http.client
import os
import sys


def main() -> str | None:
    """The reason why not; None when ready."""
    # Not urllib: that would ask a proxy, where the environment names one.
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("UNPERTURB_PORT", "8000")), timeout=4)
    try:
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        text = reply.read(1000).decode(errors="replace")
    except OSError as error:
        return f"no answer: {error}"
    return None if reply.status == 200 else f"{reply.status}: {text}"


if __name__ == "__main__":
    sys.exit(main())
