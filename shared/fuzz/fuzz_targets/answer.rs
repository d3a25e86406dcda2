//! Answers of a PSP's API with any body. The input is the PSP's id on a line, then the body.
#![no_main]

use bytes::Bytes;
use http::Response;
use libfuzzer_sys::fuzz_target;
use paybell_shared::clock::Timestamp;
use paybell_shared::event::Mode;
use paybell_shared::psp::{self, Account, Api, Asked, Keys, Window};
use paybell_shared::secret::Secret;

fuzz_target!(|input: &[u8]| {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else { return };
    let Some(psp) = std::str::from_utf8(&input[..end]).ok().and_then(psp::find) else { return };
    let account = Account {
        psp,
        psp_id: psp.id().into(),
        name: "default".into(),
        mode: Mode::Test,
        keys: Keys::default(),
        api: Api { key: Some(Secret::new("api_key", "key")), ..Api::default() },
        order_reference: None,
        capture: psp::Capture::default(),
    };
    let response = Response::new(Bytes::copy_from_slice(&input[end + 1..]));
    let at = Timestamp::from_seconds(1_790_000_000);
    let window = Window { since: Timestamp::from_seconds(1_789_000_000), until: at };
    let mut cursors = vec![None];
    for _ in 0..3 {
        let mut next = Vec::new();
        for cursor in &cursors {
            let asked = Asked { payment_id: "tr_1", cursor: cursor.as_deref(), at, look_id: "look" };
            for answer in [psp.read_status(&asked, &response, &account), psp.read_events(window, &asked, &response, &account)] {
                next.extend(answer.ok().and_then(|answer| answer.next).map(Some));
            }
        }
        cursors = next;
    }
    let _ = psp.read_hints(&response, &account);
    let _ = psp.read_endpoints(&response);
    let _ = psp.read_changed_endpoint(&response);
    let _ = psp.read_token(&response);
});
