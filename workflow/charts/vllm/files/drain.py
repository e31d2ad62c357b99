"""Return when the server of this pod has no request any more, or after the seconds of the first argument."""

import re
import sys
import time
import urllib.request

FIRST_S = 3
COUNTED = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)

end = time.monotonic() + int(sys.argv[1])
time.sleep(FIRST_S)
while time.monotonic() < end:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[2]}/metrics", timeout=5) as answer:
            requests = [float(count) for count in COUNTED.findall(answer.read().decode())]
    except OSError:
        break
    if not sum(requests):
        break
    time.sleep(1)
