//! Layers, suggestions, and every mistake that is looked for.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use tidegate_edge::Addresses;
use tidegate_transport::quic::CongestionControl;

use super::*;

/// With a file of this content in a folder of its own.
struct Given {
    folder: TempDir,
    layers: Layers,
}

impl Given {
    fn file(text: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("tidegate.toml");
        fs::write(&path, text).unwrap();
        Self { folder, layers: Layers { file: Some(path), ..Layers::default() } }
    }

    fn environment(mut self, name: &str, value: &str) -> Self {
        self.layers.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn flag(mut self, key: &str, value: &str) -> Self {
        self.layers.flags.push((format!("--set {key}"), key.to_owned(), value.to_owned()));
        self
    }

    fn load(&self) -> Loaded {
        self.layers.load(Mode::Serve).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// What is wrong, with file names without their folder.
    fn problems(&self) -> String {
        self.shorten(&self.layers.load(Mode::Serve).expect_err("must be refused").to_string())
    }

    fn check(&self, mode: Mode) -> String {
        let problems = check(&self.layers.load(mode).unwrap_or_else(|problems| panic!("{problems}")), now());
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        self.shorten(&lines.join("\n"))
    }

    fn shorten(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.folder.path().display()), "")
    }
}

/// The certificates that these tests make are valid around then.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Passes every check without a certificate.
const PLAIN: &str =
    "listen.quic = false\nlisten.tls = false\nlisten.plain = '127.0.0.1:8080'\nauth.anonymous = true\n";

#[test]
fn the_default_file_says_what_holds_without_it_and_names_every_key() {
    for mode in [Mode::Serve, Mode::Dev] {
        let text = default_file(mode);
        let given = Given::file(&text);
        let loaded = given.layers.load(mode).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(format!("{:?}", loaded.settings), format!("{:?}", Settings::defaults(mode)));
        let all = keys::settings();
        for key in &all {
            let name = key.name.rsplit('.').next().expect("not empty");
            let named = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{name} = "));
            assert!(text.lines().any(named), "{} is missing", key.name);
            // An option without default is shown by example; every other one is really set.
            let set = loaded.origins.contains_key(key.name);
            assert_eq!(set, key.example.is_empty(), "{}", key.name);
            let section = key.name.split_once('.').map(|(section, _)| section);
            assert!(section.is_none_or(|section| layers::SECTIONS.contains(&section)), "{}", key.name);
        }
        for name in
            ["[[tls.certificates]]", "[[auth.keys]]", "[namespaces.default]", "secret_file", "history_age"]
        {
            assert!(text.contains(name), "{name}");
        }
    }
}

#[test]
fn examples_in_the_default_file_are_understood() {
    // Takes the comment sign from every example line, as an operator would.
    let text = default_file(Mode::Serve);
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| {
            let bare = line.strip_prefix("# ").unwrap_or(line);
            let key = bare.split(" = ").next().unwrap_or_default();
            let is_key = bare.contains(" = ") && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            if is_key || bare.starts_with('[') { bare } else { line }
        })
        .collect();
    let loaded = Given::file(&uncommented.join("\n")).load();
    assert_eq!(loaded.settings.tls.certificates.len(), 1);
    assert_eq!(loaded.settings.auth.keys.len(), 1);
    assert_eq!(loaded.settings.auth.issuer.as_deref(), Some("https://id.example"));
    assert_eq!(loaded.settings.namespaces.named["room"].history.count, 1000);
}

