//! Puts the layers together: defaults, the file, the environment, flags.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::keys::{self, Key};
use super::node::{Entry, Node, Value, convert_table};
use super::problem::{Origin, Problem, Problems};
use super::{Mode, Settings};

/// What is given, before anything of it is believed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layers {
    /// `--config`.
    pub(crate) file: Option<PathBuf>,
    /// Variables whose names begin with `TIDEGATE_`.
    pub(crate) environment: Vec<(String, String)>,
    /// Flag as given, path of the key, value.
    pub(crate) flags: Vec<(String, String, String)>,
}

/// Effective values, and where each came from.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) settings: Settings,
    pub(crate) mode: Mode,
    /// By path; what is not here is the default.
    pub(super) origins: BTreeMap<String, Origin>,
    pub(crate) file: Option<PathBuf>,
}

impl Layers {
    /// Reads and merges. Looks for the file at `--config`, `TIDEGATE_CONFIG`, `./tidegate.toml`; the last may be missing.
    pub(crate) fn load(&self, mode: Mode) -> Result<Loaded, Problems> {
        let mut reader = Reader::default();
        let file = self.find_file();
        let mut folder = PathBuf::new();
        if let Some((path, asked_by)) = &file {
            folder = path.parent().map(Path::to_owned).unwrap_or_default();
            match fs::read_to_string(path) {
                Ok(text) => reader.read_file(path, &text),
                Err(error) => reader.problems.push(Problem::new(
                    asked_by.clone(),
                    format!(
                        "cannot read {}: {error}; check the path and that this user may read it",
                        path.display()
                    ),
                )),
            }
        }
        reader.read_environment(&self.environment);
        for (flag, path, text) in &self.flags {
            reader.read_flag(flag, path, text);
        }
        let mut loaded = Loaded {
            settings: Settings::defaults(mode),
            mode,
            origins: BTreeMap::new(),
            file: file.map(|(path, _)| path),
        };
        reader.apply(&mut loaded, &folder);
        if reader.problems.is_empty() { Ok(loaded) } else { Err(Problems(reader.problems)) }
    }

    fn find_file(&self) -> Option<(PathBuf, Origin)> {
        if let Some(path) = &self.file {
            return Some((path.clone(), Origin::Flag("--config".to_owned())));
        }
        if let Some((name, path)) = self.environment.iter().find(|(name, _)| name == CONFIG_VARIABLE) {
            return Some((path.into(), Origin::Environment(name.clone())));
        }
        let here = PathBuf::from(DEFAULT_FILE);
        here.exists().then_some((here, Origin::Default))
    }
}

/// Collects what is set; a later layer replaces an earlier one.
#[derive(Default)]
struct Reader {
    values: BTreeMap<String, Node>,
    /// By section of [`NAMED`], name and key.
    named: BTreeMap<&'static str, BTreeMap<String, BTreeMap<String, Node>>>,
    problems: Vec<Problem>,
}

impl Reader {
    fn read_file(&mut self, path: &Path, text: &str) {
        let origin = |offset: usize| {
            let before = &text[..text.floor_char_boundary(offset)];
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            Origin::File { path: path.to_owned(), line, column }
        };
        match DeTable::parse(text) {
            Ok(table) => self.read_table("", convert_table(table.get_ref(), &origin)),
            Err(error) => {
                let at = origin(error.span().map_or(0, |span| span.start));
                let message = error.message().trim().replace('\n', ", ");
                self.problems.push(Problem::new(at, format!("this is not TOML: {message}")));
            }
        }
    }

    fn read_table(&mut self, prefix: &str, entries: Vec<Entry>) {
        for entry in entries {
            let path =
                if prefix.is_empty() { entry.name.clone() } else { format!("{prefix}.{}", entry.name) };
            if let Some(section) = NAMED.into_iter().find(|section| *section == path) {
                self.read_named(section, entry);
            } else if is_key(&path) {
                self.values.insert(path, entry.node);
            } else if is_section(&path) {
                match entry.node.value {
                    Value::Table(entries) => self.read_table(&path, entries),
                    _ => {
                        let text = format!("`{path}` is a section: write [{path}], then its keys below");
                        self.problems.push(Problem::new(entry.origin, text));
                    }
                }
            } else {
                self.refuse_unknown(entry.origin, prefix, &entry.name, children(prefix));
            }
        }
    }

