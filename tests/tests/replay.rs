//! Replays: the suite on both stores, and the command against a running Paybell.

mod sqlite {
    use paybell_tests::conformance::store::Bench;

    paybell_tests::replay_suite!(Bench::sqlite);
}

mod postgres {
    use paybell_tests::conformance::store::Bench;
    use paybell_tests::servers;

    paybell_tests::replay_suite!(bench);

    async fn bench() -> Bench {
        Bench::new(servers::postgres().await.database().await).await
    }

    /// Plans are made while the tables are empty, and kept.
    #[tokio::test]
    async fn what_is_meant_is_found_by_indexes() {
        const ROUNDS: usize = 30;
        let bench = bench().await;
        for round in 0..ROUNDS {
            paybell_tests::conformance::replay::selected_in_every_way(&bench, round).await;
        }
        // A session counts what it did when it ends.
        bench.store.close().await;
        let sessions =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'paybell'";
        while bench.count(sessions).await > 0 {
            tokio::task::yield_now().await;
        }
        let scanned = bench
            .texts("SELECT relname || ' ' || seq_scan FROM pg_stat_user_tables WHERE seq_scan >= 15 AND relname !~ 'sqlx|meta'")
            .await;
        assert_eq!(scanned, [""; 0], "whole tables were read");
    }
}

mod running {
    use std::path::{Path, PathBuf};
    use std::process::{Output, Stdio};

    use paybell_tests::servers::process::{Service, built};
    use paybell_tests::servers::{free_port, http_client, temporary_folder};
    use paybell_tests::shop::{Shop, TOKEN, configuration, webhook};
    use reqwest::StatusCode;
    use serde_json::{Value, json};
    use tokio::process::Command;

    const READER: &str = "token-that-may-only-read";

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Two webhooks came while the setting that leads them to their orders was wrong. Now it is right.
    async fn mended() -> (Folder, Service) {
        let folder = Folder(temporary_folder("replay").unwrap());
        let file = |name: &str| format!("sqlite:{}", folder.0.join(name).display());
        let wrong = configuration(&file("queue.db"), &file("store.db"), "memory:") + "order_reference = \"metadata.nothing\"\n";
        let reader = format!("[[api.tokens]]\nname = \"reader\"\nsecret = {READER:?}\nscopes = [\"read\"]\n");
        let right = wrong.replace("metadata.nothing", "metadata.order_id") + &reader;
        let before = Service::serve(&wrong).await;
        let shop = Shop::of(&before, &before);
        for order in ["o-1", "o-2"] {
            assert_eq!(shop.send(&webhook("payment_intent.succeeded", order)).await, Some(StatusCode::OK));
        }
        shop.until_counted("parked", 2).await;
        before.terminate();
        assert_eq!(before.exit_status().await, 0);
        (folder, Service::serve(&right).await)
    }

    async fn paybell(folder: &Path, api: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(built("paybell").unwrap());
        command.arg("replay").args(arguments).args(["--api", api, "--token", TOKEN]);
        // No configuration but what is said here.
        command.env_remove("PAYBELL_CONFIG").current_dir(folder).stdin(Stdio::null()).output().await.unwrap()
    }

