"""Signs webhooks with the official SDKs, for tests/tests/official_sdks.rs.

Reads one JSON object a line: {"sdk": "stripe" | "standardwebhooks", "secret", "id", "timestamp": Unix seconds, "body"}.
Prints one JSON object a line: the headers that the SDK makes of it.
"""

import json
import sys
from datetime import datetime, timezone

import standardwebhooks
import stripe


def headers(call):
    secret, at, body = call["secret"], call["timestamp"], call["body"]
    if call["sdk"] == "stripe":
        return {"stripe-signature": stripe.WebhookSignature.generate_signature_header(body, secret, at)}
    time = datetime.fromtimestamp(at, timezone.utc)
    signature = standardwebhooks.Webhook(secret).sign(call["id"], time, body)
    return {"webhook-id": call["id"], "webhook-timestamp": str(at), "webhook-signature": signature}


for line in sys.stdin:
    print(json.dumps(headers(json.loads(line))), flush=True)
