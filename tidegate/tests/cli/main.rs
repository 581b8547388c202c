//! The real program, as an operator calls it.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is a failed test")]

mod certs;
mod cluster;
mod deploy;
mod gateway;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidegate_edge::auth::{AuthConfig, Authenticator, KeyAlgorithm, KeyConfig, KeySource, Secret};
use tidegate_protocol::ChannelName;
use tidegate_protocol::grants::Identity;
use tidegate_protocol::namespace::Namespace;
use tidegate_transport::clock;

/// The program, in a folder of its own and with nothing of this machine's settings.
fn tidegate(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.current_dir(folder).env_clear().env("XDG_CACHE_HOME", folder.join("cache"));
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    tidegate(folder).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a failed call said on stderr; nothing may be on stdout.
fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn every_command_has_help_with_examples() {
    let folder = TempDir::new().unwrap();
    let top = stdout(&run(folder.path(), &["--help"]));
    let all = ["dev", "serve", "edge", "core", "status", "publish", "subscribe", "token", "certs", "config"];
    for command in all {
        assert!(top.contains(&format!("\n  {command} ")), "{command}\n{top}");
    }
    let commands: [&[&str]; 14] = [
        &[],
        &["dev"],
        &["serve"],
        &["edge"],
        &["core"],
        &["status"],
        &["certs", "init"],
        &["certs", "node"],
        &["publish"],
        &["subscribe"],
        &["token"],
        &["config", "default"],
        &["config", "check"],
        &["config", "explain"],
    ];
    for command in commands {
        let help = stdout(&run(folder.path(), &[command, &["--help"]].concat()));
        assert!(help.contains("Usage: tidegate") && help.contains("Example"), "{command:?}\n{help}");
    }
    assert!(stdout(&run(folder.path(), &["--version"])).starts_with("tidegate 0."));
    assert_eq!(run(folder.path(), &["srve"]).status.code(), Some(2));
}

#[test]
fn the_default_file_explains_itself_as_written() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tidegate.toml");
    fs::write(&file, stdout(&run(folder.path(), &["config", "default"]))).unwrap();
    let explained = stdout(&run(folder.path(), &["config", "explain", "listen.quic"]));
    assert!(
        explained.starts_with("# tidegate.toml\nlisten.quic = \"0.0.0.0:4433\"  # tidegate.toml:"),
        "{explained}"
    );
    let checked = run(
        folder.path(),
        &[
            "config",
            "check",
            "--set",
            "auth.anonymous=true",
            "--quic",
            "false",
            "--tls",
            "false",
            "--plain",
            "127.0.0.1:8080",
        ],
    );
    assert_eq!(stdout(&checked), "OK: tidegate.toml\n");
}

#[test]
fn check_prints_every_problem_and_fails() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("my.toml"), "[lisen]\nquic = false\n[limits]\nframe = 'big'\n").unwrap();
    let text = failure(&run(folder.path(), &["config", "check", "--config", "my.toml"]));
    assert_eq!(
        text,
        "error: the configuration has 2 problems:\n  \
         my.toml:1:2: unknown key `lisen` at the top level; did you mean `listen`?\n  \
         my.toml:4:9: `limits.frame` cannot be \"big\": expected is a size, such as \"64KiB\", \"4MiB\" or a number of bytes\n"
    );
    let text = failure(&run(folder.path(), &["config", "check"]));
    assert!(text.contains("there is no TLS certificate") && text.contains("nobody could connect"), "{text}");
    assert_eq!(stdout(&run(folder.path(), &["config", "check", "--dev"])), "OK: no file, defaults\n");
}

#[test]
fn explain_names_the_origin_of_each_value() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("my.toml"), "[node]\nregion = 'eu'\nname = 'from-file'\n").unwrap();
    let output = tidegate(folder.path())
        .args(["config", "explain", "--workers", "3"])
        .env("TIDEGATE_CONFIG", "my.toml")
        .env("TIDEGATE_NODE__NAME", "from-environment")
        .output()
        .unwrap();
    let text = stdout(&output);
    for line in [
        "node.name = \"from-environment\"  # environment TIDEGATE_NODE__NAME",
        "node.region = \"eu\"  # my.toml:2:10",
        "node.workers = 3  # flag --workers",
        "limits.connections = 100000  # default",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let text = failure(&run(folder.path(), &["config", "explain", "listen.quik"]));
    assert_eq!(text, "error: unknown key `listen.quik`; did you mean `listen.quic`?\n");
}

const SECRET: &str = "a secret that only these tests use";

