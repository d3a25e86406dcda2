//! Adyen as the simulator plays it: a standard webhook with one signed item, or a platform webhook with a signed header.
//!
//! Written from Adyen's documentation and not from the adapter that reads it; the two share test vectors, no code.
//!
//! The account captures by hand: what the ledger captures at once is an authorisation and a capture. Adyen tells nothing of
//! payments that nobody has tried to pay yet, and of a refund only how it ended; and it has no API that says how a payment
//! stands.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paybell_shared::clock::Timestamp;
use serde_json::{Value, json};

use super::dialect::{Dialect, EventType, Forgery, Scene, Settings, SignError, SignedCall, Situation, Webhook};
use super::ledger::{Decline, Dispute, DisputeState, Event, Happened, Object, Payment, RefundState, Step};
use super::mac;
use super::seed::Seed;
use super::story::Story;

/// Adyen's standard webhooks.
pub struct Adyen;

/// Adyen's platform webhooks: transfers.
pub struct AdyenPlatform;

const MERCHANT_ACCOUNT: &str = "PaybellDemoECOM";

/// Three times at once, then the queue; its later steps, up to 30 days, are left out.
const RETRIES: [Duration; 12] = [
    Duration::from_secs(9),
    Duration::from_secs(9),
    Duration::from_secs(9),
    Duration::from_mins(2),
    Duration::from_mins(5),
    Duration::from_mins(10),
    Duration::from_mins(15),
    Duration::from_mins(30),
    Duration::from_hours(1),
    Duration::from_hours(2),
    Duration::from_hours(4),
    Duration::from_hours(8),
];

/// What a step tells first; the rest are sent alone only.
const EVENT_TYPES: [EventType; 24] = [
    EventType::open("AUTHORISATION", &[("true", Scene::Authorized), ("false", Scene::Declined)]),
    EventType::new("AUTHORISATION_ADJUSTMENT", Scene::Authorized),
    EventType::new("CAPTURE", Scene::CapturedLater),
    EventType::new("CAPTURE_FAILED", Scene::CapturedLater),
    EventType::new("CANCELLATION", Scene::Voided),
    EventType::new("TECHNICAL_CANCEL", Scene::Voided),
    EventType::new("CANCEL_OR_REFUND", Scene::CapturedLater),
    EventType::new("EXPIRE", Scene::Lapsed),
    EventType::new("OFFER_CLOSED", Scene::Expired),
    EventType::open(
        "REFUND",
        &[("true", Scene::Refunded(RefundState::Succeeded)), ("false", Scene::Refunded(RefundState::Failed))],
    ),
    EventType::new("REFUND_FAILED", Scene::RefundSettled(RefundState::Failed)),
    EventType::new("REFUNDED_REVERSED", Scene::RefundSettled(RefundState::Failed)),
    EventType::new("NOTIFICATION_OF_FRAUD", Scene::Disputed),
    EventType::new("REQUEST_FOR_INFORMATION", Scene::Disputed),
    EventType::new("NOTIFICATION_OF_CHARGEBACK", Scene::Disputed),
    EventType::new("CHARGEBACK", Scene::Disputed),
    EventType::new("CHARGEBACK_REVERSED", Scene::DisputeClosed(DisputeState::Won)),
    EventType::new("DISPUTE_DEFENSE_PERIOD_ENDED", Scene::DisputeClosed(DisputeState::Lost)),
    EventType::new("SECOND_CHARGEBACK", Scene::DisputeClosed(DisputeState::Lost)),
    EventType::new("PREARBITRATION_WON", Scene::DisputeClosed(DisputeState::Won)),
    EventType::new("PREARBITRATION_LOST", Scene::DisputeClosed(DisputeState::Lost)),
    EventType::new("RECURRING_CONTRACT", Scene::Authorized),
    EventType::new("MANUAL_REVIEW_ACCEPT", Scene::Authorized),
    EventType::new("REPORT_AVAILABLE", Scene::Noted),
];

