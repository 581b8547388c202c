//! What `deploy/` holds is taken as it is: every configuration passes its check, every name leads somewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use yaml_rust2::{Yaml, YamlLoader};

use super::{run, stdout, tidegate};

fn deploy(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(folder)
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `config check` as the command of this name sees the file.
fn check(folder: &Path, command: &str, file: &Path, environment: &BTreeMap<String, String>) {
    let mut check = tidegate(folder);
    check.args(["config", "check", "--config"]).arg(file).envs(environment);
    if command != "serve" {
        check.arg(format!("--{command}"));
    }
    let said = stdout(&check.output().unwrap());
    assert_eq!(said, format!("OK: {}\n", file.display()));
}

#[test]
fn units_name_configurations_that_pass_their_check() {
    let folder = TempDir::new().unwrap();
    let here = folder.path();
    let certs = |arguments: &[&str]| stdout(&run(here, &[&["certs"], arguments].concat()));
    for dir in ["cluster", "public"] {
        certs(&["init", "--dir", dir]);
    }
    for node in ["core-1", "edge-us-1"] {
        certs(&["node", node, "--dir", "cluster"]);
    }
    certs(&["node", "gateway.example", "--dir", "public"]);
    for (from, to) in [("gateway.example", "fullchain"), ("gateway.example-key", "key")] {
        fs::rename(here.join(format!("public/{from}.pem")), here.join(format!("{to}.pem"))).unwrap();
    }
    for secret in ["token-secret", "api-key", "ticket-keys"] {
        fs::write(here.join(secret), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap();
    }
    let mut checked = Vec::new();
    for entry in fs::read_dir(deploy("systemd")).unwrap() {
        let path = entry.unwrap().path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Some(line) = name
            .ends_with(".service")
            .then(|| read(&path))
            .and_then(|text| Some(text.lines().find_map(|line| line.strip_prefix("ExecStart="))?.to_owned()))
        else {
            continue;
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        let [program, rest @ ..] = words.as_slice() else { panic!("{name}: {line}") };
        if !program.ends_with("/tidegate") {
            assert!(deploy("systemd").join("nats.conf").exists());
            continue;
        }
        let [command, "--config", file] = rest else { panic!("{name}: {line}") };
        let file = file.strip_prefix("/etc/tidegate/").unwrap_or_else(|| panic!("{name}: {line}"));
        fs::copy(deploy("systemd").join(file), here.join(file)).unwrap();
        check(here, command, &here.join(file), &BTreeMap::new());
        checked.push((*command).to_owned());
    }
    checked.sort();
    assert_eq!(checked, ["core", "edge", "edge", "serve"]);
}

#[test]
fn every_service_of_the_compose_file_finds_what_it_names() {
    let folder = TempDir::new().unwrap();
    let keys = folder.path().join("keys");
    fs::create_dir(&keys).unwrap();
    make_keys(folder.path(), &keys);

    let compose = &YamlLoader::load_from_str(&read(deploy("compose/compose.yaml"))).unwrap()[0];
    let services = compose["services"].as_hash().expect("services");
    let names: Vec<&str> = services.keys().filter_map(Yaml::as_str).collect();
    let wanted = ["certs", "core-1", "core-2", "edge-eu", "edge-us", "nats-1", "nats-2", "nats-3"];
    assert!(wanted.iter().all(|name| names.contains(name)), "{names:?}");
    let mut checked = Vec::new();
    for (name, service) in services {
        let name = name.as_str().expect("a name");
        let mounts = mounts(service, compose);
        // What every kind of service has in common is merged into it.
        let field = |field: &str| match &service[field] {
            Yaml::BadValue => service["<<"][field].clone(),
            value => value.clone(),
        };
        let dockerfile = &field("build")["dockerfile"];
        if let Some(dockerfile) = dockerfile.as_str() {
            assert!(deploy("..").join(dockerfile).exists(), "{dockerfile}");
        }
        let command: Vec<String> =
            field("command").into_iter().filter_map(|word| word.as_str().map(str::to_owned)).collect();
        let Some(at) = command.iter().position(|word| word == "--config") else { continue };
        let file =
            mounts.get(&command[at + 1]).unwrap_or_else(|| panic!("{name} mounts no {}", command[at + 1]));
        if at == 0 {
            assert!(read(file).contains("sync_interval: always"), "{name}");
            continue;
        }
        let own_keys = |text: &str| text.replace("/keys/", &format!("{}/", keys.display()));
        let copy = folder.path().join(format!("{name}.toml"));
        fs::write(&copy, own_keys(&read(file))).unwrap();
        let environment = service["environment"].as_hash().expect("each has its name");
        let environment = environment
            .iter()
            .filter_map(|(key, value)| Some((key.as_str()?.to_owned(), own_keys(value.as_str()?))))
            .collect();
        check(folder.path(), &command[0], &copy, &environment);
        // Links and servers are named as services are.
        for host in read(&copy).split('"').filter_map(host) {
            assert!(names.contains(&host.as_str()), "{name} names {host}");
        }
        checked.push(name.to_owned());
    }
    assert_eq!(checked, ["core-1", "core-2", "edge-eu", "edge-us"]);
}

/// Runs the script of the service `certs`, here.
fn make_keys(folder: &Path, keys: &Path) {
    let script = read(deploy("compose/certs.sh"));
    let script = script
        .replace("cd /keys", &format!("cd {}", keys.display()))
        .replace("chown --recursive tidegate:tidegate .", "true");
    let program = Path::new(env!("CARGO_BIN_EXE_tidegate")).parent().expect("in a folder");
    let path = format!("{}:/usr/bin:/bin", program.display());
    for _ in 0..2 {
        let made = Command::new("bash")
            .args(["-c", &script])
            .current_dir(folder)
            .env("PATH", &path)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

/// Files of ours by where the service sees them; named volumes must be declared.
fn mounts(service: &Yaml, compose: &Yaml) -> BTreeMap<String, PathBuf> {
    let mut mounts = BTreeMap::new();
    for mount in service["volumes"].clone() {
        let mount = mount.as_str().expect("a text").to_owned();
        let (from, rest) = mount.split_once(':').expect("from:to");
        if let Some(file) = from.strip_prefix("./") {
            let path = deploy("compose").join(file);
            assert!(path.exists(), "{}", path.display());
            mounts.insert(rest.split(':').next().unwrap_or(rest).to_owned(), path);
        } else {
            let volumes = compose["volumes"].as_hash().expect("volumes");
            assert!(volumes.contains_key(&Yaml::String(from.to_owned())), "{from}");
        }
    }
    mounts
}

/// Of `nats://host:4222` and `host:4455`.
fn host(text: &str) -> Option<String> {
    let (host, port) = text.trim_start_matches("nats://").rsplit_once(':')?;
    let name = host.contains('-') && host.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    (name && port.parse::<u16>().is_ok()).then(|| host.to_owned())
}
