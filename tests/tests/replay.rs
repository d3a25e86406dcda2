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
}
