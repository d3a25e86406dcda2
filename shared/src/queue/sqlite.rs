//! stub
use super::*;
#[derive(Clone)]
pub struct Sqlite;
impl Sqlite {
    pub async fn open(_: QueueSettings) -> Result<Self, ConnectError> {
        todo!()
    }
    pub fn publisher(&self, _: &Shutdown) -> Arc<dyn Publisher> {
        todo!()
    }
    pub fn consumer(&self) -> Box<dyn Consumer> {
        todo!()
    }
    pub fn dead_letters(&self) -> Box<dyn Consumer> {
        todo!()
    }
}
