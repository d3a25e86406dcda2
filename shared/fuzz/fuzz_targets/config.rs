//! Configurations of any text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paybell_shared::config::Config;

fuzz_target!(|text: &str| {
    let _ = Config::parse(text, "paybell.toml", std::iter::empty());
});
