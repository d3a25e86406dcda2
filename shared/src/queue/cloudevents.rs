//! CloudEvents in binary mode over AMQP 0-9-1: one mapping, both ways.
use super::Message;
use crate::envelope::Envelope;

#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the message's header {0} is missing or malformed")]
    Header(&'static str),
    /// Written by a newer Paybell: for newer workers.
    #[error("the envelope's schema {0} is newer than this worker's")]
    Newer(u32),
}

impl From<Envelope> for Message {
    fn from(_: Envelope) -> Self {
        todo!()
    }
}

impl TryFrom<Message> for Envelope {
    type Error = EnvelopeError;
    fn try_from(_: Message) -> Result<Self, EnvelopeError> {
        todo!()
    }
}
