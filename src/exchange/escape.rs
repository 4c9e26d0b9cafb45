//! Values of variables inside of a document: written so that they cannot be taken for more than text.

use std::borrow::Cow;

use super::vars::{Piece, Text, View};

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