impl Dialect for Adyen {
    fn id(&self) -> &'static str {
        "adyen"
    }

    /// A `pspReference`. No event has an id: the one here only stands for it.
    fn object_id(&self, _object: Object, seed: &Seed) -> String {
        seed.letters(16)
    }

    fn event_types(&self) -> &'static [EventType] {
        &EVENT_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        let payment = step.payment;
        let of_payment = |code| Item::new(code, payment, &payment.id, payment.amount);
        let told = match step.happened {
            // An attempt that fails again has nothing new to say under one reference.
            Happened::Declined if payment.attempts.len() == 1 => vec![of_payment("AUTHORISATION").refused(decline(payment))],
            Happened::Authorized => vec![of_payment("AUTHORISATION")],
            Happened::Captured { was_authorized } => {
                let Some(capture) = payment.captures.last() else { return Vec::new() };
                let capture = Item::new("CAPTURE", payment, &capture.id, capture.amount);
                if was_authorized { vec![capture] } else { vec![of_payment("AUTHORISATION"), capture] }
            }
            Happened::Canceled { was_authorized: true } => {
                vec![Item::new("CANCELLATION", payment, &payment.seed("cancellation").letters(16), payment.amount)]
            }
            Happened::Expired { was_authorized } => vec![of_payment(if was_authorized { "EXPIRE" } else { "OFFER_CLOSED" })],
            Happened::Refunded { number, .. } | Happened::RefundSettled { number } => {
                let Some(refund) = payment.refunds.get(number) else { return Vec::new() };
                let item = |code| Item::new(code, payment, &refund.id, refund.amount);
                match (refund.state, step.happened) {
                    (RefundState::Pending, _) => Vec::new(),
                    (RefundState::Succeeded, _) => vec![item("REFUND")],
                    (RefundState::Failed, Happened::Refunded { .. }) => {
                        vec![item("REFUND").refused("Transaction hasn't been captured")]
                    }
                    (RefundState::Failed, _) => vec![item("REFUND_FAILED")],
                }
            }
            Happened::Disputed { number } | Happened::DisputeClosed { number } => {
                let Some(dispute) = payment.disputes.get(number) else { return Vec::new() };
                let item = |code| Item::new(code, payment, &dispute.id, dispute.amount);
                match dispute.state {
                    DisputeState::NeedsResponse => vec![item("NOTIFICATION_OF_CHARGEBACK"), item("CHARGEBACK")],
                    DisputeState::Won => vec![item("CHARGEBACK_REVERSED")],
                    DisputeState::Lost => vec![item("DISPUTE_DEFENSE_PERIOD_ENDED")],
                }
            }
            Happened::Noted => vec![report()],
            Happened::Opened
            | Happened::ActionRequired
            | Happened::Processing
            | Happened::Declined
            | Happened::Canceled { was_authorized: false } => Vec::new(),
        };
        let event = |(nth, item): (usize, Item)| {
            let id = self.object_id(Object::Event, &step.event_seed(nth));
            item.event(id, payment, step.at, step.live)
        };
        told.into_iter().enumerate().map(event).collect()
    }

    fn staged(&self, event_type: &str, situation: &Situation<'_>) -> Option<Webhook> {
        let known = EVENT_TYPES.iter().find(|known| known.name == event_type)?;
        let ledger = situation.played(&Self, known.scene(situation.ending)?);
        if let Some(told) = ledger.events().iter().rfind(|event| event.event_type == event_type) {
            return Some(told.into());
        }
        // No step of the ledger's is told so.
        let payment = ledger.payments().next()?;
        let part = situation.part.unwrap_or(situation.amount);
        let item = match event_type {
            "CAPTURE_FAILED" => Item::new(known.name, payment, &payment.captures.last()?.id, part),
            "REFUNDED_REVERSED" => Item::new(known.name, payment, &payment.refunds.last()?.id, part),
            "AUTHORISATION_ADJUSTMENT" | "TECHNICAL_CANCEL" | "CANCEL_OR_REFUND" => {
                Item::new(known.name, payment, &payment.seed(known.name).letters(16), part)
            }
            "RECURRING_CONTRACT" | "MANUAL_REVIEW_ACCEPT" => Item::new(known.name, payment, &payment.id, part),
            _ => Item::new(known.name, payment, &payment.disputes.last()?.id, part),
        };
        let id = self.object_id(Object::Event, &Seed::new(event_type, &situation.salt.to_string(), 0));
        Some((&item.event(id, payment, situation.at, situation.live)).into())
    }

    /// The signature of each item goes into it.
    fn sign(&self, settings: &Settings, webhook: &Webhook, _at: i64) -> Result<SignedCall, SignError> {
        let mut body: Value =
            serde_json::from_slice(&webhook.body).map_err(|_| SignError::Secret("there is no item to sign".to_owned()))?;
        for item in body["notificationItems"].as_array_mut().into_iter().flatten() {
            let item = &mut item["NotificationRequestItem"];
            let signature = signature(&settings.secret, item)?;
            item["additionalData"]["hmacSignature"] = signature.into();
        }
        let headers = vec![("content-type", "application/json".to_owned())];
        Ok(SignedCall { headers, body: body.to_string().into(), token: None })
    }

    fn settings(&self) -> Settings {
        Settings {
            secret: self.secret(&Seed::new("secret", "adyen", 0)),
            merchant_id: Some(MERCHANT_ACCOUNT.to_owned()),
            ..Settings::default()
        }
    }

    /// An altered byte is one of the amount: others are not signed.
    fn forge(&self, settings: &Settings, webhook: &Webhook, forgery: Forgery, at: i64) -> Result<Option<SignedCall>, SignError> {
        match forgery {
            Forgery::WrongSecret => {
                let wrong = Settings { secret: self.secret(&Seed::new("secret", "of somebody else", 0)), ..settings.clone() };
                self.sign(&wrong, webhook, at).map(Some)
            }
            Forgery::AlteredByte => {
                let mut call = self.sign(settings, webhook, at)?;
                if let Ok(mut body) = serde_json::from_slice::<Value>(&call.body) {
                    let value = &mut body["notificationItems"][0]["NotificationRequestItem"]["amount"]["value"];
                    *value = (value.as_i64().unwrap_or_default() ^ 1).into();
                    call.body = body.to_string().into();
                }
                Ok(Some(call))
            }
            Forgery::Stale => Ok(None),
        }
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    /// A payment that nobody has tried to pay is no payment of Adyen's yet.
    fn plays(&self, story: Story) -> bool {
        !matches!(story, Story::Pending | Story::Canceled)
    }
}

