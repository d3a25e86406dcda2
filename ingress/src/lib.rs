//! HTTP to queue: route, limit, verify, publish, acknowledge.