fn identity(token: &str, algorithm: KeyAlgorithm, source: KeySource) -> Identity {
    let authenticator = Authenticator::new(AuthConfig {
        keys: vec![KeyConfig { id: Some("one".to_owned()), algorithm, source }],
        jwks_files: Vec::new(),
        issuer: None,
        audience: Some("apps".to_owned()),
        leeway: Duration::ZERO,
        max_token_bytes: 8192,
        max_subscriptions: 10,
    })
    .unwrap();
    authenticator.verify(token, now(), clock::wall()).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "real processes run in real time")]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn tokens_are_what_the_gateway_accepts() {
    let folder = TempDir::new().unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let secret_file = write("secret", &format!("{SECRET}\n"));
    write("private.pem", &key.serialize_pem());
    let public_key_file = write("public.pem", &key.public_key_pem());
    write(
        "with-key.toml",
        &format!("auth.audience = 'apps'\n[[auth.keys]]\nid = 'one'\nsecret = '{SECRET}'\n"),
    );
    let claims = [
        "token",
        "--user",
        "ann",
        "--subscribe",
        "room:*",
        "--publish",
        "room:1",
        "--subscription",
        "user:ann",
        "--expires",
        "10m",
    ];
    let cases: [(&[&str], KeyAlgorithm, KeySource); 3] = [
        (
            &["--secret-file", "secret", "--audience", "apps"],
            KeyAlgorithm::Hs256,
            KeySource::SecretFile(secret_file),
        ),
        (
            &[
                "--private-key-file",
                "private.pem",
                "--algorithm",
                "ES256",
                "--key-id",
                "one",
                "--audience",
                "apps",
            ],
            KeyAlgorithm::Es256,
            KeySource::PublicKeyFile(public_key_file),
        ),
        (&["--config", "with-key.toml"], KeyAlgorithm::Hs256, KeySource::Secret(Secret::new(SECRET))),
    ];
    for (key, algorithm, source) in cases {
        let output = stdout(&run(folder.path(), &[&claims, key].concat()));
        assert_eq!(output.lines().count(), 1, "only the token");
        let identity = identity(output.trim(), algorithm, source);
        assert_eq!(identity.user.as_deref(), Some("ann"));
        let channel = |name| ChannelName::new(name).unwrap();
        assert_eq!(identity.subscriptions, [channel("user:ann")]);
        assert!(identity.may_subscribe(&channel("room:7"), &Namespace::default()));
        assert!(!identity.may_publish(&channel("room:7"), &Namespace::default()));
        let left = identity.expires.expect("it ends").duration_since(now());
        assert!(left > Duration::from_secs(500) && left <= Duration::from_secs(600), "{left:?}");
    }
}

#[test]
fn tokens_that_cannot_be_signed_say_what_is_missing() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("short"), "short\n").unwrap();
    fs::write(folder.path().join("text"), "no key at all\n").unwrap();
    let two = format!(
        "[[auth.keys]]\nid = 'a'\nsecret = '{SECRET}'\n[[auth.keys]]\nid = 'b'\nsecret = '{SECRET}'\n"
    );
    fs::write(folder.path().join("two.toml"), two).unwrap();
    let cases: [(&[&str], &str); 7] = [
        (&[], "there is no key to sign with: give --secret-file or --private-key-file"),
        (&["--config", "two.toml"], "several HS256 keys: name one with --key-id"),
        (&["--secret-file", "short"], "the secret has 5 bytes, at least 32 are needed"),
        (&["--secret-file", "missing"], "cannot read missing"),
        (&["--private-key-file", "text", "--algorithm", "RS256"], "text holds no private key for RS256"),
        (&["--private-key-file", "text", "--algorithm", "HS256"], "HS256 signs with a secret"),
        (&["--algorithm", "ES256"], "give it with --private-key-file"),
    ];
    for (arguments, expected) in cases {
        let text = failure(&run(folder.path(), &[&["token"], arguments].concat()));
        assert!(text.contains(expected), "{arguments:?}\n{text}");
    }
}

#[test]
fn bad_arguments_are_answered_with_what_is_accepted() {
    let folder = TempDir::new().unwrap();
    let cases: [(&[&str], i32, &str); 8] = [
        (&["publish", "a b", "x"], 2, "a channel name cannot hold ' '"),
        (&["publish", "room:1"], 2, "<DATA>"),
        (&["publish", "room:1", "x", "--api", "https://h:1"], 1, "write http://HOST:PORT"),
        (&["subscribe", "a", "b", "--from", ":0"], 1, "--from is a position in one channel"),
        (&["subscribe", "a", "--from", "7"], 2, "write EPOCH:OFFSET"),
        (&["dev", "--set", "x"], 2, "write KEY=VALUE"),
        (
            &["dev", "--set", "x=1"],
            1,
            "flag --set x: unknown key `x` at the top level; known here: namespaces_unknown",
        ),
        (&["serve"], 1, "there is no TLS certificate"),
    ];
    for (arguments, code, expected) in cases {
        let output = run(folder.path(), arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{text}");
        assert!(text.contains(expected), "{arguments:?}\n{text}");
    }
    let output = tidegate(folder.path())
        .args(["publish", "room:1", "x", "--api", "http://192.0.2.1"])
        .env("TIDEGATE_API_KEY", "a-key-for-these-tests")
        .output()
        .unwrap();
    let text = failure(&output);
    assert!(text.contains("plain HTTP would show the API key") && !text.contains("a-key-for"), "{text}");
}
