//! `cargo xtask advisories`: are there known holes in what we build with?
//!
//! cargo-deny and cargo-audit answer this from RustSec's git repository, which a machine that reaches only the crate
//! registry cannot fetch. Two checks need no more than the registry:
//!
//! * **Floors.** `xtask/advisories.toml` has, for crates in our lock file, the lowest version without a published
//!   advisory. Any locked version below it fails, offline too. New advisories must be added there by hand
//!   (whoever has cargo-deny runs `cargo deny check`, see deny.toml, and extends the list).
//! * **Yanked versions.** cargo refuses to choose a yanked version unless a lock file holds it. So a scratch package
//!   that asks for exactly our locked versions, and has no lock file, resolves only while none of them is yanked. It is the
//!   ordinary client on the ordinary index; nothing is downloaded but index entries. Without the registry this half
//!   says that it did not run and does not fail: what is unreachable says nothing about our code, and the floors were read.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::workspace::Workspace;

/// Both checks; what is wrong is in the error.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let lock = fs::read_to_string(workspace.root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let locked = registry_packages(&lock)?;
    let floors =
        fs::read_to_string(workspace.root.join(FLOORS)).with_context(|| format!("cannot read {FLOORS}"))?;
    let floors: Floors = toml::from_str(&floors).with_context(|| format!("cannot parse {FLOORS}"))?;
    let findings = below_floor(&locked, &floors.crates)?;
    ensure!(findings.is_empty(), "Cargo.lock holds versions with known holes:\n{}", findings.join("\n"));
    eprintln!("  {} locked versions, none below its floor ({} floors)", locked.len(), floors.crates.len());
    yanked(workspace, &locked)
}

/// `xtask/advisories.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Floors {
    #[serde(rename = "crate")]
    crates: Vec<Floor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Floor {
    name: String,
    floor: String,
    #[serde(default)]
    backports: Vec<String>,
    advisories: Vec<String>,
    why: String,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
}

fn registry_packages(lock: &str) -> Result<Vec<Locked>> {
    let lock: Lock = toml::from_str(lock).context("cannot parse Cargo.lock")?;
    Ok(lock.package.into_iter().filter(|package| package.source.is_some()).collect())
}

fn below_floor(locked: &[Locked], floors: &[Floor]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for floor in floors {
        let lowest = Version::parse(&floor.floor)?;
        let backports =
            floor.backports.iter().map(|text| Version::parse(text)).collect::<Result<Vec<_>>>()?;
        for package in locked.iter().filter(|package| package.name == floor.name) {
            let version = Version::parse(&package.version)?;
            let sound =
                version >= lowest || backports.iter().any(|fix| version >= *fix && version.same_line(fix));
            if !sound {
                findings.push(format!(
                    "{} {}: at least {} is needed ({}; {})",
                    package.name,
                    package.version,
                    floor.floor,
                    floor.why,
                    floor.advisories.join(", ")
                ));
            }
        }
    }
    Ok(findings)
}

fn yanked(workspace: &Workspace, locked: &[Locked]) -> Result<()> {
    let folder = workspace.target_directory.join("xtask/yanked");
    fs::create_dir_all(folder.join("src"))?;
    fs::write(folder.join("Cargo.toml"), exact_manifest(locked))?;
    fs::write(folder.join("src/lib.rs"), "")?;
    // An old lock file would let cargo keep a version that was yanked since.
    match fs::remove_file(folder.join("Cargo.lock")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let output = workspace.cargo().current_dir(&folder).arg("generate-lockfile").output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    match verdict(output.status.success(), &complaint) {
        Verdict::None => eprintln!("  none of them is yanked"),
        Verdict::Unreachable => {
            eprintln!("  NOT CHECKED: yanked versions; the registry's index cannot be reached")
        }
        Verdict::Yanked => bail!("Cargo.lock holds a yanked version:\n{complaint}"),
        Verdict::Unknown => bail!("cargo cannot tell whether a locked version is yanked:\n{complaint}"),
    }
    Ok(())
}

/// A package that wants exactly the locked versions.
fn exact_manifest(locked: &[Locked]) -> String {
    let mut manifest = String::from(
        "[package]\nname = \"yanked\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n",
    );
    for (index, package) in locked.iter().enumerate() {
        // What follows `+` is a remark, not part of what a requirement can ask for.
        let version = package.version.split('+').next().unwrap_or(&package.version);
        writeln!(
            manifest,
            "d{index} = {{ package = \"{}\", version = \"={version}\", default-features = false }}",
            package.name
        )
        .expect("writing to a String cannot fail");
    }
    manifest
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    None,
    Yanked,
    Unreachable,
    Unknown,
}

fn verdict(success: bool, complaint: &str) -> Verdict {
    if success {
        Verdict::None
    } else if complaint.contains("is yanked") {
        Verdict::Yanked
    } else if [
        "download of ",
        "failed to download",
        "failed to query",
        "without the offline flag",
        "offline was specified",
    ]
    .iter()
    .any(|sign| complaint.contains(sign))
    {
        Verdict::Unreachable
    } else {
        Verdict::Unknown
    }
}

/// Enough of semantic versioning to compare what lock files hold.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    numbers: [u64; 3],
    pre: Option<String>,
}

