//! Where a secret comes from: a variable or a file, never the configuration itself.
//!
//! A configuration file is committed, copied and pasted into bug reports; a secret in it is a leaked one. No
//! message here repeats what was written, since what was written may be the secret.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

/// No key is longer. It keeps a reference to an endless device from filling the memory.
const LONGEST: u64 = 64 << 10;

/// What a reference led to.
pub(super) enum Found {
    /// The secret, without the white space around it.
    Secret(String),
    /// There is one, but it is empty: says where.
    Empty(String),
}

/// Follows `env:NAME` or `file:PATH`.
pub(super) fn resolve(
    reference: &str,
    environment: &BTreeMap<String, String>,
    read_file: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Found, String> {
    let (secret, source) = if let Some(name) = reference.strip_prefix("env:") {
        let shown = shown_name(name);
        match environment.get(name) {
            Some(secret) => (secret.clone(), shown),
            None => {
                return Err(format!(
                    "{shown} is not set: set it, or remove this line so that each client's own key passes through"
                ));
            }
        }
    } else if let Some(path) = reference.strip_prefix("file:") {
        let secret =
            read_file(Path::new(path)).map_err(|e| format!("the file it names cannot be read: {e}"))?;
        (secret, "the file it names".to_owned())
    } else {
        return Err(
            "must be \"env:NAME\" (a variable) or \"file:PATH\", never the key itself: whoever reads the \
                    configuration would have it"
                .into(),
        );
    };
    match secret.trim() {
        "" => Ok(Found::Empty(source)),
        secret => Ok(Found::Secret(secret.to_owned())),
    }
}

/// The variable's name where it cannot be anything but a name: `env:sk-…` is a key behind a prefix.
fn shown_name(name: &str) -> String {
    let plain =
        name.len() <= 64 && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    if plain && name.contains('_') { format!("the variable {name}") } else { "the variable it names".into() }
}

/// Reads a secret's file.
pub(super) fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::other("it is larger than 64 KiB, so it is not a key"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_file(_: &Path) -> io::Result<String> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn message(reference: &str) -> String {
        match resolve(reference, &BTreeMap::new(), &no_file) {
            Err(message) => message,
            Ok(_) => panic!("{reference} led somewhere"),
        }
    }

    #[test]
    fn a_key_is_not_repeated_however_it_was_written() {
        for reference in ["sk-SECRET", "env:sk-SECRET", "file:sk-SECRET", "ENV:sk-SECRET", "env:SECRET"] {
            assert!(!message(reference).contains("SECRET"), "{}", message(reference));
        }
        assert!(message("env:OPENAI_API_KEY").contains("OPENAI_API_KEY"));
    }

    #[test]
    fn white_space_around_a_secret_is_not_part_of_it() {
        let found = resolve("file:k", &BTreeMap::new(), &|_| Ok(" abc\r\n".into()));
        assert!(matches!(found, Ok(Found::Secret(s)) if s == "abc"));
        let found = resolve("file:k", &BTreeMap::new(), &|_| Ok(" \n".into()));
        assert!(matches!(found, Ok(Found::Empty(_))));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_endless_file_is_given_up() {
        assert!(read_file(Path::new("/dev/zero")).is_err());
    }
}