/// `additionalData.hmacSignature` of an item: HMAC-SHA256 under the bytes of the key over eight fields with colons between.
///
/// # Errors
/// The key is not hexadecimal.
pub fn signature(key: &str, item: &Value) -> Result<String, SignError> {
    let key = key_bytes(key)?;
    let field = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let signed = [
        field(&item["pspReference"]),
        field(&item["originalReference"]),
        field(&item["merchantAccountCode"]),
        field(&item["merchantReference"]),
        field(&item["amount"]["value"]),
        field(&item["amount"]["currency"]),
        field(&item["eventCode"]),
        field(&item["success"]),
    ];
    Ok(STANDARD.encode(mac::sha256(&key, &[signed.join(":").as_bytes()])))
}

fn key_bytes(key: &str) -> Result<Vec<u8>, SignError> {
    hex::decode(key).map_err(|_| SignError::Secret("an HMAC key of Adyen is written in hexadecimal digits".to_owned()))
}

/// A `NotificationRequestItem`, but for what all have.
struct Item {
    code: &'static str,
    own: String,
    original: Option<String>,
    reference: String,
    amount: i64,
    success: bool,
    reason: String,
}

impl Item {
    /// `own` is its `pspReference`.
    fn new(code: &'static str, payment: &Payment, own: &str, amount: i64) -> Self {
        Self {
            code,
            own: own.to_owned(),
            original: Some(payment.id.clone()).filter(|original| original != own),
            reference: payment.order_id.clone(),
            amount,
            success: true,
            reason: if code == "AUTHORISATION" { "012345:1111:03/2030".to_owned() } else { String::new() },
        }
    }

    fn refused(self, reason: &str) -> Self {
        Self { success: false, reason: reason.to_owned(), ..self }
    }

