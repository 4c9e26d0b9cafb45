//! `Content-Type` by file name.

use http::HeaderValue;

/// What a browser saves rather than shows, for names that say nothing.
const UNKNOWN: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// The type of a file with this name (a whole path will do), by its extension in any case. Text is UTF-8: a page that is
/// not can say so in itself only when no header speaks against it, but one that is would be shown garbled without.
pub fn content_type(name: &str) -> HeaderValue {
    let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
    match name.rsplit_once('.') {
        // a leading dot hides a file, it does not start an extension
        Some((stem, extension)) if !stem.is_empty() => of_extension(extension),
        _ => UNKNOWN,
    }
}

fn of_extension(extension: &str) -> HeaderValue {
    // to `mime_guess` this is a playlist of one vendor; what sites have is a video stream (as in nginx's mime.types)
    if extension.eq_ignore_ascii_case("ts") {
        return HeaderValue::from_static("video/mp2t");
    }
    match mime_guess::from_ext(extension).first_raw() {
        Some(essence) => of_essence(essence),
        None => UNKNOWN,
    }
}

/// The types that nearly every request is for cost no formatting.
fn of_essence(essence: &'static str) -> HeaderValue {
    let ready = match essence {
        "text/html" => "text/html; charset=utf-8",
        "text/css" => "text/css; charset=utf-8",
        "text/plain" => "text/plain; charset=utf-8",
        "text/xml" => "text/xml; charset=utf-8",
        // RFC 9239 made all other names of JavaScript obsolete
        "text/javascript" | "application/javascript" => "text/javascript; charset=utf-8",
        text if text.starts_with("text/") => {
            return HeaderValue::try_from(format!("{text}; charset=utf-8")).unwrap_or(UNKNOWN);
        }
        other => other,
    };
    HeaderValue::from_static(ready)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn types() {
        for (name, content_type_of) in [
            ("index.html", "text/html; charset=utf-8"),
            ("/a.b/INDEX.HTM", "text/html; charset=utf-8"),
            ("app.js", "text/javascript; charset=utf-8"),
            ("app.mjs", "text/javascript; charset=utf-8"),
            ("style.min.css", "text/css; charset=utf-8"),
            ("robots.txt", "text/plain; charset=utf-8"),
            ("readme.md", "text/markdown; charset=utf-8"),
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
            assert_eq!(content_type(name), content_type_of, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_name_has_a_type(name in "\\PC{0,20}\\.\\PC{0,6}") {
            prop_assert!(content_type(&name).to_str().is_ok());
        }
    }
}
