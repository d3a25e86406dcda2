//! stub
use super::*;
#[derive(Clone)]
pub struct Sqlite;
impl Sqlite {
    pub async fn open(_: QueueSettings) -> Result<Self, ConnectError> {
        todo!()
    }
    pub fn publisher(&self) -> Arc<dyn Publisher> {
        todo!()
    }
    pub fn consumer(&self) -> Box<dyn Consumer> {
        todo!()
    }
}
