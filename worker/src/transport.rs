//! The way to a PSP's API: the only place of the worker that calls one.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Request, Response};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For the whole exchange.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// A page of 100 Stripe events of 10 kB each fits fourfold.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Sends a request that an adapter built.
#[async_trait]
pub trait PspTransport: Send + Sync {
    /// # Errors
    /// There is no answer, or more of it than an answer may have.
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError>;
}

#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("the PSP is not reached")]
    Unreached(#[from] reqwest::Error),
    #[error("the answer is larger than {ANSWER_BYTES_MAX} bytes")]
    TooLarge,
}

/// HTTPS with time-outs, a cap on the answer, and no redirects: a PSP's API does not redirect, and a redirect would carry
/// the credentials elsewhere.
pub struct HttpTransport(reqwest::Client);

impl HttpTransport {
    /// # Errors
    /// TLS cannot be set up.
    pub fn new() -> Result<Self, TransportError> {
        // An error means that there is a provider already, which is what is wanted.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(EXCHANGE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("paybell/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self(client))
    }
}

#[async_trait]
impl PspTransport for HttpTransport {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
        let request = reqwest::Request::try_from(request)?;
        let mut answer = self.0.execute(request).await.map_err(reqwest::Error::without_url)?;
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        let mut body = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(TransportError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        *response.body_mut() = body.freeze();
        Ok(response)
    }
}
