//! Calls of strangers: headers and bodies of any bytes. The input is the PSP's id, then `name: value` lines, an empty line,
//! and the body.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use paybell_shared::clock::Timestamp;
use paybell_shared::psp::{self, Keys, WebhookRequest};
use paybell_shared::secret::Secret;

const NOW: Timestamp = Timestamp::from_seconds(1_790_000_000);

fuzz_target!(|input: &[u8]| {
    let Some((id, rest)) = line(input) else { return };
    let Some(psp) = std::str::from_utf8(id).ok().and_then(psp::find) else { return };
    let (mut headers, mut rest) = (HeaderMap::new(), rest);
    while let Some((header, after)) = line(rest) {
        rest = after;
        let Some(colon) = header.iter().position(|byte| *byte == b':') else { break };
        let name = HeaderName::from_bytes(&header[..colon]);
        let value = HeaderValue::from_bytes(header[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    for scheme in psp.profile().schemes {
        let keys = Keys {
            secrets: vec![Secret::new("one", "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056")],
            tolerance_s: 300,
            scheme: scheme.name,
            url: Some("https://shop.example/webhooks".to_owned()),
            webhook_id: Some("WEBHOOK_ID".to_owned()),
            public_key: Some("key".to_owned()),
            ..Keys::default()
        };
        let request = WebhookRequest { headers: &headers, body: rest, token: None, certificate: Some(rest) };
        let _ = psp.verify(&request, &keys, NOW);
        let _ = psp.challenge(&String::from_utf8_lossy(rest), &keys);
    }
});

fn line(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    Some((&input[..end], &input[end + 1..]))
}
