//! Replays the corpus of every fuzz target through its body, so that what fuzzing once found stays found.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tidegate_fuzz::TARGETS;

#[test]
fn every_corpus_file_passes_through_its_target() {
    for (target, body) in TARGETS {
        let files = list(&tidegate_fuzz::folder().join("corpus").join(target));
        assert!(!files.is_empty(), "{target} has no corpus");
        for file in files {
            let input = std::fs::read(&file).expect("corpus files are readable");
            let outcome = std::panic::catch_unwind(|| body(&input));
            assert!(outcome.is_ok(), "{} breaks {target}", file.display());
        }
    }
}

#[test]
fn every_target_has_a_file_and_a_corpus_and_the_other_way_round() {
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    for folder in ["corpus", "fuzz_targets"] {
        let found: BTreeSet<String> =
            list(&tidegate_fuzz::folder().join(folder)).iter().map(|path| stem(path)).collect();
        assert_eq!(found, names, "fuzz/{folder}");
    }
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("folders are readable").path())
        .collect();
    paths.sort();
    paths
}

fn stem(path: &Path) -> String {
    path.file_stem().expect("it has a name").to_string_lossy().into_owned()
}
