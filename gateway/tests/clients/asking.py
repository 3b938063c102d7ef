"""What the clients beside this file ask, and how they complain."""
import json
import sys
import urllib.error
import urllib.request

QUERY = "how do plants make energy"
DOCUMENTS = [
    "The stock market fell sharply on Monday.",
    "Photosynthesis turns sunlight, water and carbon dioxide into glucose.",
    "Berlin is the capital of Germany.",
]


def post(url, body, content_type="application/json"):
    """Status, headers and JSON of a POST; bytes are sent as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), json.load(error)


def check(what, condition, seen=None):
    if not condition:
        sys.exit(f"FAILED {what}: {seen!r}")
    print(f"ok      {what}")