    /// `[section.NAME]`, for any name.
    fn read_named(&mut self, section: &'static str, entry: Entry) {
        let Value::Table(names) = entry.node.value else {
            let text = format!("`{section}` is a section: write [{section}.NAME], then its keys below");
            self.problems.push(Problem::new(entry.origin, text));
            return;
        };
        for name in names {
            let path = format!("{section}.{}", name.name);
            match name.node.value {
                Value::Table(entries) => {
                    let known: Vec<&str> = named_keys(section).into_iter().map(|(name, _)| name).collect();
                    let (good, bad): (Vec<_>, Vec<_>) =
                        entries.into_iter().partition(|entry| known.contains(&entry.name.as_str()));
                    let values = self.named.entry(section).or_default().entry(name.name).or_default();
                    values.extend(good.into_iter().map(|entry| (entry.name, entry.node)));
                    for entry in bad {
                        self.refuse_unknown(entry.origin, &path, &entry.name, known.iter().copied());
                    }
                }
                _ => {
                    let text = format!("`{path}` is a section: write [{path}], then its keys below");
                    self.problems.push(Problem::new(name.origin, text));
                }
            }
        }
    }

    fn read_environment(&mut self, variables: &[(String, String)]) {
        for (name, text) in variables {
            if OTHER_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let origin = Origin::Environment(name.clone());
            let path =
                name.strip_prefix(ENVIRONMENT_PREFIX).unwrap_or(name).replace("__", ".").to_lowercase();
            if !self.read_text(&path, text, &origin) {
                let known = environment_names();
                let known = known.iter().map(String::as_str).chain(OTHER_VARIABLES);
                let hint = nearest(name, known).map_or_else(
                    || {
                        "`tidegate config explain` lists all keys; listen.quic is TIDEGATE_LISTEN__QUIC"
                            .to_owned()
                    },
                    |near| format!("did you mean `{near}`?"),
                );
                self.problems.push(Problem::new(origin, format!("no such setting; {hint}")));
            }
        }
    }

    fn read_flag(&mut self, flag: &str, path: &str, text: &str) {
        let origin = Origin::Flag(flag.to_owned());
        if !self.read_text(path, text, &origin) {
            let (prefix, name) = path.rsplit_once('.').unwrap_or(("", path));
            if is_section(prefix) || prefix.is_empty() {
                self.refuse_unknown(origin, prefix, name, children(prefix));
            } else if let Some((section, _)) = named_section(prefix) {
                self.refuse_unknown(
                    origin,
                    prefix,
                    name,
                    named_keys(section).into_iter().map(|(name, _)| name),
                );
            } else {
                // A misspelt section: the whole path may be near to a real one.
                match nearest(path, keys::settings().iter().map(|key| key.name)) {
                    Some(near) => {
                        let text = format!("unknown key `{path}`; did you mean `{near}`?");
                        self.problems.push(Problem::new(origin, text));
                    }
                    None => self.refuse_unknown(origin, "", prefix, SECTIONS),
                }
            }
        }
    }

    /// False where there is no such key.
    fn read_text(&mut self, path: &str, text: &str, origin: &Origin) -> bool {
        let node = |plain_text| match plain_text {
            true => Node { value: Value::Text(text.to_owned()), origin: origin.clone() },
            false => Node::from_text(text, origin),
        };
        if let Some(key) = keys::settings().iter().find(|key| key.name == path) {
            self.values.insert(path.to_owned(), node(key.plain_text));
            return true;
        }
        if is_key(path) {
            self.values.insert(path.to_owned(), node(false));
            return true;
        }
        let Some((section, (name, last))) =
            named_section(path).and_then(|(section, rest)| Some((section, rest.rsplit_once('.')?)))
        else {
            return false;
        };
        let keys = named_keys(section);
        let Some((_, plain_text)) = keys.iter().find(|(name, _)| *name == last) else { return false };
        let values = self.named.entry(section).or_default().entry(name.to_owned()).or_default();
        values.insert(last.to_owned(), node(*plain_text));
        true
    }