    /// The exit code and what was printed.
    fn said(output: &Output) -> (i32, String) {
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_command_shows_then_changes_then_finds_nothing() {
        let (folder, service) = mended().await;
        let (shop, api) = (Shop::of(&service, &service), service.api_url());
        let replay = async |arguments: &[&str]| said(&paybell(&folder.0, &api, arguments).await);

        let (code, text) = replay(&["--psp", "stripe"]).await;
        assert!(code == 1 && text.contains("force it") && text.contains("2 webhooks skipped"), "{code}: {text}");
        let (code, text) = replay(&["--psp", "stripe", "--force"]).await;
        assert!(code == 1 && text.contains("order o-1 status") && text.contains("would be"), "{code}: {text}");
        assert_eq!(shop.get("/v1/orders/o-1").await.0, StatusCode::NOT_FOUND, "it was a dry run");

        let wanted = ["--psp", "stripe", "--account", "default", "--since", "2020-01-01T00:00:00Z", "--force", "--rate", "1"];
        let (code, text) = replay(&[&wanted[..], &["--apply", "--reason", "PAY-12", "--json"]].concat()).await;
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let totals = json!({ "webhooks": 2, "unchanged": 0, "skipped": 0, "events": 2, "orders": 2 });
        assert_eq!((code, lines.len(), &lines.last().unwrap()["totals"]), (0, 5, &totals), "{text}");
        for order in ["o-1", "o-2"] {
            let (_, order) = shop.get(&format!("/v1/orders/{order}")).await;
            assert_eq!((&order["status"], &order["captured"]), (&json!("paid"), &json!(4999)));
        }
        for selection in [&["--psp", "stripe"], &["--order", "o-2"]] {
            let (code, text) = replay(&[&selection[..], &["--force"]].concat()).await;
            assert!(code == 0 && text.contains("0 events and 0 orders"), "{code}: {text}");
        }
        // One that comes again is one that is known.
        assert_eq!(shop.send(&webhook("payment_intent.succeeded", "o-3")).await, Some(StatusCode::OK));
        shop.until("o-3", "paid").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_calls_it_wrongly_is_told_how() {
        let (folder, service) = mended().await;
        let api = service.api_url();
        let codes: [(&[&str], i32); 7] = [
            (&[], 2),
            (&["--psp", "stripe", "--apply"], 2),
            (&["--account", "default"], 2),
            (&["--event", "evt_1"], 2),
            (&["--order", "o-1", "--fingerprint", "f"], 2),
            (&["--psp", "stripe", "--since", "yesterday"], 2),
            (&["--event", "stripe/default/evt_unheard_of"], 0),
        ];
        for (arguments, expected) in codes {
            let (code, text) = said(&paybell(&folder.0, &api, arguments).await);
            assert_eq!(code, expected, "{arguments:?}: {text}");
        }
        let nobody = format!("http://127.0.0.1:{}", free_port());
        assert_eq!(said(&paybell(&folder.0, &nobody, &["--psp", "stripe"]).await).0, 3);

        let post = async |token: &str, body: Value| {
            let request = http_client().post(format!("{api}/v1/replays")).bearer_auth(token).json(&body);
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
        };
        let bad = [
            (422, json!({})),
            (422, json!({ "account": "default" })),
            (422, json!({ "psp": "stripe", "dry_run": false })),
            (422, json!({ "psp": "stripe", "dry_run": false, "reason": " " })),
            (422, json!({ "psp": "stripe", "limit": 0 })),
            (422, json!({ "psp": "stripe", "limit": 501 })),
            (422, json!({ "order_id": "" })),
            (422, json!({ "order_id": "a\u{0}" })),
            (422, json!({ "since": "yesterday" })),
            (422, json!({ "orders": "all" })),
            (400, json!({ "psp": "stripe", "cursor": "1" })),
        ];
        for (status, body) in bad {
            let (told, problem) = post(TOKEN, body.clone()).await;
            assert_eq!((told, &problem["status"]), (status, &json!(status)), "{body}: {problem}");
        }
        assert_eq!(post(READER, json!({ "psp": "stripe" })).await.0, 403, "to ask is to operate");
        // The first page of two, and its items.
        let (_, page) = post(TOKEN, json!({ "psp": "stripe", "force": true, "limit": 1 })).await;
        let kinds: Vec<&str> = page["items"].as_array().unwrap().iter().map(|item| item["kind"].as_str().unwrap()).collect();
        assert_eq!((kinds, page["totals"]["webhooks"].as_i64()), (vec!["event", "order"], Some(1)));
        let (before, after) = (&page["items"][0]["before"], &page["items"][0]["after"]);
        assert_eq!((&before["outcome"], &after["outcome"]), (&json!("parked"), &json!("applied")));
        let next = json!({ "psp": "stripe", "force": true, "cursor": page["next_cursor"] });
        let (_, page) = post(TOKEN, next).await;
        assert_eq!((&page["totals"]["webhooks"], &page["next_cursor"]), (&json!(1), &Value::Null));
    }
}
