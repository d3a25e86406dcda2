//! The one way to ask a PSP: its credentials, the request, and what the answer says of its patience.

use std::sync::Arc;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use paybell_shared::psp::{Account, AskError, ReadError};

use crate::access::{Access, AccessError};
use crate::consume::Context;
use crate::manners::Manner;
use crate::order::AccountKey;
use crate::transport::{PspTransport, TransportError};

/// Sends requests that adapters built. Clones share what they know.
#[derive(Clone)]
pub struct Asker {
    pub context: Arc<Context>,
    transport: Arc<dyn PspTransport>,
    access: Arc<Access>,
}

/// Why there is no answer, or none that counts.
#[derive(Debug, thiserror::Error)]
pub enum AskingError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("the answer goes on for more than {0} pages")]
    Endless(usize),
    #[error("the answer leads back to a page that was read")]
    Loop,
    #[error("the answer tells of a time to come, {ahead_s} s ahead: compare the clocks")]
    Future { ahead_s: u64 },
    #[error("the answer took longer than {0} s")]
    Slow(u64),
    #[error("the account is not configured")]
    NoAccount,
    #[error("this worker stops")]
    Stopped,
    #[error("reading the answer panicked")]
    Panicked,
}

impl AskingError {
    /// How the PSP behaved.
    #[must_use]
    pub const fn manner(&self) -> Manner {
        match self {
            Self::Read(error) | Self::Access(AccessError::Read(error)) => match error {
                ReadError::Unauthorized(401) => Manner::Refused,
                ReadError::TooManyRequests { retry_after } => Manner::SlowDown { retry_after: *retry_after },
                ReadError::Unavailable { retry_after, .. } => Manner::Failed { retry_after: *retry_after },
                ReadError::NotFound => Manner::Answered,
                // A single object may be forbidden; if all are, these are failures in a row.
                ReadError::Unauthorized(_) | ReadError::Unintelligible(_) => Manner::Failed { retry_after: None },
            },
            Self::Transport(_) | Self::Access(AccessError::Transport(_)) | Self::Slow(_) => Manner::Failed { retry_after: None },
            // An answer, if a bad one.
            Self::Access(AccessError::Malformed) | Self::Endless(_) | Self::Loop | Self::Future { .. } | Self::Panicked => {
                Manner::Answered
            }
            Self::Ask(_) | Self::Access(AccessError::Ask(_) | AccessError::NoneForAnother) | Self::NoAccount | Self::Stopped => {
                Manner::Unheard
            }
        }
    }
}

impl Asker {
    #[must_use]
    pub fn new(context: Arc<Context>, transport: Arc<dyn PspTransport>) -> Self {
        let access = Arc::new(Access::new(context.accounts.keys()));
        Self { context, transport, access }
    }

    /// Sends a request, with a token where the PSP wants one. One that it does not take any more is renewed once.
    ///
    /// # Errors
    /// The PSP does not answer, or gives no token.
    pub async fn send(
        &self,
        key: &AccountKey,
        account: &Account,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, AskingError> {
        let Self { context, transport, access } = self;
        for is_last in [false, true] {
            let now = context.clock.now();
            let Some(credentials) = access.credentials(key, account, &**transport, now).await? else { break };
            let mut authorized = request.clone();
            authorized.headers_mut().insert(AUTHORIZATION, credentials.clone());
            let response = transport.send(authorized).await?;
            if response.status() != StatusCode::UNAUTHORIZED || is_last {
                return Ok(response);
            }
            access.refused(key, &credentials).await;
        }
        Ok(transport.send(request).await?)
    }
}