impl Version {
    fn parse(text: &str) -> Result<Self> {
        let plain = text.split('+').next().unwrap_or(text);
        let (numbers, pre) =
            plain.split_once('-').map_or((plain, None), |(numbers, pre)| (numbers, Some(pre.to_owned())));
        let numbers = numbers.split('.').map(str::parse).collect::<Result<Vec<u64>, _>>();
        let numbers = numbers.ok().and_then(|numbers| numbers.try_into().ok());
        Ok(Self { numbers: numbers.with_context(|| format!("{text} is not a version"))?, pre })
    }

    /// Whether both are of one minor (0.9, 1.38): a backport speaks for no other.
    fn same_line(&self, other: &Self) -> bool {
        self.numbers[..2] == other.numbers[..2]
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (&self.pre, &other.pre) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(own), Some(other)) => own.cmp(other),
        })
    }
}

const FLOORS: &str = "xtask/advisories.toml";

#[cfg(test)]
mod tests {
    use super::*;

    fn floor(floor: &str, backports: &[&str]) -> Floor {
        Floor {
            name: "h2".into(),
            floor: floor.into(),
            backports: backports.iter().map(|text| (*text).to_owned()).collect(),
            advisories: vec!["RUSTSEC-2026-0258".into()],
            why: "empty DATA frames".into(),
        }
    }

    fn findings(version: &str, floor: Floor) -> Vec<String> {
        let lock = format!(
            "[[package]]\nname = \"h2\"\nversion = \"{version}\"\nsource = \"registry\"\n\
             [[package]]\nname = \"ours\"\nversion = \"0.0.1\"\n"
        );
        let locked = registry_packages(&lock).expect("a valid lock file");
        assert_eq!(locked.len(), 1, "our own packages have no source");
        below_floor(&locked, &[floor]).expect("valid versions")
    }

    #[test]
    fn a_version_below_its_floor_is_found_with_the_advisory() {
        let found = findings("0.4.15", floor("0.4.16", &[]));
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("h2 0.4.15") && found[0].contains("RUSTSEC-2026-0258"), "{found:?}");
        assert!(findings("0.4.16", floor("0.4.16", &[])).is_empty());
        assert!(findings("0.10.0", floor("0.4.16", &[])).is_empty(), "numbers are compared, not text");
    }

    #[test]
    fn a_pre_release_is_older_than_its_release() {
        assert_eq!(findings("0.4.16-rc.1", floor("0.4.16", &[])).len(), 1);
    }

    #[test]
    fn a_backport_speaks_for_its_own_line_only() {
        assert!(findings("0.9.4", floor("0.10.1", &["0.9.3"])).is_empty());
        assert_eq!(findings("0.9.2", floor("0.10.1", &["0.9.3"])).len(), 1);
        assert_eq!(findings("0.10.0", floor("0.10.1", &["0.9.3"])).len(), 1);
        assert!(findings("1.38.3", floor("1.44.2", &["1.38.2"])).is_empty());
        assert_eq!(findings("1.39.0", floor("1.44.2", &["1.38.2"])).len(), 1);
    }

    #[test]
    fn the_checked_in_floors_are_well_formed() {
        let floors: Floors =
            toml::from_str(include_str!("../advisories.toml")).expect("advisories.toml parses");
        assert!(below_floor(&[], &floors.crates).is_ok(), "every version parses");
        for needed in ["quinn-proto", "h2", "tungstenite", "rustls", "rustls-webpki"] {
            assert!(floors.crates.iter().any(|row| row.name == needed), "{needed} faces the network");
        }
        for row in &floors.crates {
            assert!(!row.advisories.is_empty(), "{} has no reason", row.name);
            assert!(
                row.advisories.iter().all(|id| id.starts_with("RUSTSEC-") && id.len() == 17),
                "{}",
                row.name
            );
        }
    }

    #[test]
    fn exact_versions_are_asked_for() {
        let locked = [Locked { name: "wasi".into(), version: "0.11.1+snapshot".into(), source: None }];
        assert!(
            exact_manifest(&locked)
                .ends_with("d0 = { package = \"wasi\", version = \"=0.11.1\", default-features = false }\n")
        );
    }

    #[test]
    fn cargos_complaints_are_told_apart() {
        assert_eq!(verdict(true, "Locking 62 packages"), Verdict::None);
        let yanked = "failed to select a version for `a = \"=0.3.30\"`\n  version 0.3.30 is yanked";
        assert_eq!(verdict(false, yanked), Verdict::Yanked);
        assert_eq!(verdict(false, "failed to download from `https://index`"), Verdict::Unreachable);
        assert_eq!(verdict(false, "failed to parse manifest"), Verdict::Unknown);
    }
}
