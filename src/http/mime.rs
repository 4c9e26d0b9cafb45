//! `Content-Type` by file name.

use std::collections::HashMap;

use http::HeaderValue;

/// What a browser saves rather than shows, for names that say nothing.
pub const UNKNOWN: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Types by extension: a common table, with a character set for text, and what was set besides.
#[derive(Debug)]
pub struct Types {
    charset: Option<String>,
    /// What differs from the common table, by the end of the name: lower case, without the first dot.
    own: HashMap<Box<str>, HeaderValue>,
    /// Whether an extension of `own` holds a dot.
    has_double: bool,
}

impl Types {
    /// `charset` is a token; it follows all types of text that name none themselves.
    pub fn new(charset: Option<&str>) -> Types {
        let mut types = Types {
            charset: charset.map(str::to_owned),
            own: HashMap::new(),
            has_double: false,
        };
        let text = mime_guess::get_extensions("text", "*").unwrap_or_default();
        // RFC 9239 made all other names of JavaScript obsolete
        let script = mime_guess::get_extensions("application", "javascript").unwrap_or_default();
        for extension in text.iter().chain(script) {
            let known = mime_guess::from_ext(extension).first_raw();
            let essence = match known {
                Some("application/javascript") => "text/javascript",
                Some(essence) => essence,
                None => continue,
            };
            // its types are visible ASCII
            let _ = types.set(extension, essence);
        }
        // to `mime_guess` this is a playlist of one vendor; what sites have is a video stream (as in nginx's mime.types)
        let _ = types.set("ts", "video/mp2t");
        types
    }

    /// Gives files whose name ends with a dot and `extension` a type; false if it is none.
    pub fn set(&mut self, extension: &str, essence: &str) -> bool {
        let is_text = essence
            .get(..5)
            .is_some_and(|start| start.eq_ignore_ascii_case("text/"));
        let value = match &self.charset {
            Some(charset) if is_text && !essence.contains(';') => {
                format!("{essence}; charset={charset}")
            }
            _ => essence.to_owned(),
        };
        let is_type = essence
            .split_once('/')
            .is_some_and(|(family, subtype)| !family.is_empty() && !subtype.is_empty());
        let (true, Ok(value)) = (is_type, HeaderValue::try_from(value)) else {
            return false;
        };
        self.has_double |= extension.contains('.');
        self.own
            .insert(extension.to_ascii_lowercase().into(), value);
        true
    }

    /// The type of a file with this name (a whole path will do), by its extension in any case.
    pub fn of(&self, name: &str) -> HeaderValue {
        let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
        let Some((stem, extension)) = name.rsplit_once('.') else {
            return UNKNOWN;
        };
        // a leading dot hides a file, it does not start an extension
        if stem.is_empty() {
            return UNKNOWN;
        }
        if self.has_double {
            let dots = name.match_indices('.').filter(|(at, _)| *at > 0);
            // the longest extension goes before a shorter one
            for (dot, _) in dots {
                if let Some(own) = self.own_of(&name[dot + 1..]) {
                    return own;
                }
            }
        } else if let Some(own) = self.own_of(extension) {
            return own;
        }
        let known = mime_guess::from_ext(extension).first_raw();
        known.map_or(UNKNOWN, HeaderValue::from_static)
    }

    fn own_of(&self, extension: &str) -> Option<HeaderValue> {
        let found = match extension.bytes().any(|byte| byte.is_ascii_uppercase()) {
            false => self.own.get(extension),
            true => self.own.get(extension.to_ascii_lowercase().as_str()),
        };
        found.cloned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn types() {
        let types = Types::new(Some("utf-8"));
        for (name, content_type) in [
            ("index.html", "text/html; charset=utf-8"),
            ("/a.b/INDEX.HTM", "text/html; charset=utf-8"),
            ("app.js", "text/javascript; charset=utf-8"),
            ("app.mjs", "text/javascript; charset=utf-8"),
            ("style.min.css", "text/css; charset=utf-8"),
            ("robots.txt", "text/plain; charset=utf-8"),
            ("readme.md", "text/markdown; charset=utf-8"),
            ("feed.xml", "text/xml; charset=utf-8"),
            ("data.json", "application/json"),
            ("icon.svg", "image/svg+xml"),
            ("photo.jpg", "image/jpeg"),
            ("app.wasm", "application/wasm"),
            ("part.ts", "video/mp2t"),
            ("font.woff2", "font/woff2"),
            ("file.unheard-of", "application/octet-stream"),
            ("LICENSE", "application/octet-stream"),
            ("/v1.2/LICENSE", "application/octet-stream"),
            (".html", "application/octet-stream"),
            ("a.", "application/octet-stream"),
            ("", "application/octet-stream"),
        ] {
            assert_eq!(types.of(name), content_type, "{name}");
        }
    }

    #[test]
    fn text_has_the_charset_that_is_set_or_none() {
        let types = Types::new(Some("iso-8859-1"));
        assert_eq!(types.of("a.html"), "text/html; charset=iso-8859-1");
        assert_eq!(types.of("a.png"), "image/png");
        let types = Types::new(None);
        assert_eq!(types.of("a.html"), "text/html");
        assert_eq!(types.of("a.js"), "text/javascript");
    }

    #[test]
    fn own_types_go_before_the_table() {
        let mut types = Types::new(Some("utf-8"));
        assert!(types.set("QQQ", "text/x-q"));
        assert!(types.set("html", "application/xhtml+xml"));
        assert!(types.set("txt", "text/plain; charset=koi8-r"));
        assert_eq!(types.of("a.qqq"), "text/x-q; charset=utf-8");
        assert_eq!(types.of("a.html"), "application/xhtml+xml");
        assert_eq!(types.of("a.txt"), "text/plain; charset=koi8-r");
        assert!(types.set("tar.gz", "application/x-gtar"));
        assert_eq!(types.of("v1.0.tar.gz"), "application/x-gtar");
        assert_eq!(types.of("a.gz"), "application/gzip");
        assert_eq!(types.of("a.b.HTML"), "application/xhtml+xml");
        assert_eq!(types.of(".tar.gz"), "application/gzip");
        for essence in ["", "text", "/", "text/", "text/a\nb"] {
            assert!(!types.set("x", essence), "{essence}");
        }
    }

    proptest! {
        #[test]
        fn any_name_has_a_type(name in "\\PC{0,20}\\.\\PC{0,6}") {
            prop_assert!(Types::new(None).of(&name).to_str().is_ok());
        }
    }
}