    fn event(self, id: String, payment: &Payment, at: i64, live: bool) -> Event {
        let mut additional = json!({ "paymentMethodVariant": "visa" });
        if self.code == "CANCEL_OR_REFUND" {
            additional["modification.action"] = "refund".into();
        }
        let mut item = json!({
            "additionalData": additional,
            "amount": { "currency": payment.currency, "value": self.amount },
            "eventCode": self.code,
            "eventDate": Timestamp::from_seconds(at),
            "merchantAccountCode": MERCHANT_ACCOUNT,
            "merchantReference": self.reference,
            "paymentMethod": "visa",
            "pspReference": self.own,
            "reason": self.reason,
            "success": if self.success { "true" } else { "false" },
        });
        if let Some(original) = self.original {
            item["originalReference"] = original.into();
        }
        if self.code == "AUTHORISATION" && self.success {
            item["operations"] = json!(["CANCEL", "CAPTURE", "REFUND"]);
        }
        let items = json!([{ "NotificationRequestItem": item }]);
        let body = json!({ "live": if live { "true" } else { "false" }, "notificationItems": items }).to_string();
        Event { id, event_type: self.code, created: at, payment_id: payment.id.clone(), object_id: self.own, body: body.into() }
    }
}

/// A report is about no payment.
fn report() -> Item {
    Item {
        code: "REPORT_AVAILABLE",
        own: "settlement_detail_report_batch_1.csv".to_owned(),
        original: None,
        reference: String::new(),
        amount: 0,
        success: true,
        reason: "https://ca-test.adyen.com/reports/download/MerchantAccount/settlement_detail_report_batch_1.csv".to_owned(),
    }
}

/// Adyen's words for a refusal.
fn decline(payment: &Payment) -> &'static str {
    match payment.attempts.last().and_then(|attempt| attempt.decline) {
        Some(Decline::InsufficientFunds) => "Not enough balance",
        Some(Decline::ExpiredCard) => "Expired Card",
        Some(Decline::Generic) | None => "Refused",
    }
}

// --------------------------------------------------------------------------------------------------------- platform

const CREATED: &str = "balancePlatform.transfer.created";
const UPDATED: &str = "balancePlatform.transfer.updated";

const PLATFORM_TYPES: [EventType; 3] = [
    EventType::new(CREATED, Scene::Opened),
    EventType::open(
        UPDATED,
        &[
            ("captured", Scene::CapturedLater),
            ("authorised", Scene::Authorized),
            ("refused", Scene::Declined),
            ("cancelled", Scene::Voided),
            ("expired", Scene::Lapsed),
            ("refundPending", Scene::Refunded(RefundState::Pending)),
            ("refunded", Scene::Refunded(RefundState::Succeeded)),
            ("refundReversed", Scene::RefundSettled(RefundState::Failed)),
            ("chargeback", Scene::Disputed),
            ("chargebackReversed", Scene::DisputeClosed(DisputeState::Won)),
            ("secondChargeback", Scene::DisputeClosed(DisputeState::Lost)),
        ],
    ),
    EventType::new("balancePlatform.balanceAccount.updated", Scene::Noted),
];

