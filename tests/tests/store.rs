//! The store's suite on both backends, and what only PostgreSQL can suffer.

mod sqlite {
    use paybell_tests::conformance::store::Bench;

    paybell_tests::store_suite!(Bench::sqlite);
    paybell_tests::inspect_suite!(Bench::sqlite);
    paybell_tests::checks_suite!(Bench::sqlite);
    paybell_tests::learning_suite!(Bench::sqlite);
    paybell_tests::expiry_suite!(Bench::sqlite);
    paybell_tests::watches_suite!(Bench::sqlite);
    paybell_tests::sweeps_suite!(Bench::sqlite);
}

mod postgres {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::future::join_all;
    use paybell_shared::event::PaymentEvent;
    use paybell_tests::conformance::store::{self, Bench, NOW, arrivals, captured, refund, registration};
    use paybell_tests::servers;
    use paybell_worker::inbox::Outcome;
    use paybell_worker::store::{Notice, NoticeKey, NoticeOutcome, Reason, Registered, StoreError};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::watch;
    use url::Url;

    paybell_tests::store_suite!(bench);
    paybell_tests::inspect_suite!(bench);
    paybell_tests::checks_suite!(bench);
    paybell_tests::learning_suite!(bench);
    paybell_tests::expiry_suite!(bench);
    paybell_tests::watches_suite!(bench);
    paybell_tests::sweeps_suite!(bench);

    async fn bench() -> Bench {
        Bench::new(servers::postgres().await.database().await).await
    }

