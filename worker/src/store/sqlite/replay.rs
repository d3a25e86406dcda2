//! Reading kept bodies.

use paybell_shared::clock::Timestamp;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{QueryBuilder, Row as _, Sqlite};

use super::classify;
use crate::store::rows::{StoredBodyColumns, Window};
use crate::store::{BodyPlace, Selection, StoreError, StoredBody};

const BODIES: &str = "\
    SELECT b.*, (SELECT max(t.event_type) FROM events t WHERE t.received_at = b.received_at AND t.body_id = b.id) AS event_type
    FROM ";

pub(super) async fn bodies(
    connection: &mut SqliteConnection,
    selection: &Selection,
    after: Option<&BodyPlace>,
    limit: u32,
) -> Result<Vec<StoredBody>, StoreError> {
    let Some(places) = &selection.places else {
        return page(connection, selection, after, limit, None).await;
    };
    let mut found = Vec::new();
    for place in places {
        found.extend(page(connection, selection, after, 1, Some(place)).await?);
    }
    found.sort_by_key(|stored| stored.place);
    found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(found)
}

async fn page(
    connection: &mut SqliteConnection,
    selection: &Selection,
    after: Option<&BodyPlace>,
    limit: u32,
    place: Option<&BodyPlace>,
) -> Result<Vec<StoredBody>, StoreError> {
    let window = Window::of(selection, after);
    let mut query = QueryBuilder::new(BODIES);
    if selection.is_of_events() {
        query.push("(SELECT DISTINCT e.body_id AS id FROM events e WHERE e.body_id IS NOT NULL");
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
        query.push(") p JOIN bodies b ON b.id = p.id WHERE true");
    } else {
        query.push("bodies b WHERE true");
        push_window(&mut query, "b.received_at", "b.id", &window);
    }
    if let Some(place) = place {
        query.push(" AND b.id = ").push_bind(place.id);
    }
    if let Some(psp) = selection.account.as_ref().map(|account| &*account.psp).or(selection.psp.as_deref()) {
        query.push(" AND b.psp = ").push_bind(psp);
    }
    if let Some(account) = &selection.account {
        query.push(" AND b.account = ").push_bind(&*account.account);
    }
    query.push(" ORDER BY b.received_at, b.id LIMIT ").push_bind(limit);
    let rows = query.build().fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(|row| columns(row).map_err(classify)?.read()).collect()
}

fn push_window(query: &mut QueryBuilder<Sqlite>, time: &str, id: &str, window: &Window) {
    query.push(format_args!(" AND ({time}, {id}) > (")).push_bind(window.after.received_at.millis()).push(", ");
    query.push_bind(window.after.id).push(format_args!(") AND {time} < ")).push_bind(window.until.millis());
}

fn columns(row: &SqliteRow) -> Result<StoredBodyColumns, sqlx::Error> {
    let received_at = Timestamp::from_millis(row.try_get("received_at")?);
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
