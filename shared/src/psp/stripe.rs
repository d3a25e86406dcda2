//! stub
use super::*;
pub struct Stripe;
impl Psp for Stripe {
    fn id(&self) -> &'static str {
        "stripe"
    }
    fn profile(&self) -> &'static Profile {
        todo!()
    }
    fn check(&self, _: &Account) -> Result<(), SettingError> {
        todo!()
    }
    fn verify(&self, _: &WebhookRequest<'_>, _: &Keys, _: Timestamp) -> Result<Verified, Rejection> {
        todo!()
    }
    fn translate(&self, _: &Envelope, _: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        todo!()
    }
    fn status_request(&self, _: &str, _: Option<&str>, _: &Account) -> Result<Request<Bytes>, AskError> {
        todo!()
    }
    fn read_status(&self, _: &Asked<'_>, _: &Response<Bytes>, _: &Account) -> Result<Answer, ReadError> {
        todo!()
    }
    fn events_request(&self, _: Timestamp, _: Option<&str>, _: &Account) -> Result<Request<Bytes>, AskError> {
        todo!()
    }
    fn read_events(&self, _: &Asked<'_>, _: &Response<Bytes>, _: &Account) -> Result<Answer, ReadError> {
        todo!()
    }
    fn endpoints_request(&self, _: Option<&str>, _: &Account) -> Result<Request<Bytes>, AskError> {
        todo!()
    }
    fn read_endpoints(&self, _: &Response<Bytes>) -> Result<EndpointList, ReadError> {
        todo!()
    }
}
