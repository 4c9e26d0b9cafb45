//! Values of variables inside of a document: written so that they cannot be taken for more than text.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::vars::{Piece, Text, Var, View};
use crate::http::path;

/// What the document is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    None,
    Markup,
    Json,
}

impl Escape {
    /// `content_type` as it stands in the header.
    pub fn of(content_type: &[u8]) -> Escape {
        let essence = content_type.split(|&byte| byte == b';').next();
        let essence = essence
            .unwrap_or_default()
            .trim_ascii()
            .to_ascii_lowercase();
        match essence.as_slice() {
            essence if essence.ends_with(b"html") || essence.ends_with(b"xml") => Escape::Markup,
            essence if essence.ends_with(b"json") => Escape::Json,
            _ => Escape::None,
        }
    }

    /// The text for one answer, with its own words as they are.
    pub fn render(self, text: &Text, view: &View<'_>) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let mut value = Vec::new();
        for piece in text.pieces() {
            match piece {
                Piece::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Var(var) => {
                    value.clear();
                    var.write(view, &mut value);
                    self.write(&value, &mut out);
                }
            }
        }
        out
    }

    fn write(self, value: &[u8], out: &mut Vec<u8>) {
        if self == Escape::None {
            return out.extend_from_slice(value);
        }
        for &byte in value {
            let escaped: Cow<'static, str> = match (self, byte) {
                (Escape::Markup, b'&') => "&amp;".into(),
                (Escape::Markup, b'<') => "&lt;".into(),
                (Escape::Markup, b'>') => "&gt;".into(),
                (Escape::Markup, b'"') => "&quot;".into(),
                (Escape::Markup, b'\'') => "&#39;".into(),
                (Escape::Json, b'"') => "\\\"".into(),
                (Escape::Json, b'\\') => "\\\\".into(),
                (Escape::Json, 0..=0x1f) => format!("\\u{byte:04x}").into(),
                _ => {
                    out.push(byte);
                    continue;
                }
            };
            out.extend_from_slice(escaped.as_bytes());
        }
    }
}

/// In a query, what would end a value or the query, and what stands for something else (nginx: `NGX_ESCAPE_ARGS`).
const NOT_IN_VALUE: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'&')
    .add(b'+')
    .add(b';')
    .add(b'<')
    .add(b'>')
    .add(b'?');

/// The text as a URL, or `in_query` as the query of one. Paths, and what a regex has captured of one, are decoded: they are
/// encoded again for where they stand, so that a `?`, `&` or `%` in one stays a part of it. Other variables are as they were
/// sent.
pub fn url(text: &Text, mut in_query: bool, view: &View<'_>) -> String {
    let mut out = String::with_capacity(64);
    let mut value = Vec::new();
    for piece in text.pieces() {
        let var = match piece {
            Piece::Literal(text) => {
                in_query |= text.contains('?');
                out.push_str(text);
                continue;
            }
            Piece::Var(var) => var,
        };
        value.clear();
        var.write(view, &mut value);
        let value = String::from_utf8_lossy(&value);
        match var {
            Var::Capture(_) | Var::Uri if in_query => {
                out.extend(utf8_percent_encode(&value, NOT_IN_VALUE));
            }
            Var::Capture(_) | Var::Uri => out.extend(path::encode(&value)),
            _ => {
                // `$request_uri` and `$is_args` bring one, too
                in_query |= value.contains('?');
                out.push_str(&value);
            }
        }
    }
    out
}
