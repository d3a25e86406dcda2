//! What the ingress and the worker both speak.
//!
//! In the order of one webhook:
//! [`psp`] (verify, translate; pure) → [`envelope`] (the verified webhook) → [`queue`] (the port and its two
//! backends) → [`event`] and [`money`] (what a webhook says, in our words).
//!
//! Around it: [`config`] and [`secret`] (one file, secrets that never print), [`clock`] (time is an argument),
//! [`serve`] (the accept loop and its limits), [`ops`] (health and metrics), [`telemetry`] (names of metrics, logs),
//! [`shutdown`] (one owner of the life cycle).

pub mod clock;
pub mod config;
pub mod envelope;
pub mod event;
pub mod money;
pub mod ops;
pub mod psp;
pub mod queue;
pub mod secret;
pub mod serve;
pub mod shutdown;
pub mod telemetry;
