//! Run-time variables (`$host`, `$uri`, ...) with nginx's names and meanings, and templates made of them.
//!
//! Names are resolved while a configuration is compiled, so that a misspelt one is a load error and a request only
//! copies bytes. A variable without a value (no such header, not proxied, ...) contributes nothing to a text; the
//! access log writes `-` in its place, as nginx does.
//!
//! Some variables are known only late: `$status` once there is a response, `$request_time` once it has been sent.
//! Where a text is used before that, they would always be empty, which nobody means: a feature names the [`Stage`]
//! at which it renders ([`Text::compile_for`]), and a variable of a later stage is a load error.
//!
//! ```text
//!  names.rs   what variables are called, and what a name in a template means
//!  value.rs   what they are worth for one request
//! ```

use std::borrow::Cow;
use std::time::SystemTime;

use pingora::http::{RequestHeader, ResponseHeader};

use super::Cx;
use crate::build::Build;
use crate::issue::At;
use crate::value::template::{Part, Template};

mod names;
mod value;

#[cfg(test)]
mod tests;

pub use crate::build::Stage;
pub use names::{Var, is_known};
pub use value::{address, joined, protocol, request_time, request_uri, status};

/// What a text is rendered from.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub cx: &'a Cx,
    /// The request as the client sent it.
    pub request: &'a RequestHeader,
    /// The response as the client gets it, once there is one.
    pub response: Option<&'a ResponseHeader>,
    /// The time of day.
    pub wall: SystemTime,
}

/// A template whose names are resolved.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Text {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Literal(Box<str>),
    Var(Var),
}

impl Text {
    /// Parses `text` and resolves its variables, whatever their stage.
    pub fn compile(at: &At<'_>, text: &str, b: &mut Build<'_>) -> Option<Text> {
        Text::compile_for(Stage::Log, at, text, b)
    }

    /// The same for a text that is rendered at `stage`: a variable that has no value yet is an error.
    pub fn compile_for(stage: Stage, at: &At<'_>, text: &str, b: &mut Build<'_>) -> Option<Text> {
        match Template::parse(text) {
            Ok(template) => Text::resolve(stage, at, &template, b),
            Err(error) => {
                b.error(at, error.to_string());
                None
            }
        }
    }

    /// Resolves the variables of a template that was parsed already.
    pub fn resolve(
        stage: Stage,
        at: &At<'_>,
        template: &Template,
        b: &mut Build<'_>,
    ) -> Option<Text> {
        let pieces: Vec<Option<Piece>> = template
            .parts()
            .iter()
            .map(|part| match part {
                Part::Literal(text) => Some(Piece::Literal(text.as_str().into())),
                Part::Variable(name) => names::resolve(stage, at, name, b),
            })
            .collect();
        let pieces = pieces.into_iter().collect::<Option<Vec<Piece>>>()?;
        Some(Text { pieces })
    }

    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The text for one request; borrowed when it has no variables. Bytes that are not UTF-8 (a header may hold
    /// some) become replacement characters; [`Text::write`] keeps them.
    pub fn render(&self, view: &View<'_>) -> Cow<'_, str> {
        match self.pieces.as_slice() {
            [] => Cow::Borrowed(""),
            [Piece::Literal(text)] => Cow::Borrowed(text),
            _ => {
                let mut out = Vec::with_capacity(64);
                self.write(view, &mut out);
                let text = String::from_utf8(out)
                    .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
                Cow::Owned(text)
            }
        }
    }

    /// Appends the text for one request.
    pub fn write(&self, view: &View<'_>, out: &mut Vec<u8>) {
        self.write_with(&view.cx.captures, view, out);
    }

    /// The same for a text whose captures are others than those of the route.
    pub fn write_with(&self, captures: &[String], view: &View<'_>, out: &mut Vec<u8>) {
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Var(Var::Capture(index)) => {
                    let capture = captures.get(*index);
                    out.extend_from_slice(capture.map_or("", |capture| capture).as_bytes());
                }
                Piece::Var(var) => {
                    var.write(view, out);
                }
            }
        }
    }
}
