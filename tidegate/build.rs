//! Lists the demo page's files and the JavaScript SDK, so that the program carries them.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut list = String::from("&[\n");
    // At the same places as in the repository, seen from the page: `/sdk/` is `sdk/js/src/`.
    for (folder, prefix) in [(here.join("demo"), "/"), (here.join("../sdk/js/src"), "/sdk/")] {
        println!("cargo::rerun-if-changed={}", folder.display());
        let mut files = Vec::new();
        collect(&folder, &mut files);
        files.sort();
        for file in files {
            let name = file.strip_prefix(&folder).expect("found below it").to_str().expect("names are UTF-8");
            let path = file.to_str().expect("names are UTF-8");
            writeln!(list, "    ({:?}, include_bytes!({path:?})),", format!("{prefix}{name}"))
                .expect("a text takes it");
        }
    }
    list.push_str("]\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("assets.rs"), list).expect("cargo's folder can be written");
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    // A folder that is not there has no files.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| SERVED.iter().any(|served| extension == *served)) {
            files.push(path);
        }
    }
}

const SERVED: [&str; 8] = ["css", "html", "ico", "js", "json", "png", "svg", "woff2"];
