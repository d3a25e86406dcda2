//! stub
use super::*;
pub struct Sqlite;
impl Sqlite {
    pub async fn open(_: &str) -> Result<Self, ConnectError> {
        todo!()
    }
}
#[async_trait]
impl Store for Sqlite {
    async fn epoch(&self) -> Result<Uuid, StoreError> {
        todo!()
    }
    async fn apply(&self, _: &Work<'_>) -> Result<Applied, StoreError> {
        todo!()
    }
    async fn order(&self, _: &str) -> Result<Option<StoredOrder>, StoreError> {
        todo!()
    }
    async fn orders(&self, _: Option<OrderStatus>, _: Option<&str>, _: u32) -> Result<Vec<StoredOrder>, StoreError> {
        todo!()
    }
    async fn balance(&self) -> Result<Balance, StoreError> {
        todo!()
    }
    async fn lease_checks(&self, _: Timestamp, _: Duration, _: Uuid, _: u32) -> Result<Vec<DueCheck>, StoreError> {
        todo!()
    }
    async fn finish_check(&self, _: &DueCheck, _: Option<Timestamp>, _: &str) -> Result<(), StoreError> {
        todo!()
    }
    async fn close(&self) {
        todo!()
    }
}
