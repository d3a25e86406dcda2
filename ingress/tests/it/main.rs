//! The ingress over real sockets, with a publisher whose verdict the test chooses. One binary, so that it links once.

mod accept;
mod binary;
mod certificate;
mod refuse;
mod spool;
mod stop;
mod support;
mod token;
