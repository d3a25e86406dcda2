"""Signs webhooks with the official SDKs, for tests/tests/official_sdks.rs.

Reads one JSON object a line: {"sdk", "secret", "id", "timestamp": Unix seconds, "body"}, of Braintree also {"public_key"}, and
"body" is the kind of notification. Prints one JSON object a line: {"headers", "body"} as the PSP would send them.
"""

import json
import sys
from datetime import datetime, timezone
from urllib.parse import urlencode


def stripe(call):
    import stripe

    signature = stripe.WebhookSignature.generate_signature_header(call["body"], call["secret"], call["timestamp"])
    return {"stripe-signature": signature}, call["body"]


def standardwebhooks(call):
    import standardwebhooks

    time = datetime.fromtimestamp(call["timestamp"], timezone.utc)
    signature = standardwebhooks.Webhook(call["secret"]).sign(call["id"], time, call["body"])
    headers = {"webhook-id": call["id"], "webhook-timestamp": str(call["timestamp"]), "webhook-signature": signature}
    return headers, call["body"]


def svix(call):
    from svix.webhooks import Webhook

    time = datetime.fromtimestamp(call["timestamp"], timezone.utc)
    signature = Webhook(call["secret"]).sign(call["id"], time, call["body"])
    headers = {"svix-id": call["id"], "svix-timestamp": str(call["timestamp"]), "svix-signature": signature}
    return headers, call["body"]


def adyen(call):
    from Adyen.util import generate_notification_sig

    body = json.loads(call["body"])
    for item in body["notificationItems"]:
        item = item["NotificationRequestItem"]
        signature = generate_notification_sig(item, call["secret"])
        item.setdefault("additionalData", {})["hmacSignature"] = (
            signature.decode() if isinstance(signature, bytes) else signature
        )
    return {}, json.dumps(body)


def braintree(call):
    import braintree

    configuration = braintree.Configuration(
        braintree.Environment.Sandbox, merchant_id="m", public_key=call["public_key"], private_key=call["secret"]
    )
    gateway = braintree.BraintreeGateway(configuration)
    sample = gateway.webhook_testing.sample_notification(call["body"], call["id"])
    return {"content-type": "application/x-www-form-urlencoded"}, urlencode(sample)


SDKS = {"stripe": stripe, "standardwebhooks": standardwebhooks, "svix": svix, "adyen": adyen, "braintree": braintree}

for line in sys.stdin:
    call = json.loads(line)
    headers, body = SDKS[call["sdk"]](call)
    print(json.dumps({"headers": headers, "body": body}), flush=True)