    fn refuse_unknown<'a>(
        &mut self,
        origin: Origin,
        prefix: &str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) {
        let known: Vec<&str> = known.into_iter().collect();
        let place = if prefix.is_empty() { "at the top level".to_owned() } else { format!("in [{prefix}]") };
        let hint = nearest(name, known.iter().copied()).map_or_else(
            || format!("known here: {}", known.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        self.problems.push(Problem::new(origin, format!("unknown key `{name}` {place}; {hint}")));
    }

    /// Turns what is set into effective values.
    fn apply(&mut self, loaded: &mut Loaded, folder: &Path) {
        let Loaded { settings, origins, .. } = loaded;
        let known = keys::settings();
        for (path, node) in std::mem::take(&mut self.values) {
            origins.insert(path.clone(), node.origin.clone());
            match path.as_str() {
                CERTIFICATES => {
                    settings.tls.certificates = self.items(&path, &node, &keys::certificate(), folder)
                }
                AUTH_KEYS => settings.auth.keys = self.items(&path, &node, &keys::auth_key(), folder),
                HOMES => settings.cluster.homes = self.items(&path, &node, &keys::home_rule(), folder),
                _ => {
                    let key = known.iter().find(|key| key.name == path).expect("only known paths were taken");
                    self.read_value(key, settings, &path, &node, folder);
                }
            }
        }
        let mut named = std::mem::take(&mut self.named);
        // The default first: the others begin as copies of it.
        let mut namespaces = named.remove(NAMESPACES).unwrap_or_default();
        let known = keys::namespace();
        if let Some(values) = namespaces.remove(DEFAULT_NAMESPACE) {
            let path = format!("{NAMESPACES}.{DEFAULT_NAMESPACE}");
            self.read_section(&path, &known, &mut settings.namespaces.default, values, origins);
        }
        for (name, values) in namespaces {
            let mut rules = settings.namespaces.default.clone();
            self.read_section(&format!("{NAMESPACES}.{name}"), &known, &mut rules, values, origins);
            settings.namespaces.named.insert(name, rules);
        }
        for (name, values) in named.remove(REGIONS).unwrap_or_default() {
            let region = settings.cluster.regions.entry(name.clone()).or_default();
            self.read_section(&format!("{REGIONS}.{name}"), &keys::region(), region, values, origins);
        }
    }

    /// The keys of one `[section.NAME]`. None of them takes a path.
    fn read_section<S: Clone + 'static>(
        &mut self,
        section: &str,
        known: &[Key<S>],
        settings: &mut S,
        values: BTreeMap<String, Node>,
        origins: &mut BTreeMap<String, Origin>,
    ) {
        for (last, node) in values {
            let path = format!("{section}.{last}");
            let key = known.iter().find(|key| key.name == last).expect("only known keys were taken");
            self.read_value(key, settings, &path, &node, Path::new(""));
            origins.insert(path, node.origin);
        }
    }

    /// The entries of `[[path]]`.
    fn items<T: Clone + Default + 'static>(
        &mut self,
        path: &str,
        node: &Node,
        known: &[Key<T>],
        folder: &Path,
    ) -> Vec<T> {
        let Value::List(items) = &node.value else {
            let text =
                format!("`{path}` is a list of tables: write [[{path}]], then the keys of one entry below");
            self.problems.push(Problem::new(node.origin.clone(), text));
            return Vec::new();
        };
        let mut read = Vec::new();
        for item in items {
            let Value::Table(entries) = &item.value else {
                let text = format!("an entry of `{path}` must be a table, not {}", item.shown());
                self.problems.push(Problem::new(item.origin.clone(), text));
                continue;
            };
            let mut value = T::default();
            for entry in entries {
                match known.iter().find(|key| key.name == entry.name) {
                    Some(key) => {
                        let path = format!("{path}.{}", entry.name);
                        self.read_value(key, &mut value, &path, &entry.node, folder);
                    }
                    None => {
                        let names = known.iter().map(|key| key.name);
                        self.refuse_unknown(entry.origin.clone(), path, &entry.name, names);
                    }
                }
            }
            read.push(value);
        }
        read
    }

    fn read_value<S: Clone + 'static>(
        &mut self,
        key: &Key<S>,
        settings: &mut S,
        path: &str,
        node: &Node,
        folder: &Path,
    ) {
        // Only a file has a folder of its own; flags and environment count from where the program was started.
        let folder = if matches!(node.origin, Origin::File { .. }) { folder } else { Path::new("") };
        if !key.read(settings, node, folder) {
            let given = if key.secret { "this value".to_owned() } else { node.shown() };
            let text = format!("`{path}` cannot be {given}: expected is {}", key.accepts);
            self.problems.push(Problem::new(node.origin.clone(), text));
        }
    }
}

