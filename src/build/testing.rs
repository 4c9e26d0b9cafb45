//! For unit tests: compiles what is written in YAML, outside of any document.

use serde::de::DeserializeOwned;

use super::Build;
use crate::issue::{At, Sources};

/// What `compile` makes of a raw type; there must not be a mistake in it.
pub fn compiled<C: DeserializeOwned, T>(
    yaml: &str,
    compile: impl FnOnce(&C, &At<'_>, &mut Build<'_>) -> Option<T>,
) -> T {
    let sources = Sources::default();
    let mut b = Build::new(&sources);
    let config = serde_yaml::from_str(yaml).expect("the raw type");
    let compiled = compile(&config, &At::Root, &mut b);
    assert!(b.issues.is_empty(), "{:?}", b.issues);
    compiled.expect("something compiled")
}

/// The only mistake that `compile` finds in a raw type that stands at the key `at`: its place and what is said.
pub fn mistake<C: DeserializeOwned, T>(
    yaml: &str,
    at: &str,
    compile: impl FnOnce(&C, &At<'_>, &mut Build<'_>) -> Option<T>,
) -> String {
    let sources = Sources::default();
    let mut b = Build::new(&sources);
    let config = serde_yaml::from_str(yaml).expect("the raw type");
    compile(&config, &At::Root.key(at), &mut b);
    let [issue] = b.issues.0.as_slice() else {
        panic!("one issue, not {:?}", b.issues)
    };
    format!("{}: {}", issue.path, issue.message)
}
