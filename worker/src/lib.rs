//! Queue and clock to database: consume, apply, reconcile, internal API.
