//! The default file and `config explain`, both from the table of keys.

use std::fmt::Write as _;

use super::keys::{self, Key};
use super::kind::quoted;
use super::layers::{
    AUTH_KEYS, CERTIFICATES, DEFAULT_NAMESPACE, HOMES, Loaded, NAMESPACES, REGIONS, SECTIONS, nearest,
};
use super::{Mode, Origin, Settings};

/// A file that says what holds without it, each key with its text.
pub(crate) fn default_file(mode: Mode) -> String {
    let defaults = Settings::defaults(mode);
    let keys = keys::settings();
    let mut out = String::from(HEAD);
    for key in keys.iter().filter(|key| !key.name.contains('.')) {
        write_key(&mut out, key, key.name, &defaults);
    }
    for section in SECTIONS {
        let _ = write!(out, "\n[{section}]");
        let mut any = false;
        for key in &keys {
            if let Some(name) = key.name.strip_prefix(section).and_then(|rest| rest.strip_prefix('.'))
                && !name.contains('.')
            {
                write_key(&mut out, key, name, &defaults);
                any = true;
            }
        }
        if !any {
            out.push('\n');
        }
        match section {
            "tls" => write_list(&mut out, CERTIFICATES, keys::CERTIFICATES_DOC, &keys::certificate()),
            "auth" => write_list(&mut out, AUTH_KEYS, keys::AUTH_KEYS_DOC, &keys::auth_key()),
            "cluster" => {
                write_list(&mut out, HOMES, keys::HOMES_DOC, &keys::home_rule());
                let _ = writeln!(out, "\n# {}\n# [{REGIONS}.eu]", keys::REGIONS_DOC.replace('\n', "\n# "));
                write_examples(&mut out, &keys::region());
            }
            _ => {}
        }
    }
    let _ = write!(out, "\n# {}\n[{NAMESPACES}.{DEFAULT_NAMESPACE}]", NAMESPACES_DOC.replace('\n', "\n# "));
    for key in keys::namespace() {
        write_key(&mut out, &key, key.name, &defaults.namespaces.default);
    }
    out.push_str(NAMESPACE_EXAMPLE);
    out
}

/// Effective values with origin and text: all, or those at and below `path`.
///
/// # Errors
/// When there is no such key: a text that says so.
pub(crate) fn explain(loaded: &Loaded, path: Option<&str>) -> Result<String, String> {
    let mut lines: Vec<Explained> = Vec::new();
    for key in keys::settings() {
        lines.push(Explained::new(loaded, key.name.to_owned(), key.show(&loaded.settings), key.doc));
    }
    let certificates = &loaded.settings.tls.certificates;
    lines.extend(explain_list(
        loaded,
        CERTIFICATES,
        keys::CERTIFICATES_DOC,
        certificates,
        &keys::certificate(),
    ));
    let auth_keys = &loaded.settings.auth.keys;
    lines.extend(explain_list(loaded, AUTH_KEYS, keys::AUTH_KEYS_DOC, auth_keys, &keys::auth_key()));
    let cluster = &loaded.settings.cluster;
    lines.extend(explain_list(loaded, HOMES, keys::HOMES_DOC, &cluster.homes, &keys::home_rule()));
    for (name, region) in &cluster.regions {
        for key in keys::region() {
            let path = format!("{REGIONS}.{name}.{}", key.name);
            lines.push(Explained::new(loaded, path, key.show(region), key.doc));
        }
    }
    let namespaces = &loaded.settings.namespaces;
    let default = (DEFAULT_NAMESPACE.to_owned(), &namespaces.default);
    for (name, rules) in
        std::iter::once(default).chain(namespaces.named.iter().map(|(name, rules)| (name.clone(), rules)))
    {
        for key in keys::namespace() {
            let path = format!("{NAMESPACES}.{name}.{}", key.name);
            let mut explained = Explained::new(loaded, path, key.show(rules), key.doc);
            if name != DEFAULT_NAMESPACE && explained.origin == Origin::Default.to_string() {
                explained.origin = format!("as in [{NAMESPACES}.{DEFAULT_NAMESPACE}]");
            }
            lines.push(explained);
        }
    }
    if let Some(wanted) = path {
        let below = format!("{wanted}.");
        let known: Vec<String> = lines.iter().map(|line| line.path.clone()).collect();
        lines.retain(|line| line.path == wanted || line.path.starts_with(&below));
        if lines.is_empty() {
            let hint = nearest(wanted, known.iter().map(String::as_str)).map_or_else(
                || "`tidegate config explain` lists all".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            return Err(format!("unknown key `{wanted}`; {hint}"));
        }
    }
    Ok(lines.iter().map(Explained::text).collect::<Vec<_>>().join("\n"))
}

struct Explained {
    path: String,
    value: Option<String>,
    origin: String,
    doc: &'static str,
}

impl Explained {
    fn new(loaded: &Loaded, path: String, value: Option<String>, doc: &'static str) -> Self {
        let origin = loaded.origins.get(&path).unwrap_or(&Origin::Default).to_string();
        Self { path, value, origin, doc }
    }

    fn text(&self) -> String {
        let value = self.value.as_deref().unwrap_or("(not set)");
        format!("{} = {value}  # {}\n    {}\n", self.path, self.origin, self.doc.replace('\n', "\n    "))
    }
}

fn explain_list<T: Clone + 'static>(
    loaded: &Loaded,
    path: &str,
    doc: &'static str,
    items: &[T],
    known: &[Key<T>],
) -> Vec<Explained> {
    let shown = items.iter().map(|item| {
        let pairs = known.iter().filter_map(|key| Some(format!("{} = {}", key.name, key.show(item)?)));
        format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
    });
    let value = format!("[{}]", shown.collect::<Vec<_>>().join(", "));
    vec![Explained::new(loaded, path.to_owned(), Some(value), doc)]
}

fn write_key<S: Clone + 'static>(out: &mut String, key: &Key<S>, name: &str, defaults: &S) {
    let _ = write!(out, "\n# {}\n", key.doc.replace('\n', "\n# "));
    match key.show(defaults) {
        Some(value) => {
            let _ = writeln!(out, "{name} = {value}");
        }
        None => {
            let _ = writeln!(out, "# {name} = {}", key.example);
        }
    }
}

fn write_list<T: Clone + 'static>(out: &mut String, path: &str, doc: &str, known: &[Key<T>]) {
    let _ = writeln!(out, "\n# {}\n# [[{path}]]", doc.replace('\n', "\n# "));
    write_examples(out, known);
}

fn write_examples<T: Clone + 'static>(out: &mut String, known: &[Key<T>]) {
    for key in known {
        let example = if key.example.is_empty() { quoted("") } else { key.example.to_owned() };
        let _ = writeln!(out, "# {} = {example}  # {}", key.name, key.doc.replace('\n', " "));
    }
}

const HEAD: &str = "\
# Tidegate's configuration: every key with its default.
#
# Looked for at --config, then TIDEGATE_CONFIG, then ./tidegate.toml. The environment comes before the file
# (TIDEGATE_LISTEN__QUIC is listen.quic), flags before both (--set listen.quic=0.0.0.0:4433).
# Relative paths count from this file. `tidegate config check` looks for mistakes, `tidegate config explain`
# says what holds and why.
";

const NAMESPACES_DOC: &str = "Rules of channels. A channel is in the namespace before its first `:` (`room:1` is in `room`). This section holds
for every channel whose namespace has none of its own, and is where the others begin.";

const NAMESPACE_EXAMPLE: &str = "
# [namespaces.room]
# history_count = 1000
# publish = \"users\"
";