#[test]
fn environment_comes_before_file_and_flags_before_both() {
    let text = "[listen]\nquic = '127.0.0.1:1'\ntls = '127.0.0.1:2'\nplain = '127.0.0.1:3'\n";
    let given = Given::file(text)
        .environment("TIDEGATE_LISTEN__TLS", "127.0.0.1:20")
        .environment("TIDEGATE_LISTEN__PLAIN", "127.0.0.1:30")
        .flag("listen.plain", "127.0.0.1:300");
    let loaded = given.load();
    let listen = &loaded.settings.listen;
    assert_eq!(listen.http3.map(|address| address.port()), Some(4434));
    let ports = [listen.quic, listen.tls, listen.plain, listen.api].map(|address| address.map(|a| a.port()));
    assert_eq!(ports, [Some(1), Some(20), Some(300), Some(9090)]);
    let text = given.shorten(&explain(&loaded, Some("listen")).unwrap());
    for line in [
        "listen.quic = \"127.0.0.1:1\"  # tidegate.toml:2:8",
        "listen.tls = \"127.0.0.1:20\"  # environment TIDEGATE_LISTEN__TLS",
        "listen.plain = \"127.0.0.1:300\"  # flag --set listen.plain",
        "listen.http3 = \"0.0.0.0:4434\"  # default",
        "listen.api = \"127.0.0.1:9090\"  # default",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn quic_is_set_as_the_edge_takes_it() {
    let given = Given::file("[quic]\nidle_timeout = '90s'\ncongestion = 'new_reno'\nsend_window = '32KiB'\n")
        .environment("TIDEGATE_QUIC__EARLY_DATA", "false")
        .flag("quic.ack_threshold", "4");
    let quic = given.load().settings.edge().limits.quic;
    assert_eq!((quic.idle_timeout, quic.send_window), (Duration::from_secs(90), 32 << 10));
    assert_eq!((quic.congestion, quic.ack_threshold), (CongestionControl::NewReno, 4));
    assert!(!quic.early_data);
    assert_eq!(quic.stream_window, 64 << 10, "what is not set stays as it is");
}

#[test]
fn every_kind_of_value_is_read_from_every_layer() {
    let given = Given::file("[limits]\nframe = '256KiB'\npayload = 1000\nping = '1m 30s'\n")
        .environment("TIDEGATE_NODE__NAME", "7")
        .environment("TIDEGATE_NODE__WORKERS", "3")
        .environment("TIDEGATE_AUTH__ORIGINS", "https://a.example, https://b.example")
        .environment("TIDEGATE_NAMESPACES__ROOM__HISTORY_COUNT", "7")
        .environment("TIDEGATE_NAMESPACES_UNKNOWN", "refuse")
        .environment("TIDEGATE_TLS__CERTIFICATES", "[{certificate = 'a.pem', key = 'b.pem'}]")
        .environment("TIDEGATE_LOG", "debug")
        .flag("listen.tls", "false")
        .flag("auth.jwks_files", "['one.json', 'two.json']")
        .flag("namespaces.room.publish", "users")
        .flag("limits.token", "16KiB");
    let settings = given.load().settings;
    assert_eq!((settings.limits.edge.frame, settings.limits.edge.payload), (256 << 10, 1000));
    assert_eq!(settings.limits.edge.ping, Duration::from_secs(90));
    assert_eq!(settings.limits.edge.token, 16 << 10);
    assert_eq!((settings.node.name.as_str(), settings.node.workers), ("7", 3));
    assert_eq!(settings.auth.origins, ["https://a.example", "https://b.example"]);
    assert_eq!(settings.auth.jwks_files, [Path::new("one.json"), Path::new("two.json")]);
    assert_eq!(settings.tls.certificates[0].key, Path::new("b.pem"));
    assert_eq!(settings.listen.tls, None);
    let room = &settings.namespaces.named["room"];
    assert_eq!((room.history.count, room.publish), (7, Access::Users));
    assert!(settings.namespaces.refuse_unknown);
}

#[test]
fn namespaces_begin_as_copies_of_the_default() {
    let text =
        "[namespaces.room]\nconflate = true\n[namespaces.default]\nhistory_count = 5\npublish = 'nobody'\n";
    let settings = Given::file(text).load().settings;
    let room = &settings.namespaces.named["room"];
    assert_eq!((room.conflate, room.history.count, room.publish), (true, 5, Access::Nobody));
    assert!(!settings.namespaces.default.conflate);
}

#[test]
fn presence_is_off_until_it_is_said_who_may_see_it() {
    let text = "[namespaces.room]\npresence = 'granted'\n[namespaces.hall]\npresence = 'off'\n";
    let all = |mode| {
        let loaded = Given::file(text).layers.load(mode).unwrap_or_else(|problems| panic!("{problems}"));
        let namespaces = loaded.settings.namespaces;
        [namespaces.default.presence, namespaces.named["room"].presence, namespaces.named["hall"].presence]
    };
    assert_eq!(all(Mode::Serve), [None, Some(Access::Granted), None]);
    assert_eq!(all(Mode::Dev), [Some(Access::Anyone), Some(Access::Granted), None]);
}

#[test]
fn paths_in_a_file_count_from_it() {
    let given = Given::file("[auth]\njwks_files = ['jwks.json', '/etc/jwks.json']\n");
    let settings = given.load().settings;
    assert_eq!(settings.auth.jwks_files, [given.folder.path().join("jwks.json"), "/etc/jwks.json".into()]);
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_name() {
    let cases = [
        (
            "[lisen]\nquic = false",
            "tidegate.toml:1:2: unknown key `lisen` at the top level; did you mean `listen`?",
        ),
        (
            "namespace_unknown = 'refuse'",
            "`namespace_unknown` at the top level; did you mean `namespaces_unknown`?",
        ),
        (
            "[listen]\n  quick = false",
            "tidegate.toml:2:3: unknown key `quick` in [listen]; did you mean `quic`?",
        ),
        (
            "[limits]\npaylod = 1",
            "tidegate.toml:2:1: unknown key `paylod` in [limits]; did you mean `payload`?",
        ),
        ("[tls]\ncertificate = []", "`certificate` in [tls]; did you mean `certificates`?"),
        (
            "[[auth.keys]]\nsecretfile = 'x'",
            "tidegate.toml:2:1: unknown key `secretfile` in [auth.keys]; did you mean `secret_file`?",
        ),
        (
            "[namespaces.room]\nhistory_cuont = 1",
            "`history_cuont` in [namespaces.room]; did you mean `history_count`?",
        ),
        ("[log]\nzzz = 1", "unknown key `zzz` in [log]; known here: level, format"),
    ];
    for (text, expected) in cases {
        let problems = Given::file(text).problems();
        assert!(problems.contains(expected), "{text}\n{problems}");
    }
    let cases = [
        (
            "TIDEGATE_LISTEN__QUICK",
            "environment TIDEGATE_LISTEN__QUICK: no such setting; did you mean `TIDEGATE_LISTEN__QUIC`?",
        ),
        ("TIDEGATE_CONFG", "did you mean `TIDEGATE_CONFIG`?"),
        ("TIDEGATE_NAMESPACES__ROOM__ZZZ", "environment TIDEGATE_NAMESPACES__ROOM__ZZZ: no such setting"),
    ];
    for (name, expected) in cases {
        let problems = Given::file("").environment(name, "1").problems();
        assert!(problems.contains(expected), "{name}\n{problems}");
    }
    let cases = [
        ("listen.quick", "flag --set listen.quick: unknown key `quick` in [listen]; did you mean `quic`?"),
        ("lisen.quic", "unknown key `lisen.quic`; did you mean `listen.quic`?"),
        ("namespaces.room.publsh", "unknown key `publsh` in [namespaces.room]; did you mean `publish`?"),
        ("zzz.yyy", "unknown key `zzz` at the top level; known here: node, listen"),
    ];
    for (key, expected) in cases {
        let problems = Given::file("").flag(key, "1").problems();
        assert!(problems.contains(expected), "{key}\n{problems}");
    }
}

#[test]
fn wrong_values_name_place_key_value_and_what_is_accepted() {
    let cases = [
        (
            "[node]\nworkers = 'many'",
            "tidegate.toml:2:11: `node.workers` cannot be \"many\": expected is a whole number",
        ),
        ("[node]\nworkers = -1", "`node.workers` cannot be -1"),
        ("[node]\nname = 7", "`node.name` cannot be 7: expected is a text"),
        ("[listen]\nquic = 4433", "`listen.quic` cannot be 4433: expected is an address with port"),
        ("[listen]\nquic = true", "`listen.quic` cannot be true"),
        ("[listen]\nquic = 'localhost'", "`listen.quic` cannot be \"localhost\""),
        (
            "[limits]\nframe = '64 kilos'",
            "`limits.frame` cannot be \"64 kilos\": expected is a size, such as \"64KiB\"",
        ),
        ("[limits]\nframe = '99999999999999GiB'", "`limits.frame` cannot be"),
        ("[limits]\nping = 30", "`limits.ping` cannot be 30: expected is a duration, such as \"30s\""),
        ("[limits]\nping = 1.5", "`limits.ping` cannot be 1.5"),
        (
            "[core]\npartitions = 70000",
            "`core.partitions` cannot be 70000: expected is a whole number up to 65535",
        ),
        ("[auth]\nanonymous = 'yes'", "`auth.anonymous` cannot be \"yes\": expected is true or false"),
        (
            "[auth]\norigins = 'https://a.example'",
            "`auth.origins` cannot be \"https://a.example\": expected is a list",
        ),
        ("[auth]\norigins = [1]", "`auth.origins` cannot be a list: expected is a list of texts"),
        (
            "[[auth.keys]]\nalgorithm = 'none'",
            "`auth.keys.algorithm` cannot be \"none\": expected is \"HS256\"",
        ),
        ("[[auth.keys]]\nsecret = 12345678", "`auth.keys.secret` cannot be this value"),
        ("[auth]\nkeys = 'x'", "`auth.keys` is a list of tables: write [[auth.keys]]"),
        ("[auth]\nkeys = ['x']", "an entry of `auth.keys` must be a table, not \"x\""),
        (
            "[namespaces.room]\npublish = 'all'",
            "`namespaces.room.publish` cannot be \"all\": expected is \"anyone\"",
        ),
        ("namespaces_unknown = 'x'", "expected is \"default\" or \"refuse\""),
        ("listen = 7", "`listen` is a section: write [listen]"),
        ("[namespaces]\nroom = 7", "`namespaces.room` is a section"),
        ("[log]\nlevel = 'a=b=c'", "`log.level` cannot be"),
        ("[log]\nformat = 'xml'", "expected is \"text\" or \"json\""),
        ("[listen\n", "tidegate.toml:1:8: this is not TOML"),
        ("[node]\nname = 'a'\nname = 'b'", "this is not TOML: duplicate key"),
    ];
    for (text, expected) in cases {
        let problems = Given::file(text).problems();
        assert!(problems.contains(expected), "{text}\n{problems}");
    }
    let problems = Given::file("[lisen]\n[node]\nworkers = 'x'\n").flag("limits.frame", "x").problems();
    assert!(problems.starts_with("the configuration has 3 problems:"), "all at once: {problems}");
}

#[test]
fn a_missing_file_is_named_with_who_asked_for_it() {
    let layers = Layers { file: Some("/nowhere/tidegate.toml".into()), ..Layers::default() };
    let text = layers.load(Mode::Serve).expect_err("missing").to_string();
    assert!(text.contains("flag --config: cannot read /nowhere/tidegate.toml"), "{text}");
    let environment = vec![("TIDEGATE_CONFIG".to_owned(), "/nowhere/else.toml".to_owned())];
    let text =
        Layers { environment, ..Layers::default() }.load(Mode::Serve).expect_err("missing").to_string();
    assert!(text.contains("environment TIDEGATE_CONFIG: cannot read /nowhere/else.toml"), "{text}");
}

#[test]
fn secrets_are_never_shown() {
    let secret = "a secret that only these tests use";
    let text = format!("[api]\nkeys = ['{secret}']\n[[auth.keys]]\nid = 'one'\nsecret = '{secret}'\n");
    let loaded = Given::file(&text).load();
    let shown = format!("{} {:?}", explain(&loaded, None).unwrap(), loaded.settings);
    assert!(shown.contains("secret = (hidden)") && shown.contains("api.keys = [(hidden)]"), "{shown}");
    assert!(!shown.contains(secret), "{shown}");
    let problems = Given::file(&format!("[api]\nkeys = '{secret}'")).problems();
    assert!(problems.contains("`api.keys` cannot be this value") && !problems.contains(secret), "{problems}");
}

#[test]
fn explain_shows_sections_and_keys_and_suggests() {
    let loaded = Given::file("[namespaces.room]\nconflate = true\n").load();
    let one = explain(&loaded, Some("limits.payload")).unwrap();
    assert_eq!(one, "limits.payload = \"64KiB\"  # default\n    The largest payload of a publication.\n");
    let room = explain(&loaded, Some("namespaces.room")).unwrap();
    assert!(room.contains("namespaces.room.conflate = true"), "{room}");
    assert!(room.contains("namespaces.room.publish = \"granted\"  # as in [namespaces.default]"), "{room}");
    let error = explain(&loaded, Some("limits.paylod")).expect_err("unknown");
    assert_eq!(error, "unknown key `limits.paylod`; did you mean `limits.payload`?");
    let all = explain(&loaded, None).unwrap();
    assert!(keys::settings().iter().all(|key| all.contains(&format!("{} = ", key.name))));
}

#[test]
fn a_configuration_that_would_start_has_no_problems() {
    assert_eq!(Given::file(PLAIN).check(Mode::Serve), "");
    assert_eq!(Given::file("").check(Mode::Dev), "");
    let given = Given::file(
        "[listen]\nplain = '127.0.0.1:80'\n[[tls.certificates]]\ncertificate = 'c.pem'\nkey = 'k.pem'\n\
         [auth]\norigins = ['https://app.example', 'http://localhost:3000', '*']\njwks_files = ['jwks.json']\n\
         [[auth.keys]]\nid = 'one'\nalgorithm = 'ES256'\npublic_key_file = 'es.pem'\n\
         [[auth.keys]]\nsecret_file = 'secret'\n[api]\nkey_files = ['api']\n",
    );
    let write = |name: &str, text: &str| fs::write(given.folder.path().join(name), text).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2028, 1, 1);
    write("c.pem", &params.self_signed(&key).unwrap().pem());
    write("k.pem", &key.serialize_pem());
    write("es.pem", &key.public_key_pem());
    write("secret", "a secret that only these tests use\n");
    write("api", "an-api-key-for-tests\n");
    write("jwks.json", r#"{"keys":[{"kty":"oct","k":"YSBzZWNyZXQgdGhhdCBvbmx5IHRoZXNlIHRlc3RzIHVzZQ"}]}"#);
    assert_eq!(given.check(Mode::Serve), "");
    assert_eq!(given.load().settings.api_keys().unwrap()[0].expose(), b"an-api-key-for-tests");
}

#[test]
fn each_semantic_mistake_is_found() {
    let cases = [
        ("", "there is no TLS certificate: name one with `certificate` and `key`"),
        ("", "nobody could connect: give a key in [[auth.keys]]"),
        ("listen.plain = false", "every listener for clients is off"),
        (
            "listen.quic = '0.0.0.0:4434'\nlisten.http3 = '127.0.0.1:4434'",
            "`listen.http3` and `listen.quic` both take UDP port 4434",
        ),
        (
            "listen.api = '127.0.0.1:8080'",
            "tidegate.toml:5:14: `listen.api` and `listen.plain` both take TCP port 8080",
        ),
        ("node.workers = 65", "`node.workers` can be at most 64"),
        ("core.threads = 65", "`core.threads` can be at most 64"),
        (
            "listen.api = '0.0.0.0:9090'",
            "`listen.api` on 0.0.0.0:9090 would let everyone who reaches it publish",
        ),
        ("resume.keys = ['missing']", "tidegate.toml:5:15: cannot read missing"),
        ("resume.lifetime = '999ms'", "`resume.lifetime` can be from 1s to 1d"),
        ("resume.lifetime = '25h'", "`resume.lifetime` can be from 1s to 1d"),
        ("resume.grace = '2h'", "`resume.grace` can be at most 1h"),
        (
            "quic.balancer.server_id = '0a01'",
            "`quic.balancer.server_id` and `quic.balancer.key_file` go together",
        ),
        (
            "quic.balancer.server_id = '0a0'\nquic.balancer.key_file = 'balancer'",
            "`quic.balancer.server_id` is not hexadecimal",
        ),
        (
            "quic.balancer.server_id = '0a'\nquic.balancer.key_file = 'missing'",
            "tidegate.toml:6:26: cannot read missing",
        ),
        ("core.max_resumed = 0", "`core.max_resumed` cannot be 0"),
        ("api.keys = ['short']", "a key in [api] has fewer than 16 characters"),
        ("api.keys = ['käse käse käse käse']", "characters other than ASCII letters"),
        ("api.key_files = ['missing']", "tidegate.toml:5:17: cannot read missing"),
        ("auth.origins = ['https://app.example/']", "`auth.origins`: \"https://app.example/\" is no origin"),
        ("auth.origins = ['app.example']", "`auth.origins`: \"app.example\" is no origin"),
        ("auth.jwks_files = ['missing']", "cannot read missing"),
        (
            "[[auth.keys]]\nid = 'a'\nsecret = 'short'",
            "`auth.keys` \"a\": the HS256 secret has 5 bytes, at least 32",
        ),
        ("[[auth.keys]]", "`auth.keys` number 1: a key needs exactly one of `secret`"),
        ("[[auth.keys]]\nsecret = 'x'\nsecret_file = 'y'", "a key needs exactly one of"),
        (
            "[[auth.keys]]\nalgorithm = 'RS256'\npublic_key_file = 'missing'",
            "`auth.keys` number 1: cannot read missing",
        ),
        ("[[auth.keys]]\nalgorithm = 'RS256'\nsecret = 'x'", "a key for RS256 needs `public_key_file`"),
        (
            "[[auth.keys]]\nid = 'a'\nsecret = 'x'\n[[auth.keys]]\nid = 'a'\nsecret = 'x'",
            "two `auth.keys` have the id \"a\"",
        ),
        ("[[tls.certificates]]\ncertificate = 'x'", "needs both `certificate` and `key`"),
        ("[[tls.certificates]]\ncertificate = 'x'\nkey = 'y'", "cannot read x"),
        ("[namespaces.'a:b']\nconflate = true", "a namespace is the part before the first `:`"),
        (
            "limits.frame = '64KiB'",
            "tidegate.toml:5:16: `limits.frame` (65536 bytes) must be at least 66560 bytes, to go with `limits.payload`",
        ),
        ("limits.http_body = '1KiB'", "`limits.http_body` (1024 bytes) must be at least"),
        ("limits.session_queue = '512KiB'", "to go with `limits.subscription_queue`"),
        ("api.body = '1KiB'", "`api.body` (1024 bytes) must be at least"),
        ("api.batch = 5000", "`api.batch` can be at most `core.backend_in_flight`"),
        ("limits.pong = '25s'", "`limits.pong` must be shorter than `limits.ping`"),
        ("limits.connections = 0", "`limits.connections` cannot be 0"),
        ("limits.connect = '0s'", "`limits.connect` cannot be 0"),
        ("limits.renewal = '9s'", "`limits.renewal` must be at least 10s, or \"0s\" for never"),
        ("core.partitions = 0", "`core.partitions` cannot be 0"),
    ];
    for (text, expected) in cases {
        // The last setting wins in no TOML: what a case sets itself is left out above.
        let own = text.split('=').next().unwrap_or_default().trim();
        let plain: Vec<&str> =
            PLAIN.lines().filter(|line| own.is_empty() || !line.starts_with(&format!("{own} "))).collect();
        let base = if text.is_empty() { String::new() } else { format!("{}\n", plain.join("\n")) };
        let problems = Given::file(&format!("{base}{text}\n")).check(Mode::Serve);
        assert!(problems.contains(expected), "{text}\n{problems}");
    }
    assert_eq!(Given::file(&format!("{PLAIN}limits.shutdown = '0s'\n")).check(Mode::Serve), "");
    assert_eq!(Given::file(&format!("{PLAIN}limits.renewal = '0s'\n")).check(Mode::Serve), "");
    assert_eq!(Given::file(&format!("{PLAIN}limits.renewal = '10s'\n")).check(Mode::Serve), "");
}

#[test]
fn what_balancers_read_is_checked_with_its_key() {
    const KEY: &str = "000102030405060708090A0B0C0D0E0f";
    for (server_id, rotation, key, problem) in [
        ("0a01", 6, KEY, ""),
        ("0a01", 7, KEY, "[quic.balancer] cannot be used: a rotation of 7"),
        ("010203040506070809", 0, KEY, "[quic.balancer] cannot be used: a server id of 9 bytes"),
        ("0a01", 0, &KEY[2..], "holds no balancer key: 16 bytes in hexadecimal"),
        ("0a01", 0, "0g", "holds no balancer key: 16 bytes in hexadecimal"),
    ] {
        let balancer = format!(
            "[quic.balancer]\nserver_id = '{server_id}'\nrotation = {rotation}\nkey_file = 'balancer'\n"
        );
        let given = Given::file(&format!("{PLAIN}{balancer}"));
        fs::write(given.folder.path().join("balancer"), format!("{key}\n")).unwrap();
        let problems = given.check(Mode::Serve);
        assert!(problems.contains(problem) && problem.is_empty() == problems.is_empty(), "{problems}");
        let routing = given.load().settings.routing();
        assert_eq!(routing.is_ok_and(|routing| routing.is_some()), problem.is_empty());
    }
}

/// What a core needs beside the certificates of [`Cluster`].
const CORE: &str =
    "[node]\nname = 'core-1'\n[core]\nengine = 'nats'\n[core.nats]\nservers = ['nats://10.0.0.1:4222']\n";

/// What an edge needs beside them.
const EDGE: &str = "node.name = 'core-1'\nnode.region = 'us'\nlisten.quic = false\nlisten.tls = false\nlisten.plain = '127.0.0.1:8080'\n\
    auth.anonymous = true\n[cluster]\nhome = 'eu'\n[cluster.regions.eu]\ncores = ['core-1:4455', '[::1]:4455']\n";

/// A file with the certificates of a node, core-1.
fn with_certificates(text: &str) -> Given {
    let given = Given::file("");
    let folder = given.folder.path();
    let authority = tidegate_certs::ClusterAuthority::create(folder, now()).unwrap();
    authority.issue("core-1", &[], Duration::from_secs(86_400), now()).unwrap().write(folder).unwrap();
    let flags = [("ca", "ca.pem"), ("certificate", "core-1.pem"), ("key", "core-1-key.pem")];
    let path = |file: &str| folder.join(file).display().to_string();
    let flags: Vec<_> = flags.map(|(key, file)| (format!("cluster.{key}"), path(file))).into_iter().collect();
    fs::write(folder.join("tidegate.toml"), text).unwrap();
    flags.iter().fold(given, |given, (key, file)| given.environment(&environment_name(key), file))
}

fn environment_name(key: &str) -> String {
    format!("TIDEGATE_{}", key.replace('.', "__").to_uppercase())
}

#[test]
fn other_nodes_are_told_where_this_one_is_and_what_it_takes() {
    let load = |text: &str| Given::file(&format!("{PLAIN}{text}")).load().settings;
    let bound = Addresses {
        quic: Some("10.0.0.1:4433".parse().unwrap()),
        tls: Some("0.0.0.0:4433".parse().unwrap()),
        plain: Some("[::1]:8080".parse().unwrap()),
        http3: None,
    };
    let about = load("[node]\nname = 'edge-1'\nregion = 'us'\nworkers = 3\n").about(&bound);
    assert_eq!((about.node.as_str(), about.region.as_str(), about.rate), ("edge-1", "us", 1500));
    assert_eq!(about.endpoints, ["quic://10.0.0.1:4433", "ws://[::1]:8080", "http://[::1]:8080"]);
    let told =
        "[node]\nendpoints = ['quic://edge-1.example', 'wss://edge-1.example:443']\n[admission]\nrate = 70\n";
    let about = load(told).about(&bound);
    assert_eq!((about.endpoints.len(), about.rate), (2, 70));

    let check =
        |urls: &str| Given::file(&format!("{PLAIN}[node]\nendpoints = [{urls}]\n")).check(Mode::Serve);
    assert_eq!(check("'quic://edge-1.example', 'https://[::1]:4433/v1/poll'"), "");
    for bad in ["''", "'edge-1:4433'", "'ftp://edge-1'", "'quic://'", "'quic://a b'", "'wss://ann@edge-1'"] {
        assert!(check(bad).contains("is no URL of a node"), "{bad}: {}", check(bad));
    }
    let long = format!("'quic://{}'", "x".repeat(256));
    assert!(check(&long).contains("of at most 256 characters"));
    assert!(check(&["'quic://a'"; 9].join(", ")).contains("can name 8 at most"));
}

#[test]
fn admission_is_what_is_set_and_by_the_workers_where_nothing_is() {
    let admission = |text: &str| Given::file(&format!("{PLAIN}{text}")).load().settings.edge().admission;
    assert!((admission("[node]\nworkers = 3\n").rate - 1500.0).abs() < f64::EPSILON);
    let set = admission(
        "[admission]\nrate = 70\nhandshakes = 9\naddress_rate = 3\naddress_burst = 4\nexempt = ['10.0.0.0/8']\n",
    );
    assert!((set.rate - 70.0).abs() < f64::EPSILON && set.handshakes == 9);
    assert_eq!((set.addresses.rate, set.addresses.burst), (3.0, 4));
    assert_eq!(set.addresses.exempt, ["10.0.0.0/8".parse().unwrap()]);

    let check = |text: &str| Given::file(&format!("{PLAIN}[admission]\n{text}\n")).check(Mode::Serve);
    assert_eq!(check("exempt = ['192.0.2.7', '2001:db8::/32']"), "");
    assert!(check("exempt = ['10.0.0.0/40']").contains("is no range of addresses"));
    assert!(check("address_rate = 0").contains("is at least 1"));
}

#[test]
fn clusters_are_set_in_sections_of_their_own() {
    let given = Given::file(
        "[cluster]\nlisten = '127.0.0.1:1'\nhome = 'eu'\n[cluster.link]\nheartbeat = '2s'\n[cluster.regions.eu]\ncores = ['a:1', 'b:1']\n\
         [[cluster.homes]]\npattern = 'room:us-*'\nregion = 'us'\n[namespaces.chat]\nhome = 'us'\n[core.nats]\nservers = ['nats://a:1']\n\
         lease = '5s'\n[core.local]\npath = 'data'\n",
    )
    .environment("TIDEGATE_CLUSTER__REGIONS__US__CORES", "c:1,d:1")
    .flag("cluster.regions.us.cores", "['e:1']")
    .flag("core.engine", "memory");
    let loaded = given.load();
    let settings = &loaded.settings;
    assert_eq!(settings.cluster.listen.port(), 1);
    assert_eq!(settings.cluster.link.heartbeat, Duration::from_secs(2));
    let cores: Vec<_> =
        settings.cluster.regions.iter().map(|(name, region)| (name.as_str(), region.cores.len())).collect();
    assert_eq!(cores, [("eu", 2), ("us", 1)]);
    let rule = &settings.cluster.homes[0];
    assert_eq!((rule.pattern.as_str(), rule.region.as_str()), ("room:us-*", "us"));
    assert_eq!(settings.namespaces.named["chat"].home.as_deref(), Some("us"));
    assert_eq!(settings.engine.kind, EngineKind::Memory);
    assert_eq!(settings.engine.nats.lease, Duration::from_secs(5));
    assert_eq!(settings.engine.local.path, Some(given.folder.path().join("data")));
    let text = given.shorten(&explain(&loaded, Some("cluster.regions")).unwrap());
    assert!(text.contains("cluster.regions.eu.cores = [\"a:1\", \"b:1\"]  # tidegate.toml:7:9"), "{text}");
    assert!(
        text.contains("cluster.regions.us.cores = [\"e:1\"]  # flag --set cluster.regions.us.cores"),
        "{text}"
    );

    for (text, expected) in [
        ("[cluster.region.eu]\ncores = []", "unknown key `region` in [cluster]; did you mean `regions`?"),
        (
            "[cluster.regions.eu]\ncore = []",
            "unknown key `core` in [cluster.regions.eu]; did you mean `cores`?",
        ),
        ("[cluster]\nregions = 7", "`cluster.regions` is a section: write [cluster.regions.NAME]"),
        ("[core.nats]\nserver = []", "unknown key `server` in [core.nats]; did you mean `servers`?"),
        ("[core]\nnats = 1", "`core.nats` is a section"),
        (
            "[core]\nengine = 'redis'",
            "`core.engine` cannot be \"redis\": expected is \"memory\", \"local\" or \"nats\"",
        ),
        (
            "[[cluster.homes]]\npatern = 'x'",
            "unknown key `patern` in [cluster.homes]; did you mean `pattern`?",
        ),
    ] {
        let problems = Given::file(text).problems();
        assert!(problems.contains(expected), "{text}\n{problems}");
    }
}

#[test]
fn the_engine_follows_the_command() {
    let kinds = [Mode::Dev, Mode::Serve, Mode::Core].map(|mode| Settings::defaults(mode).engine.kind);
    assert_eq!(kinds, [EngineKind::Memory, EngineKind::Local, EngineKind::Nats]);
}

#[test]
fn one_file_serves_edges_and_cores() {
    let text = format!("{EDGE}[core]\nengine = 'nats'\n[core.nats]\nservers = ['nats://10.0.0.1:4222']\n");
    let given = with_certificates(&text);
    assert_eq!(given.check(Mode::Edge), "");
    assert_eq!(given.check(Mode::DevEdge), "");
    assert_eq!(given.check(Mode::Core), "");
    // What clients need is nothing to a core.
    assert_eq!(with_certificates(CORE).check(Mode::Core), "");
    let problems = with_certificates(CORE).check(Mode::Edge);
    assert!(
        problems.contains("there is no TLS certificate") && problems.contains("nobody could connect"),
        "{problems}"
    );
}

#[test]
fn each_mistake_of_a_core_is_found() {
    let cases = [
        ("core.engine", "memory", ""),
        ("core.engine", "local", ""),
        ("core.nats.servers", "[]", "`core.nats.servers` names no server"),
        ("core.nats.replicas", "2", "`core.nats.replicas` can be 1, 3 or 5"),
        ("core.nats.prefix", "a.b", "`core.nats.prefix` can be 1 to 32 letters"),
        ("core.nats.lease", "1s", "`core.nats.lease` can be 2s to 60s"),
        ("core.nats.lease", "2500ms", "`core.nats.lease` can be 2s to 60s"),
        ("core.nats.user", "x", "`core.nats.user` and `core.nats.password_file` go together"),
        ("core.nats.credentials_file", "missing", "cannot read missing"),
        ("core.nats.certificate", "x", "`core.nats.certificate` and `core.nats.key` go together"),
        (
            "core.nats.retain_age",
            "1m",
            "`core.nats.retain_age` is shorter than `namespaces.default.history_age`",
        ),
        ("node.region", "e u", "`node.region` is part of the names of streams"),
        ("node.name", "core-2", "core-1.pem is for core-1, not for this node, core-2"),
        ("cluster.advertise", "core-1", "`cluster.advertise`: \"core-1\" is no `host:port`"),
        ("cluster.link.idle_timeout", "1s", "must be at least twice `cluster.link.heartbeat`"),
        ("cluster.link.heartbeat", "0s", "`cluster.link.heartbeat` cannot be 0"),
    ];
    for (key, value, expected) in cases {
        let problems = with_certificates(CORE).flag(key, value).check(Mode::Core);
        if expected.is_empty() {
            // By a flag, somebody means it.
            assert_eq!(problems, "", "{key} = {value}");
        } else {
            assert!(problems.contains(expected), "{key} = {value}\n{problems}");
        }
    }
    let problems = with_certificates(&CORE.replace("'nats'", "'memory'")).check(Mode::Core);
    assert!(problems.contains("tidegate.toml:4:10: a core with `core.engine = \"memory\"`"), "{problems}");
    let problems = Given::file(&format!("{PLAIN}core.engine = 'nats'\n")).check(Mode::Serve);
    assert!(problems.contains("`tidegate serve` takes all partitions for itself"), "{problems}");
    let problems = Given::file(CORE).check(Mode::Core);
    assert!(problems.contains("`tidegate core` needs `cluster.ca`"), "{problems}");
}

#[test]
fn each_mistake_of_an_edge_is_found() {
    let cases = [
        (
            "[[cluster.homes]]\npattern = 'x'\nregion = 'asia'\n",
            "channels live in region \"asia\" by `cluster.homes`",
        ),
        ("[[cluster.homes]]\nregion = 'eu'\n", "has no `pattern`"),
        ("[namespaces.room]\nhome = 'asia'\n", "channels live in region \"asia\" by `namespaces.room.home`"),
        ("[namespaces.default]\nhome = 'eu'\n", "where other channels live is `cluster.home`"),
        ("[cluster.regions.us]\n", "[cluster.regions.us] names no core"),
        (
            "[cluster.regions.us]\ncores = ['core-1']\n",
            "`cluster.regions.us.cores`: \"core-1\" is no `host:port`",
        ),
        ("[cluster.regions.us]\ncores = ['::1:4455']\n", "\"::1:4455\" is no `host:port`"),
        ("[cluster.regions.us]\ncores = ['core-1:0']\n", "\"core-1:0\" is no `host:port`"),
    ];
    for (text, expected) in cases {
        let problems = with_certificates(&format!("{EDGE}{text}")).check(Mode::Edge);
        assert!(problems.contains(expected), "{text}\n{problems}");
    }
    let problems = with_certificates(EDGE).flag("cluster.home", "asia").check(Mode::Edge);
    assert!(problems.contains("flag --set cluster.home: channels live in region \"asia\""), "{problems}");
}
