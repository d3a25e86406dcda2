"""Verifies notifications with the official SDK, for tests/tests/official_sdks.rs.

Reads one JSON object a line: {"secret", "headers": by name, "body"}. Prints a line each: what the SDK read, or null.
"""

import json
import sys

import standardwebhooks


def verified(call):
    try:
        return standardwebhooks.Webhook(call["secret"]).verify(call["body"], call["headers"])
    except standardwebhooks.WebhookVerificationError:
        return None


for line in sys.stdin:
    print(json.dumps(verified(json.loads(line))), flush=True)
