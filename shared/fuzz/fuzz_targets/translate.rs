//! Authentic webhooks with any body. The input is the PSP's id on a line, then the body.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use paybell_shared::clock::Timestamp;
use paybell_shared::envelope::Envelope;
use paybell_shared::event::Mode;
use paybell_shared::psp::{self, Account, Api, Keys};

fuzz_target!(|input: &[u8]| {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else { return };
    let Some(psp) = std::str::from_utf8(&input[..end]).ok().and_then(psp::find) else { return };
    for scheme in psp.profile().schemes {
        let account = Account {
            psp,
            psp_id: psp.id().into(),
            name: "default".into(),
            mode: Mode::Test,
            keys: Keys { scheme: scheme.name, ..Keys::default() },
            api: Api::default(),
            order_reference: None,
            capture: psp::Capture::default(),
        };
        let envelope = Envelope {
            psp: psp.id().into(),
            account: "default".into(),
            webhook_id: "w".to_owned(),
            event_type: None,
            subject: None,
            received_at: Timestamp::from_seconds(1_790_000_000),
            secret_name: "one".into(),
            proof: scheme.proof,
            content_type: None,
            headers: Vec::new(),
            traceparent: None,
            body: Bytes::copy_from_slice(&input[end + 1..]),
        };
        let first = psp.translate(&envelope, &account);
        assert_eq!(first, psp.translate(&envelope, &account), "the same bytes, another meaning");
        for event in first.unwrap_or_default() {
            assert!((1..=255).contains(&event.key.event_id.len()), "an event's id that no key takes");
        }
        let _ = psp.hinted(&envelope, &account);
    }
});
