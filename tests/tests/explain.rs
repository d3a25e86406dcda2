//! `paybell explain` against a running Paybell: what a person sees who asks why.

use http::StatusCode;
use paybell_tests::servers::process::Service;
use paybell_tests::servers::{free_port, temporary_folder};
use paybell_tests::shop::{Shop, configuration, webhook};
use serde_json::Value;

/// What the command printed, and how it ended.
struct Said {
    status: i32,
    text: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(self.text.trim()).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

async fn explain(configuration: &str, api: &str, arguments: &[&str]) -> Said {
    let arguments: Vec<&str> = ["explain"].into_iter().chain(arguments.iter().copied()).collect();
    let listen = api.trim_start_matches("http://");
    let command = Service::start_unready("paybell", &arguments, configuration, &[("PAYBELL_API_LISTEN", listen)]);
    let status = command.exit_status().await;
    // A table breaks its lines where the terminal ends.
    let text: Vec<String> = command.log().replace('│', " ").split_whitespace().map(str::to_owned).collect();
    Said { status, text: text.join(" ") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_and_its_events_are_explained() {
    let folder = temporary_folder("explain").unwrap();
    let file = |name: &str| format!("sqlite:{}", folder.join(name).display());
    let configuration = configuration(&file("queue.db"), &file("store.db"), "memory:");
    let serve = Service::serve(&configuration).await;
    let (shop, api) = (Shop::of(&serve, &serve), serve.api_url());
    let ask = async |arguments: &[&str]| explain(&configuration, &api, arguments).await;

    let paid = webhook("payment_intent.succeeded", "ord/1");
    assert_eq!(shop.send(&paid).await, Some(StatusCode::OK));
    shop.until("ord%2F1", "paid").await;
    shop.register("ord%2F1", 4999).await;
    let mut refund = webhook("refund.created", "nobody");
    let without_order = String::from_utf8(refund.body.to_vec()).unwrap().replace(r#""order_id":"nobody""#, r#""note":"none""#);
    refund.body = without_order.into();
    assert_eq!(shop.send(&refund).await, Some(StatusCode::OK));
    shop.until_counted("parked", 1).await;

    let said = ask(&["ord/1"]).await;
    assert_eq!(said.status, 0, "{}", said.text);
    for part in
        ["Order ord/1: paid, version 2", "proven by", "49.99 EUR", "registered 49.99 EUR by stripe/default", &paid.id[..12]]
    {
        assert!(said.text.contains(part), "{part} is missing: {}", said.text);
    }
    let said = ask(&["ord/1", "--json", "--limit", "2"]).await.json();
    assert_eq!((&said["kind"], &said["order"]["status"], &said["more"]), (&"order".into(), &"paid".into(), &true.into()));
    let kinds: Vec<&str> = said["timeline"].as_array().unwrap().iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["accepted", "applied"]);

    let named = format!("stripe/default/{}", paid.id);
    let said = ask(&[&named]).await;
    assert_eq!(said.status, 0, "{}", said.text);
    for part in ["payment_intent.succeeded", "applied, order ord/1", "bytes are kept"] {
        assert!(said.text.contains(part), "{part} is missing: {}", said.text);
    }
    let parked = format!("stripe/default/{}", refund.id);
    let said = ask(&["--event", &parked]).await;
    assert_eq!(said.status, 0, "{}", said.text);
    assert!(said.text.contains("It waits under: ") && said.text.contains("Deadline "), "{}", said.text);
    let event = ask(&[&parked, "--json"]).await.json();
    assert_eq!(
        (&event["kind"], &event["event"]["outcome"], &event["event"]["body"]),
        (&"event".into(), &"parked".into(), &"kept".into())
    );

    let (status, page) = shop.get("/v1/parked").await;
    assert_eq!((status, &page["items"][0]["event_id"]), (StatusCode::OK, &refund.id.clone().into()));
    assert_eq!((&page["items"][0]["overdue"], &page["next_cursor"]), (&false.into(), &Value::Null));
    assert_eq!(shop.get("/v1/parked?overdue=true").await.1["items"], Value::Array(Vec::new()));
    for path in
        ["/v1/parked?cursor=x", "/v1/parked?limit=0", "/v1/parked?overdue=perhaps", "/v1/orders/ord%2F1/timeline?cursor=x"]
    {
        assert_eq!(shop.get(path).await.0, StatusCode::BAD_REQUEST, "{path}");
    }
    let (_, first) = shop.get("/v1/orders/ord%2F1/timeline?limit=1").await;
    let cursor = first["next_cursor"].as_str().unwrap();
    let (_, second) = shop.get(&format!("/v1/orders/ord%2F1/timeline?limit=1&cursor={cursor}")).await;
    assert_eq!((&first["items"][0]["kind"], &second["items"][0]["kind"]), (&"accepted".into(), &"applied".into()));
    assert_eq!(shop.get("/v1/events/stripe/default/evt%2F%00").await.0, StatusCode::NOT_FOUND);

    // Not found, and what to try.
    for (arguments, hint) in [
        (&["ord-2"][..], "stripe/default/ord-2"),
        (&["stripe/evt_1"], "stripe/default/evt_1"),
        (&["stripe/default/evt_1"], "neither an order nor an event"),
        (&["--order", &named], "no order"),
        (&["--event", "stripe/default/evt_1"], "no event"),
        (&["ord/1 "], "blanks"),
    ] {
        let said = ask(arguments).await;
        assert_eq!(said.status, 1, "{arguments:?}: {}", said.text);
        assert!(said.text.contains(hint), "{arguments:?}: {}", said.text);
    }
    for arguments in [
        &["--event", "evt_1"][..],
        &[""],
        &["a", "--order", "--event"],
        &["a", "--limit", "0"],
        &["a", "--api", "127.0.0.1:1"],
        &[],
    ] {
        let said = ask(arguments).await;
        assert_eq!(said.status, 2, "{arguments:?}: {}", said.text);
    }
    let said = ask(&["ord/1", "--token", "wrong"]).await;
    assert!(said.status == 2 && said.text.contains("token"), "{}", said.text);
    let nobody = format!("http://127.0.0.1:{}", free_port());
    for elsewhere in [nobody.as_str(), &serve.webhooks_url()] {
        let said = ask(&["ord/1", "--api", elsewhere]).await;
        assert!(said.status == 3 && said.text.contains(elsewhere), "{}", said.text);
    }
    std::fs::remove_dir_all(folder).unwrap();
}