impl Dialect for AdyenPlatform {
    fn id(&self) -> &'static str {
        "adyen-platform"
    }

    fn psp(&self) -> &'static str {
        "adyen"
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        match object {
            Object::Payment => seed.letters(16),
            _ => format!("TRF{}", seed.letters(16)),
        }
    }

    fn event_types(&self) -> &'static [EventType] {
        &PLATFORM_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        let payment = step.payment;
        let own = payment.seed("transfer").letters(16);
        let whole = |status| (UPDATED, status, own.clone(), payment.amount);
        let dispute = |dispute: &Dispute, status| (UPDATED, status, dispute.id.clone(), dispute.amount);
        let told = match step.happened {
            Happened::Opened => vec![(CREATED, "received", own.clone(), payment.amount)],
            Happened::Declined => vec![whole("refused")],
            Happened::Authorized => vec![whole("authorised")],
            Happened::Captured { .. } => vec![(UPDATED, "captured", own.clone(), payment.captured())],
            Happened::Canceled { was_authorized: true } => vec![whole("cancelled")],
            Happened::Expired { .. } => vec![whole("expired")],
            Happened::Refunded { number, .. } | Happened::RefundSettled { number } => {
                let Some(refund) = payment.refunds.get(number) else { return Vec::new() };
                let status = match refund.state {
                    RefundState::Pending => "refundPending",
                    RefundState::Succeeded => "refunded",
                    RefundState::Failed => "refundReversed",
                };
                vec![(UPDATED, status, refund.id.clone(), refund.amount)]
            }
            Happened::Disputed { number } | Happened::DisputeClosed { number } => {
                let Some(claim) = payment.disputes.get(number) else { return Vec::new() };
                vec![match claim.state {
                    DisputeState::NeedsResponse => dispute(claim, "chargeback"),
                    DisputeState::Won => dispute(claim, "chargebackReversed"),
                    DisputeState::Lost => dispute(claim, "secondChargeback"),
                }]
            }
            Happened::Noted => vec![("balancePlatform.balanceAccount.updated", "active", own.clone(), 0)],
            Happened::ActionRequired | Happened::Processing | Happened::Canceled { was_authorized: false } => Vec::new(),
        };
        let event = |(nth, (event_type, status, transfer, amount)): (usize, (&'static str, &str, String, i64))| {
            let body = json!({
                "data": {
                    "balancePlatform": "PaybellDemo", "id": transfer, "status": status,
                    "amount": { "currency": payment.currency, "value": amount },
                    "sequenceNumber": payment.version,
                    "categoryData": {
                        "type": "platformPayment", "pspPaymentReference": payment.id, "paymentMerchantReference": payment.order_id,
                    },
                },
                "environment": if step.live { "live" } else { "test" },
                "timestamp": Timestamp::from_seconds(step.at),
                "type": event_type,
            });
            Event {
                id: self.object_id(Object::Event, &step.event_seed(nth)),
                event_type,
                created: step.at,
                payment_id: payment.id.clone(),
                object_id: transfer,
                body: body.to_string().into(),
            }
        };
        told.into_iter().enumerate().map(event).collect()
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, _at: i64) -> Result<SignedCall, SignError> {
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("protocol", "HmacSHA256".to_owned()),
            ("hmacsignature", header_signature(&settings.secret, &webhook.body)?),
        ];
        Ok(SignedCall::by_headers(webhook, headers))
    }

    fn settings(&self) -> Settings {
        Settings {
            scheme: Some("adyen-platform-header"),
            secret: self.secret(&Seed::new("secret", "adyen-platform", 0)),
            ..Settings::default()
        }
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn plays(&self, story: Story) -> bool {
        story != Story::Canceled
    }
}

