//! The binary's manners: it teaches, and it names what is wrong.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Output};

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paybell-ingress"));
    let output = command.args(arguments).env_clear().envs(environment.iter().copied()).output();
    output.unwrap()
}

#[test]
fn help_teaches() {
    let help = String::from_utf8(run(&["--help"], &[]).stdout).unwrap();
    for words in ["/webhooks/{psp}", "--config", "PAYBELL_CONFIG", "--health", "PAYBELL_QUEUE_URL", "RUST_LOG", "Exit status"] {
        assert!(help.contains(words), "{words} is not in\n{help}");
    }
}

#[test]
fn a_wrong_setting_ends_with_2_and_its_name() {
    for (variable, value, named) in [
        ("PAYBELL_QUEUE_URL", "nowhere", "[queue] url"),
        ("PAYBELL_QUEUE_URL", "amqp://127.0.0.1:99999", "[queue] url"),
        ("PAYBELL_LIMITS_IN_FLIGHT_MAX", "0", "in_flight_max"),
        ("PAYBELL_INGRESS_LISTEN", "x", "PAYBELL_INGRESS_LISTEN"),
        ("PAYBELL_CONFIG", "/nonexistent/paybell.toml", "/nonexistent/paybell.toml"),
    ] {
        let output = run(&[], &[(variable, value)]);
        let shown = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{variable}: {shown}");
        assert!(shown.contains(named), "{variable}: {shown}");
    }
}

#[test]
fn health_without_an_ingress_is_1() {
    // A port that is taken, and where nobody answers.
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["--health"], &[("PAYBELL_INGRESS_OPS_LISTEN", &address)]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
