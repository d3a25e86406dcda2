//! The body's exact bytes, under limits.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use crate::limit::{Held, Limit};
use crate::refusal::Refusal;

/// Reads all of a body of at most `max` bytes, counting them in `held`. A body in one piece is not copied.
pub(crate) async fn read(mut body: Incoming, max: usize, held: &Limit) -> Result<(Bytes, Held<'_>), Refusal> {
    if body.size_hint().exact().is_some_and(|declared| declared > max as u64) {
        return Err(Refusal::TooLarge);
    }
    let mut held = held.hold(0).ok_or(Refusal::Crowded)?;
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(piece) = next(&mut body).await? {
        if first.len() + joined.len() + piece.len() > max {
            return Err(Refusal::TooLarge);
        }
        if !held.grow(piece.len()) {
            return Err(Refusal::Crowded);
        }
        if first.is_empty() && joined.is_empty() {
            first = piece;
        } else {
            // `first` moves in once, then stays empty. Room grows with what has come, not with what was promised.
            joined.extend_from_slice(&std::mem::take(&mut first));
            joined.extend_from_slice(&piece);
        }
    }
    Ok((if joined.is_empty() { first } else { joined.freeze() }, held))
}

/// The next piece that is not empty; trailers are passed over.
async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
    // Without this a body that is complete would cost one more poll.
    while !body.is_end_stream() {
        match body.frame().await {
            None => break,
            Some(Err(_)) => return Err(Refusal::BrokenBody),
            Some(Ok(frame)) => {
                if let Ok(piece) = frame.into_data()
                    && !piece.is_empty()
                {
                    return Ok(Some(piece));
                }
            }
        }
    }
    Ok(None)
}
