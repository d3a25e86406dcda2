//! stub
use super::*;
#[derive(Clone)]
pub struct Amqp;
impl Amqp {
    pub fn new(_: QueueSettings) -> Result<Self, ConnectError> {
        todo!()
    }
    pub fn publisher(&self, _: &Shutdown) -> Arc<dyn Publisher> {
        todo!()
    }
    pub fn consumer(&self) -> Box<dyn Consumer> {
        todo!()
    }
}