    #[tokio::test]
    async fn what_it_cannot_hold_is_refused_with_its_whole_batch() {
        let bench = bench().await;
        let long: String = (0..4000).map(|_| rand::random::<char>()).filter(|c| *c != '\0').collect();
        for poison in ["evt_\0", &long] {
            let batch = arrivals(&[captured("evt_1", "pi_1", Some("order-1"), 1), captured(poison, "pi_2", Some("order-2"), 1)]);
            let error = bench.try_apply(&batch, &[], true).await.unwrap_err();
            assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
            for table in ["events", "orders", "refs", "transitions", "books", "checks", "learned", "unasked"] {
                assert_eq!(bench.count(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
            }
        }
        bench.apply(&[captured("evt_1", "pi_1", Some("order-1"), 1)]).await;
        bench.check_invariants().await;
    }

    /// Rows are locked and written in one order by all, so that nobody waits in a circle.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_workers_never_deadlock() {
        let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
        let bench_of_orders = slow_bench().await;
        store::many_workers_agree_with_one(&bench_of_orders).await;
        close_and_wait(&bench_of_orders).await;
        assert_eq!(bench_of_orders.count(deadlocks).await, 0);

        let bench_of_keys = slow_bench().await;
        store::one_key_met_by_many_at_once_is_written_once(&bench_of_keys).await;
        close_and_wait(&bench_of_keys).await;
        assert_eq!(bench_of_keys.count(deadlocks).await, 0);
    }

    /// Every row takes a millisecond, so that transactions overlap.
    async fn slow_bench() -> Bench {
        let bench = bench().await;
        bench
            .execute(
                "CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     PERFORM pg_sleep(0.001);
                     RETURN NEW;
                 END $$;",
            )
            .await;
        for table in ["events", "refs", "orders", "books", "checks", "learned"] {
            let trigger = "BEFORE INSERT OR UPDATE ON";
            bench.execute(&format!("CREATE TRIGGER slow {trigger} {table} FOR EACH ROW EXECUTE FUNCTION take_time()")).await;
        }
        bench
    }

    /// Plans are made while the tables are empty, and kept.
    #[tokio::test]
    async fn rows_are_found_by_their_keys_from_the_first_batch_on() {
        const BATCHES: usize = 80;
        let bench = bench().await;
        for n in 0..BATCHES {
            let (id, other) = (format!("pi_{n}"), format!("pi_other_{n}"));
            let batch = [refund(&format!("evt_r{n}"), &id, "re", 1), refund(&format!("evt_o{n}"), &other, "re", 1)];
            bench.apply(&batch).await;
            bench.apply(&[captured(&format!("evt_{n}"), &id, Some("order-1"), 100)]).await;
            bench.try_apply(&[], &[registration(&format!("order-{n}-2"), Some(&other), 100)], true).await.unwrap();
            assert!(bench.store.order("order-1").await.unwrap().is_some());
            look_at_all(&bench).await;
        }
        close_and_wait(&bench).await;
        let scans = "SELECT coalesce(sum(seq_scan), 0)::bigint FROM pg_stat_user_tables
             WHERE relname IN ('events', 'orders', 'refs', 'parkings', 'transitions', 'checks', 'books', 'learned', 'unasked')";
        // Making the indexes scans each table once.
        let scans = bench.count(scans).await;
        assert!(scans < i64::try_from(BATCHES).unwrap() / 2, "{scans} whole tables were read");
    }

    /// What the watches read, again and again.
    async fn look_at_all(bench: &Bench) {
        let (since, until) = (NOW.minus(Duration::from_hours(1)), NOW.plus(Duration::from_hours(1)));
        bench.store.lease_orders(NOW, until, 10).await.unwrap();
        bench.store.learned(since, until).await.unwrap();
        bench.store.asked_first(since, until, until, &[(store::account(), Duration::from_hours(1))]).await.unwrap();
        bench.store.expected(&store::account(), since, until).await.unwrap();
        for reason in Reason::ALL {
            bench.store.unsettled(reason, &[store::account()], until, None, 10).await.unwrap();
            bench.store.count_unsettled(reason, &[store::account()], until).await.unwrap();
        }
    }

    /// Whoever waits: those due at another destination, and those of a dead one, whose orders' first changes are due in hours.
    #[tokio::test]
    async fn a_claim_reads_no_more_than_it_takes() {
        const LEASE: Duration = Duration::from_secs(30);
        const LIMIT: u32 = 10;
        let bench = bench().await;
        let lease = async |destination: &str, now| {
            bench.store.lease_notices(destination, now, LEASE, bench.ids.next(), LIMIT).await.unwrap()
        };
        // Plans are made while the table is empty, and kept.
        for _ in 0..10 {
            assert!(lease("live", NOW).await.is_empty());
        }
        bench.apply(&[captured("evt_1", "pi_1", Some("order-1"), 4999)]).await;
        bench
            .execute(
                "INSERT INTO transitions (order_id, version, id, to_status, at, view)
                     SELECT 'order-' || o, v, gen_random_uuid(), to_status, at, view
                     FROM transitions t, generate_series(2, 20001) o, generate_series(1, 2) v;
                 INSERT INTO outbox (destination, order_id, version, at, next_attempt_at)
                     SELECT d, order_id, version, at, at + CASE WHEN d = 'dead' AND version = 1 THEN interval '6 h' ELSE '0' END
                     FROM transitions, UNNEST(ARRAY['dead', 'live', 'other']) d WHERE order_id <> 'order-1';",
            )
            .await;
        let mut claimed = 0;
        for _ in 0..10 {
            let notices = lease("live", NOW).await;
            claimed += notices.len();
            let told = |notice: &Notice| {
                let Notice { destination, change, .. } = notice;
                let order_id = change.order.id.clone();
                (NoticeKey { destination: Arc::clone(destination), order_id, version: change.order.version }, NoticeOutcome::Told)
            };
            let told: Vec<_> = notices.iter().map(told).collect();
            bench.store.finish_notices(NOW, notices[0].lease_token, &told).await.unwrap();
            // Each puts off what it meets.
            assert!(lease("dead", NOW).await.is_empty());
        }
        close_and_wait(&bench).await;
        let read = |counter: &str| format!("SELECT {counter}::bigint FROM pg_stat_user_tables WHERE relname = 'outbox'");
        assert_eq!(bench.count(&read("seq_tup_read")).await, 0, "the whole table was read");
        let rows = bench.count(&read("idx_tup_fetch")).await;
        assert!((50..10_000).contains(&rows), "{rows} rows of 120,000 were read to claim {claimed}");
        assert!(claimed >= 50, "{claimed}");
    }

    /// A session counts what it did when it ends.
    async fn close_and_wait(bench: &Bench) {
        bench.store.close().await;
        let sessions =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'paybell'";
        while bench.count(sessions).await > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// The server ends the connection inside the commit, and the transaction with it.
    #[tokio::test]
    async fn a_commit_that_was_undone_is_done_again() {
        let bench = bench().await;
        bench
            .execute(
                "CREATE SEQUENCE commits;
                 CREATE FUNCTION die_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     IF nextval('commits') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
                     RETURN NULL;
                 END $$;
                 CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
                     FOR EACH ROW EXECUTE FUNCTION die_once();",
            )
            .await;
        let outcomes = bench.apply(&[captured("evt_1", "pi_1", Some("order-1"), 4999)]).await;
        assert_eq!(outcomes, [("evt_1".to_owned(), Some(Outcome::Applied))]);
        assert_eq!(bench.count("SELECT last_value FROM commits").await, 2, "the first commit was to die");
        bench.check_invariants().await;
    }

    /// The commit succeeds, and its answer never arrives.
    #[tokio::test]
    async fn a_commit_whose_answer_is_lost_is_not_done_again() {
        let mut url = Url::parse(&servers::postgres().await.database().await).unwrap();
        let proxy = CuttingProxy::start(format!("127.0.0.1:{}", url.port().unwrap())).await;
        url.set_port(Some(proxy.port)).unwrap();
        let bench = Bench::new(url.into()).await;
        proxy.cut_next_commit();
        let outcomes = bench.apply(&[captured("evt_1", "pi_1", Some("order-1"), 4999)]).await;
        assert_eq!(outcomes, [("evt_1".to_owned(), Some(Outcome::Applied))], "it was applied by this call, and is no duplicate");
        assert_eq!(proxy.cuts(), 1);
        assert_eq!(bench.count("SELECT count(*) FROM transitions").await, 1);

        // The same for a registration, whose answer the shop waits for.
        proxy.cut_next_commit();
        let applied = bench.try_apply(&[], &[registration("order-2", Some("pi_2"), 1)], true).await.unwrap();
        assert!(matches!(&applied.registrations[..], [Registered::Created(_)]), "{applied:?}");
        assert_eq!(proxy.cuts(), 2);
        bench.check_invariants().await;
    }

    /// Connections are ended at any moment while workers work; each tries again what was not done.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn ended_connections_lose_and_double_nothing() {
        let bench = bench().await;
        let (done, mut watched) = watch::channel(0_usize);
        let events = story(60);
        let work = async {
            let tasks = events.chunks(4).map(|batch| {
                let (bench, done) = (&bench, &done);
                async move {
                    while let Err(error) = bench.try_apply(&arrivals(batch), &[], true).await {
                        assert!(matches!(error, StoreError::Unavailable(_) | StoreError::Unknown(_)), "{error:?}");
                    }
                    done.send_modify(|count| *count += 1);
                }
            });
            join_all(tasks).await;
        };
        let end_them = async {
            // Once for each batch that got through: so it ends, and strikes while others are under way.
            while watched.changed().await.is_ok() {
                bench
                    .execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE datname = current_database() AND application_name = 'paybell'",
                    )
                    .await;
            }
        };
        tokio::select! {
            () = work => {}
            () = end_them => unreachable!("the sender lives as long as the test"),
        }
        told_in_full(&bench, 60).await;
    }

