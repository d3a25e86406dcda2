//! `paybell demo`: every PSP that can be played, and every order as the PSPs' own books have it.

use paybell::simulator;
use paybell_tests::servers::process::Service;
use serde_json::Value;

/// Of each PSP; with each, everything that the demo does takes less than a quarter of a minute.
const ORDERS_PER_PSP: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_order_at_every_psp_comes_to_the_truth() {
    let orders = (simulator::ALL.len() * ORDERS_PER_PSP).to_string();
    let arguments = ["demo", "--psps", "all", "--orders", &orders, "--seed", "4", "--json"];
    let demo = Service::start_unready("paybell", &arguments, "", &[]);
    let status = demo.exit_status().await;
    let log = demo.log();
    let sheet: Value = log.lines().find_map(|line| serde_json::from_str(line).ok()).expect("a sheet in JSON");
    assert_eq!(status, 0, "{sheet:#}");
    for (dialect, line) in simulator::ALL.iter().zip(sheet["psps"].as_array().unwrap()) {
        assert_eq!(line["psp"], dialect.id());
        assert_eq!((&line["orders"], &line["agree"]), (&ORDERS_PER_PSP.into(), &ORDERS_PER_PSP.into()), "{line}");
        // Of no other payment a webhook is missed than of those whose webhooks were lost on purpose.
        let count = |value: &Value| value.as_u64().unwrap();
        assert!(count(&line["told"]["by_asking_alone"]) <= count(&line["lost"]), "{line}");
        // First, or after a list that was read in between.
        assert!(count(&line["told"]["by_webhook"]) + count(&line["told"]["late"]) > 0, "{line}");
    }
    assert_eq!(sheet["psps"].as_array().unwrap().len(), simulator::ALL.len());
    assert_eq!(sheet["agrees"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_psp_that_cannot_be_played_is_refused_by_name() {
    let demo = Service::start_unready("paybell", &["demo", "--psps", "stripe,nobody"], "", &[]);
    assert_eq!(demo.exit_status().await, 2);
    assert!(demo.log().contains("nobody"), "{}", demo.log());
}
