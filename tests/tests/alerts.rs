//! The alert rules that ship, by Prometheus' own tool: they can be read, fire when they should and not before, and speak of metrics
//! that there are.

use std::path::{Path, PathBuf};
use std::process::Command;

use paybell_shared::telemetry;

fn deployed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus")
}

fn files(ending: &str) -> Vec<String> {
    let names = std::fs::read_dir(deployed()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<String> = names.filter(|name| name.ends_with(ending)).collect();
    files.sort();
    assert!(!files.is_empty(), "none ends in {ending}");
    files
}

/// # Panics
/// It is not installed, or refuses.
fn promtool(arguments: &[&str], files: &[String]) {
    let done = Command::new("promtool").args(arguments).args(files).current_dir(deployed()).output().unwrap_or_else(|error| {
        panic!("promtool: {error}: run tests/run, which installs it, or apt-get install prometheus");
    });
    let said = [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(done.status.success(), "promtool {arguments:?}: {said}");
}

#[test]
fn the_rules_can_be_read() {
    promtool(&["check", "rules"], &files(".rules.yml"));
}

#[test]
fn the_rules_fire_when_they_should() {
    promtool(&["test", "rules"], &files(".test.yml"));
}

#[test]
fn every_file_of_rules_is_tried() {
    let stems = |ending: &str| files(ending).iter().map(|name| name.trim_end_matches(ending).to_owned()).collect::<Vec<_>>();
    assert_eq!(stems(".rules.yml"), stems(".test.yml"));
}

#[test]
fn the_rules_speak_of_metrics_that_there_are() {
    let known = [
        telemetry::PAYMENTS_LEARNED,
        telemetry::WEBHOOKS_EXPECTED,
        telemetry::ORDERS_UNSETTLED,
        telemetry::WEBHOOK_SILENCE_SECONDS,
        telemetry::WEBHOOKS_TOTAL,
        telemetry::SWEEP_BEHIND_SECONDS,
        telemetry::SWEEP_FAILURES_TOTAL,
        telemetry::DEAD_LETTERS,
    ];
    for file in ["completeness.rules.yml", "dead-letters.rules.yml", "sweep.rules.yml"].into_iter().flat_map(files) {
        let text = std::fs::read_to_string(deployed().join(file)).unwrap();
        for name in text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_') {
            assert!(!name.starts_with("paybell_") || known.contains(&name), "{name} is no metric");
        }
    }
}