    /// The server's machine fails in the middle, and comes back.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_crash_of_the_server_loses_and_doubles_nothing() {
        let server = servers::Postgres::start_private().await;
        let bench = Bench::new(server.database().await).await;
        let done = AtomicUsize::new(0);
        let events = story(60);
        let (under_way, mut watched) = watch::channel(false);
        let work = async {
            let tasks = events.chunks(2).map(|batch| {
                let (bench, done, under_way) = (&bench, &done, &under_way);
                async move {
                    let result = bench.try_apply(&arrivals(batch), &[], true).await.map(drop);
                    if done.fetch_add(1, Ordering::Relaxed) == 5 {
                        under_way.send_replace(true);
                    }
                    (batch, result)
                }
            });
            join_all(tasks).await
        };
        let crash = async {
            watched.wait_for(|under_way| *under_way).await.unwrap();
            server.kill9();
            server.start_again().await;
        };
        let (results, ()) = tokio::join!(work, crash);
        for (batch, result) in &results {
            for event in *batch {
                let id = &event.key.event_id;
                let there = bench.count(&format!("SELECT count(*) FROM events WHERE event_id = '{id}'")).await;
                match result {
                    Ok(()) => assert_eq!(there, 1, "{id} was committed"),
                    Err(StoreError::Unknown(_)) => {}
                    Err(StoreError::Unavailable(_)) => assert_eq!(there, 0, "{id} was not committed"),
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
        for batch in events.chunks(2) {
            bench.try_apply(&arrivals(batch), &[], true).await.unwrap();
        }
        told_in_full(&bench, 60).await;
        bench.store.close().await;
    }

    /// The network swallows everything, or the server hangs: whoever asks is told so, and all is well when it is back.
    #[tokio::test]
    async fn a_silent_server_is_unavailable_until_it_speaks_again() {
        let server = servers::Postgres::start_private().await;
        let bench = Bench::new(server.database().await).await;
        bench.apply(&[captured("evt_1", "pi_1", Some("order-1"), 100)]).await;
        server.stop_process();
        let batch = arrivals(&[captured("evt_2", "pi_2", Some("order-2"), 100)]);
        let error = bench.try_apply(&batch, &[], true).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        let error = bench.store.order("order-1").await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        server.continue_process();
        bench.try_apply(&batch, &[], true).await.unwrap();
        assert_eq!(bench.count("SELECT count(*) FROM events").await, 2);
        bench.check_invariants().await;
        bench.store.close().await;
    }

    /// Payments of three orders and a refund of each payment.
    fn story(payments: usize) -> Vec<PaymentEvent> {
        let payment = |n: usize| {
            let (id, order) = (format!("pi_{n}"), format!("order-{}", n % 3));
            [captured(&format!("evt_{n}"), &id, Some(&order), 100), refund(&format!("evt_r{n}"), &id, &format!("re_{n}"), 1)]
        };
        (0..payments).flat_map(payment).collect()
    }

    async fn told_in_full(bench: &Bench, payments: i64) {
        bench.check_invariants().await;
        assert_eq!(bench.count("SELECT count(*) FROM events WHERE outcome = 'applied'").await, 2 * payments);
        for order in ["order-0", "order-1", "order-2"] {
            let view = bench.store.order(order).await.unwrap().unwrap().view;
            assert_eq!((view.captured, view.refunded), (payments / 3 * 100, payments / 3));
        }
    }

    /// Between the store and its server. When told to, it lets a `COMMIT` through, waits for the answer, and cuts the
    /// connection instead of passing it on.
    struct CuttingProxy {
        port: u16,
        state: Arc<Cutting>,
    }

    #[derive(Default)]
    struct Cutting {
        armed: AtomicBool,
        cuts: AtomicUsize,
    }

    impl CuttingProxy {
        async fn start(server: String) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let state = Arc::new(Cutting::default());
            let shared = Arc::clone(&state);
            // Ends with the test's runtime.
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let server = TcpStream::connect(&server).await.unwrap();
                    tokio::spawn(pass_on(client, server, Arc::clone(&shared)));
                }
            });
            Self { port, state }
        }

        fn cut_next_commit(&self) {
            self.state.armed.store(true, Ordering::SeqCst);
        }

        fn cuts(&self) -> usize {
            self.state.cuts.load(Ordering::SeqCst)
        }
    }

    async fn pass_on(mut client: TcpStream, mut server: TcpStream, state: Arc<Cutting>) -> std::io::Result<()> {
        let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
        loop {
            tokio::select! {
                length = client.read(&mut asked) => {
                    let asked = &asked[..length?];
                    if asked.is_empty() {
                        return Ok(());
                    }
                    server.write_all(asked).await?;
                    let is_commit = asked.windows(6).any(|bytes| bytes == b"COMMIT");
                    if is_commit && state.armed.swap(false, Ordering::SeqCst) {
                        let _answer = server.read(&mut answered).await?;
                        state.cuts.fetch_add(1, Ordering::SeqCst);
                        return Ok(());
                    }
                }
                length = server.read(&mut answered) => {
                    let answered = &answered[..length?];
                    if answered.is_empty() {
                        return Ok(());
                    }
                    client.write_all(answered).await?;
                }
            }
        }
    }
}