/// The value of `HmacSignature`: HMAC-SHA256 under the bytes of the key over the raw body.
///
/// # Errors
/// The key is not hexadecimal.
pub fn header_signature(key: &str, body: &[u8]) -> Result<String, SignError> {
    Ok(STANDARD.encode(mac::sha256(&key_bytes(key)?, &[body])))
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Ledger;
    use super::*;

    const KEY: &str = "A1B22DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056";

    #[test]
    fn signs_items_as_adyens_own_sdk_does() {
        // The vectors `adyen-valid` and `adyen-valid-capture`, accepted by Adyen's SDKs.
        let mut item = json!({
            "pspReference": "TSTK5VQ8HXSKGK82", "merchantAccountCode": "AcmeShopECOM", "merchantReference": "ORD-1001",
            "amount": { "currency": "EUR", "value": 4999 }, "eventCode": "AUTHORISATION", "success": "true",
        });
        for key in [KEY, &KEY.to_lowercase()] {
            assert_eq!(signature(key, &item).unwrap(), "bMFE32SwZYWKb6qDFPZJEpRKDyKY35OEzTXAMPlBe+M=");
        }
        item["pspReference"] = "TSTCAPT8HXSKGK83".into();
        item["originalReference"] = "TSTK5VQ8HXSKGK82".into();
        item["eventCode"] = "CAPTURE".into();
        assert_eq!(signature(KEY, &item).unwrap(), "G1dOuw5NeE1+UGAi8TM2dHJfbpbUPUVOIrxCEXBjd/w=");
        assert!(signature("no hex", &item).is_err());
    }

    #[test]
    fn signs_platform_webhooks_as_adyens_own_sdk_does() {
        // The vector `adyen-platform-valid`.
        let body = concat!(
            r#"{"data":{"balancePlatform":"AcmePlatform","id":"TRF00000000000001","status":"captured","amount":{"currency":"EUR","#,
            r#""value":4999},"sequenceNumber":3,"categoryData":{"type":"platformPayment","pspPaymentReference":"#,
            r#""TSTK5VQ8HXSKGK82","paymentMerchantReference":"ORD-1001"}},"environment":"test","#,
            r#""timestamp":"2026-09-21T13:33:10.000Z","type":"balancePlatform.transfer.updated"}"#,
        );
        assert_eq!(header_signature(KEY, body.as_bytes()).unwrap(), "AmAHqwfvraKQO8kZaQ2aTQByOCNB1JyaypizSAb0m1I=");
    }

    #[test]
    fn each_step_is_told_as_adyen_tells_it() {
        let mut ledger = Ledger::new(&Adyen, false, 1);
        let id = ledger.open("o", 4999, "EUR", false, 100);
        ledger.decline(&id, Decline::Generic, 110);
        ledger.decline(&id, Decline::Generic, 115);
        ledger.capture(&id, 4999, 120);
        let number = ledger.refund(&id, 1000, RefundState::Pending, 200);
        ledger.settle_refund(&id, number, RefundState::Succeeded, 210);
        ledger.dispute(&id, 4999, 300);
        let told: Vec<_> = ledger
            .events()
            .iter()
            .map(|event| {
                let body: Value = serde_json::from_slice(&event.body).unwrap();
                let item = &body["notificationItems"][0]["NotificationRequestItem"];
                assert_eq!(item["merchantReference"], "o");
                let of_payment = item["pspReference"] == id.as_str();
                assert_eq!(item["originalReference"].as_str().unwrap_or(&id), id, "all lead to the payment");
                (event.event_type, item["success"].as_str().unwrap().to_owned(), of_payment)
            })
            .collect();
        let told: Vec<_> = told.iter().map(|(code, success, of_payment)| (*code, success.as_str(), *of_payment)).collect();
        assert_eq!(
            told,
            [
                ("AUTHORISATION", "false", true),
                ("AUTHORISATION", "true", true),
                ("CAPTURE", "true", false),
                ("REFUND", "true", false),
                ("NOTIFICATION_OF_CHARGEBACK", "true", false),
                ("CHARGEBACK", "true", false),
            ]
        );
    }

    #[test]
    fn every_type_can_be_staged_and_looks_like_itself() {
        let situation = Situation {
            order_id: "ORD-1001",
            amount: 4999,
            currency: "EUR",
            part: Some(1000),
            ending: None,
            live: false,
            at: 1_790_000_000,
            salt: 7,
        };
        for event_type in EVENT_TYPES {
            let endings = [None].into_iter().chain(event_type.endings.iter().map(|(ending, _)| Some(*ending)));
            for ending in endings {
                let webhook = Adyen.staged(event_type.name, &Situation { ending, ..situation }).unwrap();
                let body: Value = serde_json::from_slice(&webhook.body).unwrap();
                let item = &body["notificationItems"][0]["NotificationRequestItem"];
                assert_eq!((&item["eventCode"], &item["success"]), (&json!(event_type.name), &json!(ending.unwrap_or("true"))));
            }
        }
        for (ending, _) in PLATFORM_TYPES[1].endings {
            let webhook = AdyenPlatform.staged(UPDATED, &Situation { ending: Some(ending), ..situation }).unwrap();
            let body: Value = serde_json::from_slice(&webhook.body).unwrap();
            assert_eq!(body["data"]["status"], *ending);
        }
        assert!(Adyen.staged("EXPLODED", &situation).is_none());
    }
}