/// Whether `path` takes a value, or a list of tables.
fn is_key(path: &str) -> bool {
    LISTS.contains(&path) || keys::settings().iter().any(|key| key.name == path)
}

/// The section of [`NAMED`] that `path` is in, and what comes behind it.
fn named_section(path: &str) -> Option<(&'static str, &str)> {
    NAMED.into_iter().find_map(|section| Some((section, path.strip_prefix(section)?.strip_prefix('.')?)))
}

/// What may stand in `[section.NAME]`, and whether environment and flags give its text itself.
fn named_keys(section: &str) -> Vec<(&'static str, bool)> {
    if section == NAMESPACES {
        keys::namespace().iter().map(|key| (key.name, key.plain_text)).collect()
    } else {
        keys::region().iter().map(|key| (key.name, key.plain_text)).collect()
    }
}

fn is_section(path: &str) -> bool {
    SECTIONS.contains(&path)
}

/// What may stand directly in a section, or at the top level.
fn children(prefix: &str) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    let keys = keys::settings();
    let others = [CERTIFICATES, AUTH_KEYS, REGIONS, HOMES, "namespaces.default"];
    for path in keys.iter().map(|key| key.name).chain(others) {
        let rest = if prefix.is_empty() {
            Some(path)
        } else {
            path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'))
        };
        if let Some(name) = rest.map(|rest| rest.split('.').next().unwrap_or(rest))
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

fn environment_names() -> Vec<String> {
    let keys = keys::settings();
    let paths = keys.iter().map(|key| key.name).chain(LISTS);
    paths.map(|path| format!("{ENVIRONMENT_PREFIX}{}", path.replace('.', "__").to_uppercase())).collect()
}

/// The most similar name, where it is similar enough to be meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Sections with fixed keys, in the order of the default file.
pub(super) const SECTIONS: [&str; 16] = [
    "node",
    "listen",
    "tls",
    "auth",
    "resume",
    "api",
    "admission",
    "limits",
    "quic",
    "quic.balancer",
    "core",
    "core.local",
    "core.nats",
    "cluster",
    "cluster.link",
    "log",
];
/// Sections of sections with names of the operator's.
const NAMED: [&str; 2] = [NAMESPACES, REGIONS];
/// Lists of tables.
const LISTS: [&str; 3] = [CERTIFICATES, AUTH_KEYS, HOMES];
pub(super) const NAMESPACES: &str = "namespaces";
pub(super) const REGIONS: &str = "cluster.regions";
pub(super) const DEFAULT_NAMESPACE: &str = "default";
pub(super) const CERTIFICATES: &str = "tls.certificates";
pub(super) const AUTH_KEYS: &str = "auth.keys";
pub(super) const HOMES: &str = "cluster.homes";
const DEFAULT_FILE: &str = "tidegate.toml";
const CONFIG_VARIABLE: &str = "TIDEGATE_CONFIG";
pub(crate) const ENVIRONMENT_PREFIX: &str = "TIDEGATE_";
/// Variables of the program that are no settings.
const OTHER_VARIABLES: [&str; 5] =
    [CONFIG_VARIABLE, "TIDEGATE_LOG", "TIDEGATE_API_URL", "TIDEGATE_API_KEY", "TIDEGATE_TOKEN"];
const SIMILAR: f64 = 0.75;
