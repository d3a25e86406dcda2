//! Reading kept bodies.

use paybell_shared::clock::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::errors::classify;
use super::read::timestamp;
use crate::store::rows::{StoredBodyColumns, Window};
use crate::store::{BodyPlace, Selection, StoreError, StoredBody};

const BODIES: &str = "\
    SELECT b.id, b.received_at, b.psp, b.account, b.webhook_id, b.secret_name, b.content_type, b.headers::text AS headers,
        b.bytes, (SELECT max(t.event_type) FROM events t WHERE t.received_at = b.received_at AND t.body_id = b.id) AS event_type
    FROM ";

pub(super) async fn bodies(
    connection: &mut PgConnection,
    selection: &Selection,
    after: Option<&BodyPlace>,
    limit: u32,
) -> Result<Vec<StoredBody>, StoreError> {
    let window = Window::of(selection, after);
    let mut query = QueryBuilder::new(BODIES);
    if let Some(places) = &selection.places {
        let (times, ids): (Vec<OffsetDateTime>, Vec<Uuid>) =
            places.iter().map(|place| (OffsetDateTime::from(place.received_at), place.id)).unzip();
        query.push("UNNEST(").push_bind(times).push("::timestamptz[], ").push_bind(ids);
        query.push("::uuid[]) AS p(received_at, id) JOIN bodies b ON b.received_at = p.received_at AND b.id = p.id WHERE true");
    } else if selection.is_of_events() {
        // Through the events to their bodies: each has few of the index's entries that it is found by.
        query.push("(SELECT DISTINCT e.received_at, e.body_id AS id FROM events e WHERE e.body_id IS NOT NULL");
        if let Some(order_id) = &selection.order_id {
            query.push(" AND e.order_id = ").push_bind(order_id);
        }
        if let Some(key) = &selection.event {
            query.push(" AND e.psp = ").push_bind(&*key.psp).push(" AND e.account = ").push_bind(&*key.account);
            query.push(" AND e.event_id = ").push_bind(&*key.event_id);
        }
        if let Some(fingerprint) = &selection.fingerprint {
            query.push(" AND e.fingerprint = ").push_bind(fingerprint);
        }
        push_window(&mut query, "e.received_at", "e.body_id", &window);
        query.push(") p JOIN bodies b ON b.received_at = p.received_at AND b.id = p.id WHERE true");
    } else {
        query.push("bodies b WHERE true");
    }
    // Also where the events have been through it: here it names the partitions.
    push_window(&mut query, "b.received_at", "b.id", &window);
    if let Some(psp) = selection.account.as_ref().map(|account| &*account.psp).or(selection.psp.as_deref()) {
        query.push(" AND b.psp = ").push_bind(psp);
    }
    if let Some(account) = &selection.account {
        query.push(" AND b.account = ").push_bind(&*account.account);
    }
    query.push(" ORDER BY b.received_at, b.id LIMIT ").push_bind(i64::from(limit));
    let rows = query.build().fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(|row| columns(row).map_err(classify)?.read()).collect()
}

fn push_window(query: &mut QueryBuilder<Postgres>, time: &str, id: &str, window: &Window) {
    let (after, until) = (OffsetDateTime::from(window.after.received_at), OffsetDateTime::from(window.until));
    query.push(format_args!(" AND {time} >= ")).push_bind(after).push(format_args!(" AND ({time}, {id}) > ("));
    query.push_bind(after).push(", ").push_bind(window.after.id).push(format_args!(") AND {time} < ")).push_bind(until);
}

fn columns(row: &PgRow) -> Result<StoredBodyColumns, sqlx::Error> {
    let received_at: Timestamp = timestamp(row, "received_at")?;
    Ok(StoredBodyColumns {
        place: BodyPlace { received_at, id: row.try_get("id")? },
        psp: row.try_get("psp")?,
        account: row.try_get("account")?,
        webhook_id: row.try_get("webhook_id")?,
        secret_name: row.try_get("secret_name")?,
        content_type: row.try_get("content_type")?,
        headers: row.try_get("headers")?,
        bytes: row.try_get("bytes")?,
        event_type: row.try_get("event_type")?,
    })
}
